"""Bergson's collector beside ours, where it is installed: projected gradients of LoRA's matrices, a row each.

    pip install bergson        # needs torchvision and torchaudio too; not in the project's extras

As its defaults have it: the gradient of each matrix is projected to 16 x 16 numbers, for all the layers that
LoRA trains; its own forward and backward pass, collector and builder. Rows, batches and autocast are ours.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable
from typing import Any

import torch

SIDE = 16  # of a matrix's projection: its default


def installed() -> str | None:
    """Its version; None where it cannot be imported."""
    try:
        import bergson  # noqa: F401
    except ImportError:
        return None
    from importlib.metadata import version

    return f"bergson {version('bergson')}"


def seconds(model: Any, tokens: list[Any], labels: list[Any], batches: Iterable[Any]) -> float:
    """Processor seconds a row for the gradients of rows with these tokens and labels, batch by batch."""
    from bergson import GradientProcessor, InMemoryCollector
    from bergson.collector.collector import fwd_bwd_factory
    from bergson.config import IndexConfig
    from bergson.data import pad_and_tensor
    from datasets import Dataset

    ids = [list(map(int, row)) for row in tokens]
    wanted = [list(map(int, row)) for row in labels]
    trained = {
        name for name, _ in model.named_modules() if name.endswith((".lora_A.default", ".lora_B.default"))
    }
    with tempfile.TemporaryDirectory() as folder:
        config = IndexConfig(run_path=folder, projection_dim=SIDE)
        collector = InMemoryCollector(
            model=model,
            processor=GradientProcessor(projection_dim=SIDE),
            target_modules=trained,
            data=Dataset.from_dict({"input_ids": ids, "labels": wanted}),
            cfg=config,
        )
        limits = torch.finfo(torch.bfloat16)  # autocast's gradients; its own limits are the weights'
        collector.lo, collector.hi = limits.min, limits.max
        pass_over = fwd_bwd_factory(config)
        began = time.process_time()
        for batch in batches:
            which = [int(row) for row in batch]
            x, y, _, mask = pad_and_tensor(
                [ids[row] for row in which], labels=[wanted[row] for row in which], sync_max_len=False
            )
            with collector.with_batch(mask), torch.autocast("cpu", torch.bfloat16):
                losses = pass_over(model, x, y, {})
            collector.process_batch(which, losses=losses)
        return (time.process_time() - began) / len(ids)

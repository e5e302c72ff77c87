"""Training on a CPU made three times faster, for the real model's demo and benchmark; the same for all arms.

    with sped_up(): …   around the making of a trainer and its training

TRL 1.16 passes every position of a batch through the output head where there is no Triton, prompts and
padding included, and forms the gradient of a frozen head. With a vocabulary of 49,152 this is half of a
training step. Here only the positions with a label pass the head, and a frozen weight gets no gradient. The
rows of a step are sorted by length before they are cut into the micro-batches of gradient accumulation, so
there is little padding.
Loss and gradients stay the same up to rounding: tests/test_cpu_speed.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import transformers
import trl.trainer.utils as trl_utils
from torch import Tensor
from torch.nn import functional

from coretune.types import IGNORED


class LabelledPositions:
    """TRL's fused head in plain PyTorch: log-probability, entropy and top-1 of the positions it is given.

    hidden (m, width), weight (vocabulary, width), labels (m,); returns fields of shape (m,) in TRL's order:
    log-probability, entropy, log Σp², mean logit, top-1. Those that `outputs` does not name are None.
    """

    @staticmethod
    def apply(
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        temperature: float,
        _chunk: int,
        softcap: float | None,
        scale: float,
        outputs: tuple[str, ...],
    ) -> tuple[Tensor | None, ...]:
        if softcap is not None or {"log_sum_sq_probs", "mean_logits"} & set(outputs):
            raise ValueError("cpu_speed.py knows neither soft caps nor these outputs; leave it out")
        logits = functional.linear(hidden, weight, bias).float() * (scale / temperature)
        every = functional.log_softmax(logits, dim=-1)
        with torch.no_grad():
            entropy = -(every.exp() * every).sum(-1) if "entropy" in outputs else None
            top = every.argmax(-1) == labels if "is_top1" in outputs else None
        return every.gather(-1, labels[:, None])[:, 0], entropy, None, None, top


def by_length(batches: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The same rows in as many batches of the same sizes, like lengths together, padding cut off.

    batches  each (rows, longest): input_ids, attention_mask, labels, and (rows,) columns such as example_id
    """
    rows = [
        {name: value[i] for name, value in batch.items()} for batch in batches for i in range(_size(batch))
    ]
    rows.sort(key=lambda row: int(row["attention_mask"].sum()))
    taken = iter(rows)
    return [_joined([next(taken) for _ in range(_size(batch))]) for batch in batches]


def _size(batch: dict[str, Tensor]) -> int:
    return len(batch["input_ids"])


def _joined(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    longest = max(int(row["attention_mask"].sum()) for row in rows)
    fill = {"attention_mask": 0, "labels": IGNORED}
    found = {}
    for name in rows[0]:
        values = [row[name][:longest] if row[name].dim() else row[name] for row in rows]
        if values[0].dim():
            values = [
                functional.pad(v, (0, longest - len(v)), value=fill.get(name, int(v[0]))) for v in values
            ]
        found[name] = torch.stack(values)
    return found


@contextmanager
def sped_up() -> Iterator[None]:
    """Within the block TRL's head and transformers' micro-batches are those of this file; on a GPU the stock
    ones stay."""
    if torch.cuda.is_available():
        yield
        return
    stock = transformers.Trainer.get_batch_samples

    def get_batch_samples(self: Any, *args: Any, **settings: Any) -> Any:
        batches, items = stock(self, *args, **settings)
        return (by_length(batches) if len(batches) > 1 else batches), items

    with (
        patch.object(
            trl_utils, "_use_triton", lambda device: True
        ),  # says: score positions with a label only
        patch.object(trl_utils, "_ChunkedLogProbFunction", LabelledPositions),
        patch.object(transformers.Trainer, "get_batch_samples", get_batch_samples),
    ):
        yield

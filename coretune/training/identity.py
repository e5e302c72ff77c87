"""What a model, a tokenizer and a pool are, as text: the parts that decide a teacher's or a store's content.

By content, never by name or path: both outlive a change of weights.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from coretune.data.corpus import Corpus
from coretune.measure.snapshots import Snapshot
from coretune.rounds.sampler import PoolRows
from coretune.storing.fingerprint import checksum, fingerprint_of_folder
from coretune.types import Rows

BLOCK = 4096  # rows whose tokens are held at once
_WRITTEN_DIFFERENTLY = "tokenizer_config.json"  # says where the tokenizer was loaded from


def model_parts(model: nn.Module, tokenizer: Any) -> dict[str, str]:
    """weights, adapter, tokenizer: the parts of a fingerprint that a model and its tokenizer give."""
    return {
        "weights": weights_fingerprint(model),
        "adapter": adapter_fingerprint(model),
        "tokenizer": tokenizer_fingerprint(tokenizer),
    }


def weights_fingerprint(model: nn.Module) -> str:
    """Hex of all parameters and buffers as they are in memory, about a second a gigabyte."""
    return tensors_fingerprint({**dict(model.named_parameters()), **dict(model.named_buffers())})


def tensors_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Hex of named tensors: names, dtypes, shapes and bytes, in any order. Held one at a time."""
    parts = sorted(
        (name, str(tensor.dtype), tuple(tensor.shape), _checksum(tensor)) for name, tensor in tensors.items()
    )
    return checksum(json.dumps(parts).encode())


def snapshot_fingerprint(snapshot: Snapshot) -> str:
    """Hex of a snapshot's weights, learning rate and moments."""
    tensors = {f"weights/{name}": weight for name, weight in snapshot.weights.items()}
    numbers: list[float] = [snapshot.learning_rate]
    if (moments := snapshot.moments) is not None:
        tensors |= {f"first/{name}": moment for name, moment in moments.first.items()}
        tensors |= {f"second/{name}": moment for name, moment in moments.second.items()}
        numbers += [moments.beta1, moments.beta2, moments.epsilon, moments.step]
    return checksum(f"{tensors_fingerprint(tensors)} {numbers}".encode())


def adapter_fingerprint(model: nn.Module) -> str:
    """Hex of the adapters' configurations, whatever they were loaded from or for; "none" without one."""
    if not isinstance(model, PeftModel):
        return "none"
    parts = {name: config.to_dict() for name, config in model.peft_config.items()}
    for part in parts.values():
        del part["base_model_name_or_path"], part["inference_mode"]
    # Sets and enumerations, which JSON has not; a set's order changes from process to process.
    written = json.dumps(parts, sort_keys=True, default=lambda v: sorted(v) if isinstance(v, set) else str(v))
    return checksum(written.encode())


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Hex of the vocabulary, the rules and the chat template, as the tokenizer saves them."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        (Path(folder) / _WRITTEN_DIFFERENTLY).unlink(missing_ok=True)
        files = fingerprint_of_folder(folder)
    special = json.dumps([tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id])
    return checksum(f"{files} {special}".encode())


def rows_fingerprint(rows: PoolRows) -> str:
    """Hex of all rows in their order; a corpus knows its own."""
    if isinstance(rows, Corpus):
        return rows.fingerprint
    return drawn_fingerprint(rows, np.arange(len(rows.ids), dtype=np.int64))


def drawn_fingerprint(rows: PoolRows, drawn: Rows) -> str:
    """Hex of the rows `drawn` in that order: ids, tokens, prompt lengths."""
    digest = blake2b(digest_size=16)
    for first in range(0, len(drawn), BLOCK):
        block = drawn[first : first + BLOCK]
        for row, tokens in zip(block, rows.tokens(block), strict=True):
            head = [rows.ids[row], int(rows.prompt_length[row]), len(tokens)]
            digest.update(json.dumps(head).encode())
            digest.update(np.ascontiguousarray(tokens, np.int64).tobytes())
    return digest.hexdigest()


def _checksum(tensor: Tensor) -> str:
    """Of weights that are split over processes, what this process has of them: nobody else is asked."""
    if isinstance(tensor, DTensor):
        tensor = tensor.to_local()
    flat = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
    return checksum(flat.numpy().data)

"""What a model, a tokenizer and a pool are, as text: what decides the content of a warm-up run or a store.

By content, never by name or path: both outlive a change of weights.
"""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from coretune.data.corpus import Corpus
from coretune.installed import versions_of
from coretune.measure.parameters import plain_name
from coretune.measure.snapshots import Snapshot
from coretune.rounds.sampler import PoolRows
from coretune.storing.fingerprint import checksum, fingerprint_of_folder
from coretune.types import Rows

BLOCK = 4096  # rows whose tokens are held at once
#: Whose versions may change what a model computes; the last few where they are installed.
PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "bitsandbytes",
    "flash-attn",
    "liger-kernel",
    "kernels",
)
#: Of a model's config, what says where it came from or how it was saved, not what it computes.
_NOT_COMPUTED = (
    "_name_or_path",
    "_commit_hash",
    "architectures",
    "auto_map",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "id2label",
    "label2id",
)
_WRITTEN_DIFFERENTLY = "tokenizer_config.json"  # says where the tokenizer was loaded from


def model_parts(model: nn.Module, tokenizer: Any) -> dict[str, str]:
    """weights, config, adapter, tokenizer: the parts of a fingerprint that a model and its tokenizer give."""
    return {
        "weights": weights_fingerprint(model),
        "config": checksum(json.dumps(config_settings(model), sort_keys=True).encode()),
        "adapter": adapter_fingerprint(model),
        "tokenizer": tokenizer_fingerprint(tokenizer),
    }


def config_settings(model: Any) -> dict[str, str]:
    """Every entry of the model's config that changes what its weights compute, its attention, its code."""
    found = _flat_config(model.config.to_dict(), "model.")
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    found["model.class"] = type(base).__qualname__
    found["model.attention"] = str(model.config.get_text_config()._attn_implementation)
    if not type(base).__module__.startswith("transformers."):  # the user's own, or come with the weights
        found["model.code"] = _code_of(type(base))
    return found


def _code_of(kind: type) -> str:
    """Hex of the file that a class is from; of one typed at a prompt there is none."""
    try:
        return checksum(Path(inspect.getfile(kind)).read_bytes())
    except (OSError, TypeError):
        return "not in a file"


def _flat_config(part: Mapping[str, Any], prefix: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in part.items():
        if isinstance(value, Mapping) and value:
            found |= _flat_config(value, f"{prefix}{name}.") if name not in _NOT_COMPUTED else {}
        elif name not in _NOT_COMPUTED:
            found[f"{prefix}{name}"] = json.dumps(value, default=str)
    return found


def versions() -> dict[str, str]:
    """Package -> version, of those that are installed."""
    return versions_of(PACKAGES)


def trained_checksums(model: nn.Module) -> dict[str, str]:
    """Each parameter that requires a gradient -> hex (xxh3) of its bytes.

    Empty under ZeRO-3, whose own format checks names. Weights that FSDP 2 has taken apart are gathered one by
    one: every process has to call.
    """
    found: dict[str, str] = {}
    for name, parameter in model.named_parameters():
        if "ds_id" in vars(parameter):
            return {}
        if parameter.requires_grad:
            whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            found[plain_name(name)] = xxhash.xxh3_128(_bytes_of(whole)).hexdigest()
    return found


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


def sources_fingerprint(rows: PoolRows) -> str:
    """Hex of where each row is from, which a quota goes by."""
    return "none" if rows.source is None else checksum(json.dumps(list(rows.source)).encode())


def drawn_fingerprint(rows: PoolRows, drawn: Rows) -> str:
    """Hex of the rows `drawn` in that order: ids, tokens, labels, weights."""
    digest = blake2b(digest_size=16)
    for first in range(0, len(drawn), BLOCK):
        block = drawn[first : first + BLOCK]
        for row, tokens, labels in zip(block, rows.tokens(block), rows.labels(block), strict=True):
            digest.update(json.dumps([rows.ids[row], len(tokens)]).encode())
            digest.update(np.stack([tokens, labels]).astype(np.int64).tobytes())
    if rows.weight is not None:
        digest.update(rows.weight[drawn].astype(np.float64).tobytes())
    return digest.hexdigest()


def _checksum(tensor: Tensor) -> str:
    """Of weights that are split over processes, what this process has of them: nobody else is asked."""
    return checksum(_bytes_of(tensor.to_local() if isinstance(tensor, DTensor) else tensor))


def _bytes_of(tensor: Tensor) -> memoryview:
    # A copy: numpy makes a storage fixed for ever, and FSDP 2 empties those of gathered weights.
    flat = tensor.detach().to("cpu", copy=True).contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().data

"""Models whose weights are split over processes: FSDP 1 and 2, DeepSpeed's ZeRO-3.

Every process holds a part of each weight, and a forward pass gathers them layer by layer. Activations and
their gradients are whole, so per-example signals need nothing else; but all processes have to make the same
number of passes, or one waits for ever.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed


def is_split(model: Any) -> bool:
    """Whether a process holds only a part of the model's weights."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    from torch.distributed.tensor import DTensor

    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        return True
    # ZeRO-3 marks the parameters it has taken apart with an attribute.
    return any(isinstance(p, DTensor) or "ds_id" in vars(p) for p in model.parameters())


def take_apart(model: Any) -> None:
    """Free the whole weights that FSDP 2 keeps from a forward pass on until a backward pass: those of its
    root, by default, and of every group that does not reshard after forward. No process asks another."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def note_dtypes(model: Any) -> None:
    """Let FSDP 2 note anew which dtype the gradients of its weights have; all processes have to ask.

    It notes that at its first forward pass, of the weights that are trained. Where all were frozen then, no
    step could train under mixed precision. Gathers the weights, one group after the other.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.unshard()
            module.reshard()


def most(count: int, device: torch.device) -> int:
    """The largest `count` of all processes; every one of them has to ask."""
    largest = torch.tensor(count, device=device)
    distributed.all_reduce(largest, distributed.ReduceOp.MAX)
    return int(largest)

"""A run whose numbers are not finite any more stops with a line, and saves nothing over what it has."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from coretune.training.checkpoints import newest_whole

log = logging.getLogger("coretune")
REMEDY = "lower learning_rate or set max_grad_norm, and go on with resume_from_checkpoint"


def refuse_broken_loss(loss: torch.Tensor, step: int, output_dir: str) -> None:
    """ValueError for a loss that would make all weights NaN in the step that follows."""
    if not bool(torch.isfinite(loss.detach()).all()):
        raise ValueError(
            f"step {step + 1}: the loss is {float(loss.detach().float().mean())}, and training stops before "
            f"the weights become so too; {kept(output_dir)}: {REMEDY}"
        )


def refuse_broken_weights(model: nn.Module, step: int, output_dir: str) -> None:
    """ValueError for trained weights that are not finite, before they are saved."""
    broken = broken_weights(model)
    if broken is not None:
        raise ValueError(
            f"after step {step} the weights are not finite, as {broken}, and are not saved; "
            f"{kept(output_dir)}: {REMEDY}"
        )


def warn_of_broken_evaluation(metrics: Mapping[str, float], step: int) -> None:
    """A warning for figures that are not finite, by which no checkpoint is the best and no training stops
    early. The run goes on: a step's loss is checked by itself."""
    for name, value in metrics.items():
        if isinstance(value, float) and not math.isfinite(value):
            log.warning(
                "evaluation after step %d: %s is %s, and nothing is chosen by it: check evaluation rows "
                "without a response, and for numbers out of range (fp16_full_eval, bf16_full_eval)",
                step,
                name,
                value,
            )


def broken_weights(model: nn.Module) -> str | None:
    """The name of a trained parameter that is not finite; None where all are. One wait for the device."""
    names, flags = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            tensor: Any = parameter.detach()
            tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            names.append(name)
            flags.append(torch.isfinite(tensor).all())
    if not flags:
        return None
    finite = torch.stack([flag.to(flags[0].device) for flag in flags]).tolist()
    return next((name for name, good in zip(names, finite, strict=True) if not good), None)


def kept(output_dir: str) -> str:
    """What there is to go on from."""
    newest, _ = newest_whole(output_dir)
    return "no checkpoint is kept yet" if newest is None else f"the last whole checkpoint, {newest}, is kept"

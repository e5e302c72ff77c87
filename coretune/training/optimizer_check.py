"""Whether an optimiser keeps the moments that a preconditioner reads, found out before anything is trained.

By a step on one small parameter, not by a list of names: there are more optimisers than any list has.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import Trainer

READ = frozenset({"exp_avg", "exp_avg_sq", "step"})
SIDE = 4  # of the parameter tried on
#: What transformers passes to optimisers that hold something else than each parameter's own state.
OF_THE_MODEL = ("params", "model", "optimizer_dict")


def refuse_optimizer(optimizer: Any, made: Any, args: Any, model: Any, preconditioner: str) -> None:
    """ValueError where the optimiser that a trainer has, or will make, does not keep Adam's moments.

    optimizer    None: it is made by `made` (class, settings) or, where that is None too, as `args` say
    """
    kind, settings = _optimizer_of(optimizer, made, args, model)
    whole = any(name in settings for name in OF_THE_MODEL)
    keeps = "moments of something else than each weight" if whole else _kept(kind, settings, args.device)
    if keeps is not None:
        raise ValueError(
            f"preconditioner is {preconditioner}, which reads Adam's moments, and {kind.__name__} keeps "
            f"{keeps}: set optim to adamw_torch, or coreset.signals.preconditioner to none"
        )


def _optimizer_of(optimizer: Any, made: Any, args: Any, model: Any) -> tuple[type, dict[str, Any]]:
    if optimizer is not None:
        known = inspect.signature(type(optimizer)).parameters
        return type(optimizer), {name: value for name, value in optimizer.defaults.items() if name in known}
    kind, settings = made or Trainer.get_optimizer_cls_and_kwargs(args, model)
    return kind, dict(settings)


def _kept(kind: type, settings: dict[str, Any], device: torch.device) -> str | None:
    """What it keeps instead of Adam's moments; None where it keeps these."""
    parameter = torch.nn.Parameter(torch.zeros(SIDE, SIDE, device=device))
    parameter.grad = torch.ones_like(parameter)
    try:
        optimizer = kind([parameter], **settings)
        optimizer.step()
    except Exception as error:  # whatever it is: what cannot be tried cannot be read
        return f"nothing that could be found out ({type(error).__name__}: {error})"
    state = optimizer.state[parameter]
    shapes = {tuple(state[name].shape) for name in ("exp_avg", "exp_avg_sq") if name in state}
    if (
        state.keys() >= READ
        and shapes == {(SIDE, SIDE)}
        and {"betas", "eps"} <= optimizer.param_groups[0].keys()
    ):
        return None
    return ", ".join(sorted(map(str, state))) or "no state"

"""What Adam remembers of each parameter, read by the parameter's name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from coretune.measure.optimizer_file import saved_state
from coretune.measure.parameters import plain_name


@dataclass(frozen=True)
class Moments:
    """Adam's running means of the gradient and of its square, after `step` steps, without bias correction.

    first, second   name in the model -> float32, of the parameter's shape
    epsilon         what the optimiser adds to the root of the second
    """

    first: Mapping[str, Tensor]
    second: Mapping[str, Tensor]
    beta1: float
    beta2: float
    epsilon: float
    step: int

    @staticmethod
    def of(optimizer: Any, model: nn.Module) -> Moments:
        """Of a live Adam or AdamW, also inside accelerate's wrapper; the tensors are the optimiser's own
        where those are float32, and change with its next step.

        Parameters that have had no step are left out. Sharded ones (FSDP2) are gathered: every process has
        to call.
        ValueError: another kind of optimiser; one of another model; no step yet; settings or numbers of steps
        that differ between parameters.
        """
        if type(optimizer).__name__ == "AcceleratedOptimizer":
            optimizer = optimizer.optimizer
        kind = type(optimizer).__name__
        if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
            raise ValueError(
                "under FSDP1 the optimizer holds stretches of parameters, not parameters; "
                "use fsdp_version 2, or read the moments from a checkpoint"
            )
        names = {parameter: plain_name(name) for name, parameter in model.named_parameters()}
        held = [(p, group) for group in optimizer.param_groups for p in group["params"]]
        states = {names[p]: optimizer.state[p] for p, _ in held if p in names and p in optimizer.state}
        if not any(p in names for p, _ in held):
            raise ValueError(
                f"{kind} holds none of the model's {len(names)} parameters: it was made for another copy, or "
                "has flattened them, as DeepSpeed does; read the moments from a checkpoint"
            )
        return _gathered(states, [group for p, group in held if names.get(p) in states], kind)

    @staticmethod
    def from_checkpoint(folder: str | Path, model: nn.Module) -> Moments:
        """Of the run that saved `folder`, a `checkpoint-N` of transformers; float32 on the CPU.

        model   the one that was trained, with the same parameters requiring a gradient: torch numbers an
                optimiser's state by position, and their order is found again from it
        ValueError: see `saved_state`, and as `of`.
        """
        saved = saved_state(Path(folder), model)
        groups = [group for group in saved.groups if len(group["params"])]
        return _gathered(saved.states, groups, str(saved.file))


def _gathered(
    states: Mapping[str, Mapping[str, Any]], groups: Iterable[Mapping[str, Any]], source: str
) -> Moments:
    """Moments from torch's state of each parameter, by name, and the groups that hold their settings.

    source   what the errors call the optimiser
    """
    if not states:
        raise ValueError(
            f"{source} holds no state: it has made no step, or keeps none, as plain SGD; train a little "
            "first, with adamw_torch"
        )
    for name, state in states.items():
        if not {"exp_avg", "exp_avg_sq", "step"} <= state.keys():
            raise ValueError(
                f"{source} keeps {sorted(state)} of {name!r}, not Adam's exp_avg and exp_avg_sq; "
                "train with adamw_torch, or set preconditioner: none"
            )
    beta1, beta2, epsilon = _alike(
        {(*group["betas"], group["eps"]) for group in groups}, "betas and eps", source
    )
    step = _alike({int(state["step"]) for state in states.values()}, "numbers of steps", source)
    return Moments(
        {name: _whole(state["exp_avg"]) for name, state in states.items()},
        {name: _whole(state["exp_avg_sq"]) for name, state in states.items()},
        beta1,
        beta2,
        epsilon,
        step,
    )


def _alike(values: set[Any], what: str, source: str) -> Any:
    if len(values) != 1:
        few = sorted(values)[:2]
        raise ValueError(f"{source} has different {what} for its parameters, as {few}; one is expected")
    return next(iter(values))


def _whole(moment: Tensor) -> Tensor:
    """Float32, and in one piece where it is sharded."""
    whole: Tensor = moment.full_tensor() if isinstance(moment, DTensor) else moment
    return whole.detach().float()

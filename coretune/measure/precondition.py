"""What an optimiser makes of a gradient, entry by entry, before it is projected.

It needs each example's whole gradient, which `forms.py` builds in parts; those of LoRA's weights are small.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from coretune.measure.moments import Moments

#: Added under the root of Adam's update. [LESS, Xia et al. 2024, its code]
ADAM_EPSILON = 1e-8


class Precondition(Protocol):
    """What is done to the gradients of a parameter before they are projected."""

    def __call__(self, name: str, entries: slice, gradients: Tensor) -> Tensor:
        """(rows, entries, ...) from a parameter's gradients at these entries of its first dimension."""
        ...


class AdamUpdate:
    """Γ(g) = (β1 m + (1−β1) g) / √(β2 v + (1−β2) g² + 1e-8).

    [LESS, Xia et al. 2024, arXiv:2402.04333, its code; BRIEF, Shen et al. 2026] The direction in which Adam
    would go with this example alone as its next batch: ε under the root, no bias correction. Not linear: Γ(0)
    is not 0, and a sum of Γ is not the update of the sum.
    """

    def __init__(self, moments: Moments, device: torch.device) -> None:
        self.beta1, self.beta2 = moments.beta1, moments.beta2
        self.first = {name: self.beta1 * m.to(device) for name, m in moments.first.items()}
        self.second = {name: self.beta2 * v.to(device) + ADAM_EPSILON for name, v in moments.second.items()}

    def __call__(self, name: str, entries: slice, gradients: Tensor) -> Tensor:
        scale = torch.addcmul(
            self.second[name][entries], gradients, gradients, value=1.0 - self.beta2
        ).rsqrt_()
        return torch.add(self.first[name][entries], gradients, alpha=1.0 - self.beta1).mul_(scale)


class LinearScale:
    """g / (√v̂ + ε), v̂ = v / (1 − β2^t).

    [choice] Adam's own scale without its momentum: linear in g, so that for pursuit Σ w·g of features is the
    feature of Σ w·g, which Γ is not.
    """

    def __init__(self, moments: Moments, device: torch.device) -> None:
        share = 1.0 - moments.beta2**moments.step
        self.scale = {
            name: 1.0 / ((v.to(device) / share).sqrt() + moments.epsilon)
            for name, v in moments.second.items()
        }

    def __call__(self, name: str, entries: slice, gradients: Tensor) -> Tensor:
        return gradients * self.scale[name][entries]


def preconditioner(
    kind: str, moments: Moments, shapes: Mapping[str, tuple[int, ...]], device: torch.device
) -> Precondition:
    """The preconditioner "adam" or "linear" of the parameters in `shapes`.

    ValueError: a parameter the optimiser has no state of, or of another shape.
    """
    for name, shape in shapes.items():
        if name not in moments.second:
            raise ValueError(
                f"the optimizer has no state of {name!r} for preconditioner {kind}: it took no step in that "
                "run; measure parameters that did, or set preconditioner: none"
            )
        if tuple(moments.second[name].shape) != shape:
            raise ValueError(
                f"the optimizer's state of {name!r} has shape {tuple(moments.second[name].shape)}, the "
                f"parameter {shape}: it is of another model, or of one process's part of it (FSDP1), which a "
                "checkpoint would hold whole"
            )
    of_these = Moments(
        {name: moments.first[name] for name in shapes},
        {name: moments.second[name] for name in shapes},
        moments.beta1,
        moments.beta2,
        moments.epsilon,
        moments.step,
    )
    return AdamUpdate(of_these, device) if kind == "adam" else LinearScale(of_these, device)

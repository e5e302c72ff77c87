"""What is gathered from per-example gradients during a backward pass, one parameter after another."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from coretune.measure.forms import Form
from coretune.measure.precondition import Precondition
from coretune.measure.project import Along, MatrixProjection, Sketch


class SquareNorm:
    """value (B,): Σ over parameters of ‖G_i‖²."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self.value = torch.zeros(rows, device=device)

    def __call__(self, name: str, form: Form) -> None:
        self.value += form.square_norm()


class Projected:
    """value (B, dim): Σ over parameters of their projections, each with signs of its own."""

    def __init__(
        self, rows: int, dim: int, projections: Mapping[str, MatrixProjection | Sketch], device: torch.device
    ) -> None:
        self.projections = projections
        self.value = torch.zeros(rows, dim, device=device)

    def __call__(self, name: str, form: Form) -> None:
        form.project(self.projections[name], self.value)


class Built:
    """value (B, dim): Σ over parameters of the projections of their gradients, which are built for it.

    precondition  what they go through first; None = nothing
    """

    def __init__(
        self,
        rows: int,
        dim: int,
        projections: Mapping[str, Along | MatrixProjection | Sketch],
        precondition: Precondition | None,
        device: torch.device,
    ) -> None:
        self.projections, self.precondition = projections, precondition
        self.value = torch.zeros(rows, dim, device=device)

    def __call__(self, name: str, form: Form) -> None:
        for rows, entries, gradients in form.dense():
            if self.precondition is not None:
                gradients = self.precondition(name, entries, gradients)
            self.projections[name].add_part(self.value[rows], entries, gradients)

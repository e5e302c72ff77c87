"""The three shapes a parameter's per-example gradient comes in, and what is asked of them.

Whatever the layer, the gradient of example i's loss is a sum over its tokens s of outer products, a sum of
rows put at token ids, or a vector. Norms, inner products and projections are taken from the factors, in
float32; the gradient itself is built only where that is cheaper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from coretune.measure.project import DENSE_ENTRIES, MatrixProjection, Sketch


class Form(Protocol):
    """Per-example gradients of one parameter for a batch of B rows."""

    def square_norm(self) -> Tensor:
        """(B,) float32, ‖G_i‖²."""
        ...

    def inner(self, reference: Tensor) -> Tensor:
        """(B,) float32, ⟨G_i, reference⟩; `reference` has the parameter's shape."""
        ...

    def total(self) -> Tensor:
        """Σ_i G_i, float32, the parameter's shape."""
        ...

    def project(self, projection: MatrixProjection | Sketch, total: Tensor) -> None:
        """Adds the projection of each G_i to `total` (B, dim), in place."""
        ...


@dataclass(frozen=True)
class Outer:
    """G_i = Σ_s left[i, s] right[i, s]ᵀ, of shape (a, b).

    left (B, T, a), right (B, T, b)   float32
    """

    left: Tensor
    right: Tensor

    def square_norm(self) -> Tensor:
        """Ghost: Σ_{s,t} (l_s·l_t)(r_s·r_t), T²(a + b) multiplications; direct: ‖Σ_s l_s r_sᵀ‖², T·a·b.

        [Goodfellow 2015; Li et al. 2022, "ghost clipping"] The cheaper of the two by that count.
        """
        rows, tokens, a = self.left.shape
        b = self.right.shape[2]
        if tokens * (a + b) < a * b:
            return ((self.left @ self.left.mT) * (self.right @ self.right.mT)).sum((1, 2))
        step = max(1, DENSE_ENTRIES // (a * b))
        return torch.cat(
            [
                (self.left[i : i + step].mT @ self.right[i : i + step]).square().sum((1, 2))
                for i in range(0, rows, step)
            ]
        )

    def inner(self, reference: Tensor) -> Tensor:
        if self.left.shape[2] < self.right.shape[2]:
            return ((self.left @ reference) * self.right).sum((1, 2))
        return ((self.right @ reference.mT) * self.left).sum((1, 2))

    def total(self) -> Tensor:
        return self.left.flatten(0, 1).mT @ self.right.flatten(0, 1)

    def project(self, projection: MatrixProjection | Sketch, total: Tensor) -> None:
        assert isinstance(projection, MatrixProjection)
        projection.add_to(total, projection.cut_left(self.left), self.right)


@dataclass(frozen=True)
class Lookup:
    """G_i = Σ_s e_{ids[i, s]} right[i, s]ᵀ, of shape (entries, b): an embedding's rows.

    ids (B, T) int64, right (B, T, b) float32
    """

    ids: Tensor
    right: Tensor
    entries: int

    def square_norm(self) -> Tensor:
        same = self.ids[:, :, None] == self.ids[:, None, :]
        return ((self.right @ self.right.mT) * same).sum((1, 2))

    def inner(self, reference: Tensor) -> Tensor:
        return (reference[self.ids] * self.right).sum((1, 2))

    def total(self) -> Tensor:
        zero = self.right.new_zeros(self.entries, self.right.shape[2])
        return zero.index_add_(0, self.ids.flatten(), self.right.flatten(0, 1))

    def project(self, projection: MatrixProjection | Sketch, total: Tensor) -> None:
        assert isinstance(projection, MatrixProjection)
        if projection.left is None:
            left = functional.one_hot(self.ids, self.entries).float()
        else:
            left = projection.left[self.ids]
        projection.add_to(total, left, self.right)


@dataclass(frozen=True)
class Vector:
    """G_i = values[i], of shape (a,).

    values (B, a) float32
    """

    values: Tensor

    def square_norm(self) -> Tensor:
        return self.values.square().sum(1)

    def inner(self, reference: Tensor) -> Tensor:
        return self.values @ reference

    def total(self) -> Tensor:
        return self.values.sum(0)

    def project(self, projection: MatrixProjection | Sketch, total: Tensor) -> None:
        assert isinstance(projection, Sketch)
        projection.add_to(total, self.values)

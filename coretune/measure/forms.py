"""The three shapes a parameter's per-example gradient comes in, and what is asked of them.

Whatever the layer, the gradient of example i's loss is a sum over its tokens s of outer products, a sum of
rows put at token ids, or a vector. Norms, inner products and projections are taken from the factors, in
float32; the gradient itself is built only where that is cheaper, or where its entries are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from coretune.measure.project import DENSE_ENTRIES, MatrixProjection, Sketch

#: Rows of the batch, entries of the parameter's first dimension, and their gradients (rows, entries, ...).
Part = tuple[slice, slice, Tensor]


class Form(Protocol):
    """Per-example gradients of one parameter for a batch of B rows."""

    def square_norm(self) -> Tensor:
        """(B,) float32, ‖G_i‖²."""
        ...

    def project(self, projection: MatrixProjection | Sketch, total: Tensor) -> None:
        """Adds the projection of each G_i to `total` (B, dim), in place."""
        ...

    def dense(self) -> Iterator[Part]:
        """The G_i themselves, float32, in parts of at most DENSE_ENTRIES entries, to be used one by one."""
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
        norm = self.left.new_zeros(rows)
        for part, _, gradients in self.dense():
            norm[part] += gradients.square().sum((1, 2))
        return norm

    def project(self, projection: MatrixProjection | Sketch, total: Tensor) -> None:
        assert isinstance(projection, MatrixProjection)
        projection.add_to(total, projection.cut_left(self.left), self.right)

    def dense(self) -> Iterator[Part]:
        for rows, entries in parts(len(self.left), self.left.shape[2], self.right.shape[2]):
            yield rows, entries, self.left[rows, :, entries].mT @ self.right[rows]


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

    def project(self, projection: MatrixProjection | Sketch, total: Tensor) -> None:
        assert isinstance(projection, MatrixProjection)
        if projection.left is not None:
            projection.add_to(total, projection.left[self.ids], self.right)
            return
        # Not by one-hot vectors: a vocabulary that stays whole may be a large one.
        right = self.right if projection.right is None else self.right @ projection.right
        place = self.ids[..., None] * right.shape[2] + torch.arange(right.shape[2], device=right.device)
        signed = right * projection.sketch.sign[place]
        total.scatter_add_(1, projection.sketch.bucket[place].flatten(1), signed.flatten(1))

    def dense(self) -> Iterator[Part]:
        width = self.right.shape[2]
        for rows, entries in parts(len(self.ids), self.entries, width):
            ids, tall = self.ids[rows], entries.stop - entries.start
            inside = (ids >= entries.start) & (ids < entries.stop)
            place = ids - entries.start + tall * torch.arange(len(ids), device=ids.device)[:, None]
            gradients = self.right.new_zeros(len(ids) * tall, width)
            gradients.index_add_(0, place[inside], self.right[rows][inside])
            yield rows, entries, gradients.view(len(ids), tall, width)


@dataclass(frozen=True)
class Vector:
    """G_i = values[i], of shape (a,).

    values (B, a) float32
    """

    values: Tensor

    def square_norm(self) -> Tensor:
        return self.values.square().sum(1)

    def project(self, projection: MatrixProjection | Sketch, total: Tensor) -> None:
        assert isinstance(projection, Sketch)
        projection.add_to(total, self.values)

    def dense(self) -> Iterator[Part]:
        for rows, entries in parts(len(self.values), self.values.shape[1], 1):
            yield rows, entries, self.values[rows, entries]


def parts(rows: int, entries: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Whole rows while one has no more than DENSE_ENTRIES entries, else one row's in stretches."""
    stretch = min(entries, max(1, DENSE_ENTRIES // width))
    step = max(1, DENSE_ENTRIES // (stretch * width))
    for i in range(0, rows, step):
        for j in range(0, entries, stretch):
            yield slice(i, min(i + step, rows)), slice(j, min(j + stretch, entries))

"""Seeded random projections in plain PyTorch: the Rademacher matrix and the sparse sketch.

Both keep inner products without bias: E⟨Pu, Pv⟩ = ⟨u, v⟩.
The same seed gives the same projection on every machine: the numbers are drawn on the CPU.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


def generator(seed: int, *names: str) -> torch.Generator:
    """A generator that depends on the seed and the names alone, not on the order of calls."""
    digest = hashlib.sha256("\0".join((str(seed), *names)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def rademacher(size: int, dim: int, draw: torch.Generator) -> Tensor:
    """(size, dim) float32 with entries ±1/√dim, to be applied on the right: u @ R.

    Var⟨Ru, Rv⟩ = (‖u‖²‖v‖² + ⟨u, v⟩² − 2 Σ u_j² v_j²) / dim   [Achlioptas 2003; TRAK, Park et al. 2023]
    """
    signs = torch.randint(0, 2, (size, dim), generator=draw, dtype=torch.int8)
    return (2.0 * signs.float() - 1.0) / dim**0.5


# Entries of dense per-example matrices held at once: 256 MiB of float32.
DENSE_ENTRIES = 1 << 26


@dataclass(frozen=True)
class Sketch:
    """Sparse Johnson-Lindenstrauss transform, one entry a column: y[h(j)] += σ_j u_j.

    bucket  (size,) int64    h
    sign    (size,) float32  σ

    Same variance as a dense Rademacher projection to `dim` (fully independent h and σ), at O(size) instead of
    O(size · dim).   [Charikar et al. 2002; Kane and Nelson 2014; as used by GraSS, Hu et al. 2025]
    """

    bucket: Tensor
    sign: Tensor
    dim: int

    @staticmethod
    def make(size: int, dim: int, draw: torch.Generator, device: torch.device) -> Sketch:
        bucket = torch.randint(0, dim, (size,), generator=draw)
        sign = 2.0 * torch.randint(0, 2, (size,), generator=draw).float() - 1.0
        return Sketch(bucket.to(device), sign.to(device), dim)

    def add_to(self, total: Tensor, vectors: Tensor) -> None:
        """Adds the sketch of each of `vectors` (B, size) to `total` (B, dim), in place."""
        total.index_add_(1, self.bucket, vectors * self.sign)

    def add_part(self, total: Tensor, entries: slice, gradients: Tensor) -> None:
        """Adds to `total` (B, dim) the share of some entries of a parameter's gradients, in place.

        gradients (B, entries, ...)   at these entries of the first dimension
        """
        width = gradients[0, 0].numel()
        part = slice(entries.start * width, entries.stop * width)
        total.index_add_(1, self.bucket[part], gradients.flatten(1) * self.sign[part])


@dataclass(frozen=True)
class MatrixProjection:
    """Projections of gradients G (a, b) that are sums of outer products: vec(P_o G P_iᵀ) sketched to `dim`.

    left, right   P_oᵀ (a, a') and P_iᵀ (b, b'), or None for a side that stays as it is
    sketch        of the a'·b' entries

    The sides are projected before the outer product is taken, so G is never built (LoGra, Choe et al. 2024).
    Then E⟨y_1, y_2⟩ = ⟨G_1, G_2⟩. [choice] The sides are cut only where that costs less than building G, to
    `factor_dim`, and the sketch brings what is left down to `dim`. Two thin sides with a'·b' = dim would need
    no sketch, but have a relative variance of 2/a' + 2/b' on a G of rank one, against 2/dim of the sketch.
    """

    left: Tensor | None
    right: Tensor | None
    sketch: Sketch

    @staticmethod
    def make(
        name: str, shape: tuple[int, int], dim: int, factor_dim: int, seed: int, device: torch.device
    ) -> MatrixProjection:
        """The projection of the parameter `name`; independent of that of every other name."""
        # A token costs a·b multiplications where G is built, and size · factor_dim for each side that is cut.
        cut = [size > factor_dim for size in shape]
        if shape[0] * shape[1] <= factor_dim * sum(
            size for size, is_cut in zip(shape, cut, strict=True) if is_cut
        ):
            cut = [False, False]
        left, right = (
            rademacher(size, factor_dim, generator(seed, name, side)).to(device) if is_cut else None
            for size, is_cut, side in zip(shape, cut, ("left", "right"), strict=True)
        )
        size = (factor_dim if cut[0] else shape[0]) * (factor_dim if cut[1] else shape[1])
        return MatrixProjection(left, right, Sketch.make(size, dim, generator(seed, name, "sketch"), device))

    def cut_left(self, left: Tensor) -> Tensor:
        """(..., a) -> (..., a')."""
        return left if self.left is None else left @ self.left

    def add_to(self, total: Tensor, left: Tensor, right: Tensor) -> None:
        """Adds the projection of Σ_s left_s right_sᵀ of each row to `total` (B, dim), in place.

        left (B, T, a') cut already, right (B, T, b), float32.
        """
        if self.right is not None:
            right = right @ self.right
        step = max(1, DENSE_ENTRIES // (left.shape[2] * right.shape[2]))
        for i in range(0, len(total), step):
            part = slice(i, i + step)
            self.sketch.add_to(total[part], (left[part].mT @ right[part]).flatten(1))

    def add_part(self, total: Tensor, entries: slice, gradients: Tensor) -> None:
        """As `Sketch.add_part`, of gradients (B, entries, b) that are there as such."""
        if self.right is not None:
            gradients = gradients @ self.right
        if self.left is None:
            self.sketch.add_part(total, entries, gradients)
        else:
            self.sketch.add_to(total, (self.left[entries].mT @ gradients).flatten(1))


@dataclass(frozen=True)
class Along:
    """First the coordinates of a parameter's gradient along given directions, then its projection.

    directions  (r, a, ...) float32, of the parameter's shape
    rest        to dim − r
    """

    directions: Tensor
    rest: MatrixProjection | Sketch

    def add_part(self, total: Tensor, entries: slice, gradients: Tensor) -> None:
        """As `Sketch.add_part`."""
        count = len(self.directions)
        total[:, :count] += gradients.flatten(1) @ self.directions[:, entries].flatten(1).mT
        self.rest.add_part(total[:, count:], entries, gradients)

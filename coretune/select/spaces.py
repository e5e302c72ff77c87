"""Distances between rows in one or more feature spaces, computed in blocks; nothing of size n x n is held.

A space is where one kind of gradient lives. A mix weighs the spaces' distances into one:

    d_ij = Σ_s mix_s ‖x^s_i − x^s_j‖      unsquared, so d is a metric for any mix >= 0

Between blocks a distance comes from a matrix product, sqrt(‖x‖² + ‖y‖² − 2⟨x, y⟩) in float32: below about
2e-3 of the norms it is rounding only and is taken as 0. Between given pairs it comes from differences and is
right to float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, overload

from coretune.types import Array, Rows

#: Bytes of float32 features in one block: large enough for BLAS to run at speed, small beside any memory.
BLOCK_BYTES = 1 << 27
#: Most rows of one block: a block of distances is then at most 64 MiB.
BLOCK_ROWS = 4096


@dataclass(frozen=True)
class Space:
    """Feature vectors of n rows, read in blocks: the sum of the parts at those rows.

    parts  (N, d) each, any float dtype, memory-mapped or not; all of one shape and dtype
    rows   (n,) int64, positions in the parts; their features are finite
    """

    parts: tuple[Array, ...]
    rows: Rows

    @property
    def n(self) -> int:
        return len(self.rows)

    @property
    def d(self) -> int:
        return int(self.parts[0].shape[1])

    @cached_property
    def squares(self) -> Array:
        """(n,) float32 ‖x‖²."""
        squares = np.empty(self.n, dtype=np.float32)
        for at in self.slices():
            block = self.block(at)
            squares[at] = np.einsum("ij,ij->i", block, block)
        return squares

    @property
    def diameter(self) -> float:
        """No two rows are farther apart: twice the largest norm, and a little for rounding."""
        return 2.0 * (1.0 + 1e-6) * float(np.sqrt(self.squares.max(initial=0.0)))

    def block(self, at: slice | Rows) -> Array:
        """(b, d) float32."""
        rows = self.rows[at]
        total = np.asarray(self.parts[0][rows], dtype=np.float32)
        for part in self.parts[1:]:
            total = total + np.asarray(part[rows], dtype=np.float32)
        return total

    def slices(self) -> list[slice]:
        """The rows in blocks of at most BLOCK_BYTES and BLOCK_ROWS."""
        step = max(1, min(BLOCK_ROWS, BLOCK_BYTES // (4 * self.d)))
        return [slice(first, min(first + step, self.n)) for first in range(0, self.n, step)]

    def at(self, rows: Rows) -> Space:
        """The same space of fewer rows, (m,) positions in this one."""
        return Space(self.parts, self.rows[rows])


def distances(left: Array, left_squares: Array, right: Array, right_squares: Array) -> Array:
    """(b, m) float32 distances between the rows of two blocks (b, d), (m, d), given their squared norms."""
    return _from_products(left @ right.T, left_squares, right_squares)


def sweep(space: Space) -> Iterator[tuple[slice, slice, Array]]:
    """Each pair of blocks once, as (rows, columns, distances (b, m)), the columns never before the rows.

    For every row the blocks it meets, on either side, come in rising order.
    """
    for position, rows in enumerate(space.slices()):
        left = space.block(rows)
        for columns in space.slices()[position:]:
            right = left if columns == rows else space.block(columns)
            yield rows, columns, distances(left, space.squares[rows], right, space.squares[columns])


def nearest_picks(
    spaces: Sequence[Space], mixes: Array, chosen: Rows, rows: Rows | None = None
) -> tuple[Array, Array]:
    """The nearest pick of each row under each mix, by comparing them all: (q, m) int64 position, float32 d.

    mixes   (q, S)   the distances asked for
    chosen  (K,)     the picks, rows of the spaces; the first of equals is the nearest, but a pick is its own
    rows    (m,)     whose nearest is asked; left out: everybody's
    """
    asked = np.arange(spaces[0].n) if rows is None else rows
    position = np.zeros((len(mixes), len(asked)), dtype=np.int64)
    best = np.full((len(mixes), len(asked)), np.inf, dtype=np.float32)
    mixes = np.asarray(mixes, dtype=np.float32)
    step = _step(spaces)
    for first in range(0, len(chosen), step):
        picks = chosen[first : first + step]
        right = [space.block(picks) for space in spaces]
        for begin in range(0, len(asked), step):
            at = slice(begin, begin + step)
            found = np.stack(
                [
                    distances(space.block(asked[at]), space.squares[asked[at]], block, space.squares[picks])
                    for space, block in zip(spaces, right, strict=True)
                ]
            )
            _keep_nearest(found, mixes, first, position[:, at], best[:, at])
    own_picks(asked, chosen, position, best)
    return position, best


def own_picks(asked: Rows, chosen: Rows, position: Array, best: Array) -> None:
    """In place: a pick is its own nearest, at distance 0, even where a copy of it was picked earlier."""
    order = np.argsort(chosen)
    found = np.searchsorted(chosen, asked, sorter=order).clip(max=len(chosen) - 1)
    mine = order[found]
    is_pick = chosen[mine] == asked
    position[:, is_pick] = mine[is_pick]
    best[:, is_pick] = 0.0


def paired(space: Space, others: Rows) -> Array:
    """(n,) float64 ‖x_i − x_{others_i}‖, each from the difference itself."""
    found = np.empty(space.n)
    for at in space.slices():
        difference = space.block(at).astype(np.float64) - space.block(others[at])
        found[at] = np.sqrt(np.einsum("ij,ij->i", difference, difference))
    return found


def listed(space: Space, indptr: Array, columns: Array) -> Array:
    """(e,) float32 ‖x_i − x_j‖ of each listed pair: row i lists columns[indptr[i] : indptr[i + 1]].

    From differences, 1.4 million values a millisecond and core.
    """
    found = np.empty(len(columns), dtype=np.float32)
    first, last = _bits(space.parts[0]), _bits(space.parts[-1])
    _listed(first, last, len(space.parts) > 1, space.rows, indptr, columns, found)
    return found


def reduced(space: Space, dimensions: int, rng: np.random.Generator) -> Space:
    """The same rows under a random ±1 projection to fewer dimensions, in memory, float32.

    Johnson and Lindenstrauss: a distance keeps its length to a relative error of about 1/sqrt(2·dimensions),
    one standard deviation.
    """
    signs = rng.integers(0, 2, size=(space.d, dimensions), dtype=np.int8).astype(np.float32)
    signs = (2.0 * signs - 1.0) / np.float32(np.sqrt(dimensions))
    small = np.empty((space.n, dimensions), dtype=np.float32)
    for at in space.slices():
        small[at] = space.block(at) @ signs
    return Space((small,), np.arange(space.n))


def _step(spaces: Sequence[Space]) -> int:
    return max(1, min(BLOCK_ROWS, BLOCK_BYTES // (4 * max(space.d for space in spaces))))


def _bits(part: Array) -> Array:
    """float16 as its bits, which numba can read; other dtypes as they are."""
    return part.view(np.uint16) if part.dtype == np.float16 else part


@intrinsic
def _half_bits_to_float(typing_context: Any, bits: Any) -> Any:
    """float16 in its bits -> float32, one instruction: numba has no float16 on a CPU."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


def _value(x):  # type: ignore[no-untyped-def]  # numba compares the two signatures, annotations and all
    raise NotImplementedError("exists in compiled code only")


@overload(_value)
def _compiled_value(x):  # type: ignore[no-untyped-def]
    if x == types.uint16:
        return lambda x: _half_bits_to_float(x)  # type: ignore[call-arg]  # numba adds the first
    return lambda x: np.float32(x)


@numba.njit(cache=True, fastmath=True, nogil=True)
def _squared_difference(left: Array, right: Array) -> np.float32:
    total = np.float32(0.0)
    for t in range(left.shape[0]):
        difference = _value(left[t]) - _value(right[t])
        total += difference * difference
    return total


@numba.njit(cache=True, fastmath=True, nogil=True)
def _squared_sum_difference(left: Array, right: Array, more_left: Array, more_right: Array) -> np.float32:
    total = np.float32(0.0)
    for t in range(left.shape[0]):
        difference = _value(left[t]) - _value(right[t]) + (_value(more_left[t]) - _value(more_right[t]))
        total += difference * difference
    return total


@numba.njit(cache=True, nogil=True)
def _listed(
    first: Array, last: Array, two: bool, rows: Array, indptr: Array, columns: Array, found: Array
) -> None:
    for i in range(indptr.shape[0] - 1):
        row = rows[i]
        for edge in range(indptr[i], indptr[i + 1]):
            other = rows[columns[edge]]
            if two:
                squared = _squared_sum_difference(first[row], first[other], last[row], last[other])
            else:
                squared = _squared_difference(first[row], first[other])
            found[edge] = np.sqrt(squared)


@numba.njit(cache=True, nogil=True)
def _from_products(products: Array, left_squares: Array, right_squares: Array) -> Array:
    for i in range(products.shape[0]):
        for j in range(products.shape[1]):
            scale = left_squares[i] + right_squares[j]
            squared = scale - np.float32(2.0) * products[i, j]
            products[i, j] = np.float32(0.0) if squared < np.float32(4e-6) * scale else np.sqrt(squared)
    return products


@numba.njit(cache=True, nogil=True)
def _keep_nearest(found: Array, mixes: Array, first: int, position: Array, best: Array) -> None:
    """found (S, m, c) distances to c picks, the first of them at `first`; position, best (q, m) in place."""
    for q in range(mixes.shape[0]):
        for i in range(found.shape[1]):
            for j in range(found.shape[2]):
                distance = np.float32(0.0)
                for s in range(found.shape[0]):
                    distance += mixes[q, s] * found[s, i, j]
                if distance < best[q, i]:
                    best[q, i] = distance
                    position[q, i] = first + j

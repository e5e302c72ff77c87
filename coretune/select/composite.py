"""Dense composite distances as a similarity that the greedy engines take: c − Σ_s mix_s d^s(v, j).

c is no smaller than any composite distance, so similarities are >= 0. The spaces' own distances do not
depend on the mix: where they fit they are held once and mixed on the fly, else blocks are computed anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np

from coretune.select.dense import At, DenseSimilarity
from coretune.select.similarity import Similarity
from coretune.select.spaces import Space, distances, sweep
from coretune.types import Array, Rows


def bound(spaces: Sequence[Space], mix: Array) -> float:
    """c: at least every composite distance."""
    return float(sum(m * space.diameter for m, space in zip(mix, spaces, strict=True)))


def composite_blocks(spaces: Sequence[Space], mix: Array) -> DenseSimilarity:
    """Block by block from the features, at every evaluation."""
    most = np.float32(bound(spaces, mix))

    def block(rows: At, columns: At) -> Array:
        total: Array | None = None
        for m, space in zip(mix, spaces, strict=True):
            if m > 0.0:
                left, right = space.block(rows), space.block(columns)
                far = np.float32(m) * distances(left, space.squares[rows], right, space.squares[columns])
                total = far if total is None else total + far
        assert total is not None, "a mix of nothing"
        return most - total

    def at(rows: Rows) -> DenseSimilarity:
        return composite_blocks([space.at(rows) for space in spaces], mix)

    return DenseSimilarity(spaces[0].n, block, at, sum(space.d for space in spaces), 1e-6 * float(most))


@dataclass(frozen=True)
class Held:
    """Every space's distances, held.

    far   (S, n, n)  float32, or uint16 in units of `unit`
    unit  (S,)       float64; 1 beside float32. 16 bits round by half a unit, 7.6e-6 of the diameter
    """

    far: Array
    unit: Array

    @property
    def n(self) -> int:
        return int(self.far.shape[1])

    def nearest(self, mixes: Array, chosen: Rows) -> tuple[Array, Array]:
        """(q, n) int64 position in `chosen` of the nearest pick under each mix, (q, n) float32 how far."""
        position = np.zeros((len(mixes), self.n), dtype=np.int64)
        best = np.full((len(mixes), self.n), np.inf, dtype=np.float32)
        for q, mix in enumerate(mixes):
            scale = _two(mix * self.unit)
            _nearest_held(self.far[0], self.far[-1], scale, chosen, position[q], best[q])
        position[:, chosen] = np.arange(len(chosen))
        best[:, chosen] = 0.0
        return position, best


def hold(spaces: Sequence[Space], dtype: type) -> Held:
    """All pairwise distances of the spaces, one symmetric pass; dtype np.float32 or np.uint16."""
    n = spaces[0].n
    far: Array = np.empty((len(spaces), n, n), dtype=dtype)
    unit = np.ones(len(spaces))
    for s, space in enumerate(spaces):
        if dtype is np.uint16:
            unit[s] = max(space.diameter, 1e-30) / np.iinfo(np.uint16).max
        for rows, columns, found in sweep(space):
            stored = np.rint(found / unit[s]).astype(dtype) if dtype is np.uint16 else found
            far[s, rows, columns] = stored
            far[s, columns, rows] = stored.T
        far[s][np.diag_indices(n)] = 0
    return Held(far, unit)


@dataclass(frozen=True)
class HeldComposite:
    """c − (mix_1 d^1 + mix_2 d^2) of held distances. One or two spaces.

    scale  (2,) float32  the mix times the units
    most   float32       c
    """

    held: Held
    scale: Array
    most: np.float32

    @property
    def n(self) -> int:
        return self.held.n

    @property
    def width(self) -> int:
        return 4

    @property
    def rounding(self) -> float:
        return 0.0  # the held numbers are the distances: the same at every evaluation

    def gains(self, best: Array, demand: Array, rows: Rows) -> Array:
        far = self.held.far
        return _held_gains(far[0], far[-1], self.scale, self.most, best, demand, rows)

    def cover(self, best: Array, demand: Array, row: int) -> float:
        far = self.held.far
        return _held_cover(far[0], far[-1], self.scale, self.most, best, demand, row)

    def nearest(self, chosen: Rows) -> Array:
        mix = (self.scale[: len(self.held.unit)] / self.held.unit)[None]
        return self.held.nearest(mix, chosen)[0][0]


def held_composite(held: Held, spaces: Sequence[Space], mix: Array) -> Similarity:
    """The composite similarity of held pairs of both spaces."""
    return HeldComposite(held, _two(mix * held.unit), np.float32(bound(spaces, mix)))


def _two(scale: Array) -> Array:
    """(2,) float32; the second is 0 where there is one space, whose matrix is then read twice."""
    return np.append(scale, 0.0)[:2].astype(np.float32)


@numba.njit(cache=True, nogil=True)
def _column(first: Array, second: Array, scale: Array, most: np.float32, row: int, column: Array) -> None:
    """Similarities to one candidate; a matrix is symmetric, so its row is its column, and contiguous."""
    left, right = scale[0], scale[1]
    for v in range(column.shape[0]):
        far = left * np.float32(first[row, v]) + right * np.float32(second[row, v])
        column[v] = max(np.float32(0.0), most - far)


@numba.njit(cache=True, nogil=True, fastmath={"reassoc"})  # so that the sum is taken in several lanes
def _improvement(column: Array, best: Array, demand: Array) -> float:
    total = 0.0
    for v in range(column.shape[0]):
        total += demand[v] * np.float64(max(np.float32(0.0), column[v] - best[v]))
    return total


@numba.njit(cache=True, nogil=True)
def _held_gains(
    first: Array, second: Array, scale: Array, most: np.float32, best: Array, demand: Array, rows: Array
) -> Array:
    column = np.empty(best.shape[0], dtype=np.float32)
    gains = np.empty(rows.shape[0], dtype=np.float64)
    for position in range(rows.shape[0]):
        _column(first, second, scale, most, rows[position], column)
        gains[position] = _improvement(column, best, demand)
    return gains


@numba.njit(cache=True, nogil=True)
def _held_cover(
    first: Array, second: Array, scale: Array, most: np.float32, best: Array, demand: Array, row: int
) -> float:
    column = np.empty(best.shape[0], dtype=np.float32)
    _column(first, second, scale, most, row, column)
    gain = _improvement(column, best, demand)
    for v in range(best.shape[0]):
        best[v] = max(best[v], column[v])
    return gain


@numba.njit(cache=True, nogil=True)
def _nearest_held(
    first: Array, second: Array, scale: Array, chosen: Array, position: Array, best: Array
) -> None:
    left, right = scale[0], scale[1]
    for pick in range(chosen.shape[0]):
        row = chosen[pick]
        for v in range(best.shape[0]):
            far = left * np.float32(first[row, v]) + right * np.float32(second[row, v])
            if far < best[v]:
                best[v] = far
                position[v] = pick

"""Similarities between all pairs of rows, recomputed block by block from features: exact, nothing N x N held.

Blocks are spread over numba's threads (NUMBA_NUM_THREADS); what they find is added in the order of the
blocks, so the answer does not depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numba
import numpy as np

from coretune.progress_reports import Reporter, reporter
from coretune.types import Array, Rows

#: Pool rows and candidates of one block: 16 MiB of float32, large enough for BLAS to run at speed.
DENSE_ROWS = 4096
DENSE_COLUMNS = 1024
#: Candidates whose gains from every block are held at once.
TOGETHER = 16 * DENSE_COLUMNS
#: Rows of one block where all similarities are held: so few that its memory is used again for the next one.
HELD_ROWS = 256

Given = TypeVar("Given")
Found = TypeVar("Found")
At = slice | Rows
#: (rows, candidates) -> (b, m) float32 inner products of their features
Products = Callable[[At, At], Array]
#: Those of features (n, d); a GPU has its own (`torch_greedy.py`).
MakeProducts = Callable[[Array], Products]


@dataclass(frozen=True)
class DenseSimilarity:
    """A `Similarity` of all pairs.

    n         pool rows
    block     (rows, candidates), each a slice or positions -> (b, m) float32 similarities, the same with the
              two exchanged; a negative one counts as 0
    at        (m,) rows -> the same between these rows alone, with a copy of their features and no others
    dimensions  multiplications and additions of one pair
    rounding  what BLAS, which sums in another order at another place of a block, makes of equal rows
              (6.6e-7 between unit rows was the most seen, up to d = 8192)
    held      (n, n) float32 all similarities, where they fit in memory (`hold`): gains are read off it
    """

    n: int
    block: Callable[[At, At], Array]
    at: Callable[[Rows], DenseSimilarity]
    dimensions: int
    rounding: float
    held: Array | None = None

    @property
    def width(self) -> int:
        return 32

    def gains(self, best: Array, demand: Array, rows: Rows) -> Array:
        if self.held is not None:
            return _held_gains(self.held, best, demand, rows, np.float32(self.rounding))

        def of(part: slice, columns: Rows) -> Array:
            return _gains(self.block(part, columns), best[part], demand[part], self.rounding)

        return _summed(of, slices(self.n), rows)

    def lost(self, before: Array, best: Array, demand: Array, rows: Rows) -> Array:
        """(m,) float64 by how much gains have fallen since coverage was `before` (n,) float32.

        Only rows that are covered better by now are read.
        """
        changed = np.flatnonzero((best > before) & (demand > 0.0))
        parts = [changed[part] for part in slices(len(changed))]

        def of(part: Rows, columns: Rows) -> Array:
            similarity = self.block(part, columns)
            return _lost(similarity, before[part], best[part], demand[part], self.rounding)

        return _summed(of, parts, rows)

    def cover(self, best: Array, demand: Array, row: int) -> float:
        def of(part: slice) -> float:
            column = self.block(part, np.array([row]))[:, 0]
            return float(_cover(column, best[part], demand[part], self.rounding))

        return sum(spread(of, slices(self.n)))

    def nearest(self, chosen: Rows) -> Array:
        nearest = np.full(self.n, -1, dtype=np.int64)
        best = np.zeros(self.n, dtype=np.float32)

        def of(part: slice) -> None:
            for first in range(0, len(chosen), DENSE_COLUMNS):
                similarity = self.block(part, chosen[first : first + DENSE_COLUMNS])
                position = similarity.argmax(axis=1)
                top = similarity[np.arange(len(position)), position]
                better = top > best[part]
                nearest[part][better] = first + position[better]
                best[part][better] = top[better]

        list(spread(of, slices(self.n)))
        nearest[chosen] = np.arange(len(chosen))
        return nearest


def products_here(features: Array) -> Products:
    """By BLAS, from features of any float dtype, memory-mapped or not."""

    def inner(rows: At, columns: At) -> Array:
        left = np.asarray(features[rows], dtype=np.float32)
        return left @ np.asarray(features[columns], dtype=np.float32).T

    return inner


def cosine_similarity(features: Array, products: MakeProducts = products_here) -> DenseSimilarity:
    """max(0, ⟨z_v, z_j⟩) of unit features (n, d), of any float dtype, memory-mapped or not."""

    def at(rows: Rows) -> DenseSimilarity:
        return cosine_similarity(np.asarray(features[rows]), products)

    return DenseSimilarity(len(features), products(features), at, features.shape[1], rounding=1e-6)


def distance_similarity(
    features: Array, usable: Array, least_bound: float = 0.0, products: MakeProducts = products_here
) -> DenseSimilarity:
    """c − ‖g_v − g_j‖ of features (n, p), with c = 2 max ‖g‖ over the usable rows, (n,) bool.

    least_bound   c is no smaller: that of the pool, of which these rows are a part

    c is no smaller than any distance between usable rows, so the similarity of two of them is >= 0.
    The distance is sqrt(‖g_v‖² + ‖g_j‖² − 2⟨g_v, g_j⟩) in float32, which below about 2e-3 ‖g‖ is rounding
    only and is taken as 0: a copy is at distance 0.
    """
    norm = np.empty(len(features), dtype=np.float32)
    for part in slices(len(features)):
        norm[part] = np.linalg.norm(np.asarray(features[part], dtype=np.float32), axis=1)
    bound = np.float32(max(least_bound, 2.0 * norm[usable].max(initial=0.0)))

    inner = products(features)

    def block(rows: At, columns: At) -> Array:
        return _minus_distance(inner(rows, columns), norm[rows], norm[columns], bound)

    def at(rows: Rows) -> DenseSimilarity:
        return distance_similarity(np.asarray(features[rows]), usable[rows], float(bound), products)

    return DenseSimilarity(len(features), block, at, features.shape[1], rounding=1e-6 * float(bound))


def hold(source: DenseSimilarity) -> DenseSimilarity:
    """The same with all similarities held: 4 n² bytes, and half a pass to fill them."""
    n = source.n
    held = np.empty((n, n), dtype=np.float32)

    def fill(part: slice) -> None:
        block = source.block(part, slice(part.start, n))
        held[part, part.start :] = block
        held[part.stop :, part] = block[:, part.stop - part.start :].T

    def block(rows: At, columns: At) -> Array:
        return held[rows][:, columns]

    list(spread(fill, slices(n, HELD_ROWS)))
    return replace(source, block=block, held=held)


def slices(n: int, size: int = DENSE_ROWS) -> list[slice]:
    """The rows 0 … n − 1 in blocks."""
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def spread(call: Callable[[Given], Found], given: Sequence[Given]) -> Iterator[Found]:
    """What the call makes of each, in their order, by as many threads as numba has."""
    threads = min(numba.get_num_threads(), len(given))
    if threads < 2:
        yield from map(call, given)
        return
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(call, given)


def _summed(of: Callable[[Given, Rows], Array], parts: Sequence[Given], rows: Rows) -> Array:
    """(m,) float64 Σ over the parts of what `of` finds of each candidate. Reports its progress."""
    total = np.zeros(len(rows))
    steps = len(parts) * -(-len(rows) // TOGETHER)
    tell = Reporter(reporter("all pairs") if len(rows) >= TOGETHER else None, steps)
    for first in range(0, len(rows), TOGETHER):
        columns = rows[first : first + TOGETHER]

        def one(part: Given, columns: Rows = columns) -> Array:
            blocks: Iterable[Rows] = np.split(columns, range(DENSE_COLUMNS, len(columns), DENSE_COLUMNS))
            return np.concatenate([of(part, block) for block in blocks])

        for found in spread(one, parts):
            total[first : first + TOGETHER] += found
            tell()
    return total


@numba.njit(cache=True, nogil=True)
def _gains(similarity: Array, best: Array, demand: Array, rounding: float) -> Array:
    least, gains = np.float32(rounding), np.zeros(similarity.shape[1])
    for v in range(similarity.shape[0]):
        for j in range(similarity.shape[1]):
            improvement = similarity[v, j] - best[v]  # of an unusable row NaN, which is not > least
            gains[j] += demand[v] * (improvement if improvement > least else np.float32(0.0))
    return gains


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _held_gains(held: Array, best: Array, demand: Array, rows: Rows, least: np.float32) -> Array:
    gains = np.empty(rows.shape[0])
    for position in range(rows.shape[0]):
        similarity = held[rows[position]]
        total = 0.0
        for v in range(similarity.shape[0]):
            improvement = similarity[v] - best[v]  # of an unusable row NaN, which is not > least
            total += demand[v] * (improvement if improvement > least else np.float32(0.0))
        gains[position] = total
    return gains


@numba.njit(cache=True, nogil=True)
def _lost(similarity: Array, before: Array, best: Array, demand: Array, rounding: float) -> Array:
    least, lost = np.float32(rounding), np.zeros(similarity.shape[1])
    for v in range(similarity.shape[0]):
        for j in range(similarity.shape[1]):
            then, now = similarity[v, j] - before[v], similarity[v, j] - best[v]
            then = then if then > least else np.float32(0.0)
            lost[j] += demand[v] * (then - (now if now > least else np.float32(0.0)))
    return lost


@numba.njit(cache=True, nogil=True)
def _cover(similarity: Array, best: Array, demand: Array, rounding: float) -> float:
    least = np.float32(rounding)
    gain = 0.0
    for v in range(similarity.shape[0]):
        improvement = similarity[v] - best[v]
        if improvement > least:  # False for an unusable row's NaN
            gain += demand[v] * improvement
            best[v] = similarity[v]
    return gain


@numba.njit(cache=True, nogil=True)
def _minus_distance(inner: Array, row_norm: Array, column_norm: Array, bound: np.float32) -> Array:
    for v in range(inner.shape[0]):
        for j in range(inner.shape[1]):
            scale = row_norm[v] * row_norm[v] + column_norm[j] * column_norm[j]
            squared = scale - np.float32(2.0) * inner[v, j]
            distance = np.float32(0.0) if squared < np.float32(4e-6) * scale else np.sqrt(squared)
            inner[v, j] = bound - distance
    return inner

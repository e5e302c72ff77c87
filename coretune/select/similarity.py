"""Where similarities come from: a sparse graph, or dense blocks recomputed from features.

The engines ask a source for the few things of `Similarity`, so another one (a GPU, a composite distance)
needs no change there. Similarities are >= 0, and every row covers itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numba
import numpy as np

from coretune.select.ranking import usable_feature
from coretune.types import Array, Pool, Rows

#: Pool rows and candidates of one dense block: 4 MiB of float32, large enough for BLAS to run at speed.
DENSE_ROWS = 4096
DENSE_COLUMNS = 256


class Similarity(Protocol):
    """sim(v, j) >= 0 for pool rows v and candidates j."""

    @property
    def n(self) -> int:
        """Pool rows."""
        ...

    @property
    def width(self) -> int:
        """How many candidates cost little more than one when they are asked for together."""
        ...

    @property
    def rounding(self) -> float:
        """How far two copies' similarities may be apart; a gain below it is none. 0 = exact."""
        ...

    def gains(self, best: Array, demand: Array, rows: Rows) -> Array:
        """(m,) float64 Σ_v demand_v · max(0, sim(v, j) − best_v) for the m candidates j in `rows`.

        best    (n,) float32  how well each row is covered already
        demand  (n,) float64  >= 0; a row of demand 0 does not count, its features may be NaN
        """
        ...

    def cover(self, best: Array, demand: Array, row: int) -> float:
        """In place: best_v <- max(best_v, sim(v, row)); returns the gain, as `gains` would have told it."""
        ...

    def nearest(self, chosen: Rows) -> Array:
        """(n,) int64 position in `chosen` of each row's most similar pick; -1 where all are 0.

        The first of equals, but a pick is its own nearest even where a copy of it was picked earlier.
        """
        ...


@dataclass(frozen=True)
class GraphSimilarity:
    """Cosines along the edges of a symmetric graph; 1 to itself, 0 to whatever is not a neighbour.

    indptr      (n+1,) int64
    indices     (e,)   int32    no row lists itself
    similarity  (e,)   float32  in [0, 1]
    """

    indptr: Array
    indices: Array
    similarity: Array

    @property
    def n(self) -> int:
        return int(self.indptr.shape[0]) - 1

    @property
    def width(self) -> int:
        return 4

    @property
    def rounding(self) -> float:
        return 0.0

    def gains(self, best: Array, demand: Array, rows: Rows) -> Array:
        return _graph_gains(self.indptr, self.indices, self.similarity, best, demand, rows)

    def cover(self, best: Array, demand: Array, row: int) -> float:
        return _graph_cover(self.indptr, self.indices, self.similarity, best, demand, row)

    def nearest(self, chosen: Rows) -> Array:
        return _graph_nearest(self.indptr, self.indices, self.similarity, chosen)


@dataclass(frozen=True)
class DenseSimilarity:
    """Exact similarities, recomputed block by block from features; nothing of size n x n is ever held.

    n         pool rows
    block     (part of the pool, candidates) -> (b, m) float32 similarities; a negative one counts as 0
    at        (m,) rows -> the same between these rows alone, with a copy of their features and no others
    rounding  what BLAS, which sums in another order at another place of a block, makes of equal rows
              (6.6e-7 between unit rows was the most seen, up to d = 8192)
    """

    n: int
    block: Callable[[slice, Rows], Array]
    at: Callable[[Rows], DenseSimilarity]
    rounding: float

    @property
    def width(self) -> int:
        return 32

    def gains(self, best: Array, demand: Array, rows: Rows) -> Array:
        gains = np.zeros(len(rows), dtype=np.float64)
        for first in range(0, len(rows), DENSE_COLUMNS):
            columns = slice(first, first + DENSE_COLUMNS)
            for part in _parts(self.n):
                similarity = self.block(part, rows[columns])
                _add_gains(similarity, best[part], demand[part], self.rounding, gains[columns])
        return gains

    def cover(self, best: Array, demand: Array, row: int) -> float:
        gain = 0.0
        for part in _parts(self.n):
            column = self.block(part, np.array([row]))[:, 0]
            gain += _cover(column, best[part], demand[part], self.rounding)
        return gain

    def nearest(self, chosen: Rows) -> Array:
        nearest = np.full(self.n, -1, dtype=np.int64)
        best = np.zeros(self.n, dtype=np.float32)
        for first in range(0, len(chosen), DENSE_COLUMNS):
            for part in _parts(self.n):
                similarity = self.block(part, chosen[first : first + DENSE_COLUMNS])
                position = similarity.argmax(axis=1)
                top = similarity[np.arange(len(position)), position]
                better = top > best[part]
                nearest[part][better] = first + position[better]
                best[part][better] = top[better]
        nearest[chosen] = np.arange(len(chosen))
        return nearest


def pool_similarity(pool: Pool, kind: str, embedding: str) -> Similarity:
    """Cosines of the pool: "graph" along its k-NN graph, "dense" between all rows of the named embedding."""
    if kind == "graph":
        return graph_similarity(pool)
    if kind == "dense":
        return cosine_similarity(usable_feature(pool, embedding))
    raise ValueError(f"no similarity is named {kind!r}; there are graph, dense")


def graph_similarity(pool: Pool) -> GraphSimilarity:
    """The pool's k-NN graph, symmetrised by union."""
    if pool.graph is None:
        raise ValueError("this selection reads the k-NN graph, but the pool has none: build the graph first")
    from coretune.graph import symmetric_csr  # here: it imports FAISS, which no other selection needs

    return GraphSimilarity(*symmetric_csr(pool.graph))


def cosine_similarity(features: Array) -> DenseSimilarity:
    """max(0, ⟨z_v, z_j⟩) of unit features (n, d), of any float dtype, memory-mapped or not."""

    def block(part: slice, rows: Rows) -> Array:
        return np.asarray(features[part], dtype=np.float32) @ np.asarray(features[rows], dtype=np.float32).T

    def at(rows: Rows) -> DenseSimilarity:
        return cosine_similarity(np.asarray(features[rows]))

    return DenseSimilarity(n=len(features), block=block, at=at, rounding=1e-6)


def distance_similarity(features: Array, usable: Array, least_bound: float = 0.0) -> DenseSimilarity:
    """c − ‖g_v − g_j‖ of features (n, p), with c = 2 max ‖g‖ over the usable rows, (n,) bool.

    least_bound   c is no smaller: that of the pool, of which these rows are a part

    c is no smaller than any distance between usable rows, so the similarity of two of them is >= 0.
    The distance is sqrt(‖g_v‖² + ‖g_j‖² − 2⟨g_v, g_j⟩) in float32, which below about 2e-3 ‖g‖ is rounding
    only and is taken as 0: a copy is at distance 0.
    """
    norm = np.empty(len(features), dtype=np.float32)
    for part in _parts(len(features)):
        norm[part] = np.linalg.norm(np.asarray(features[part], dtype=np.float32), axis=1)
    bound = np.float32(max(least_bound, 2.0 * norm[usable].max(initial=0.0)))

    def block(part: slice, rows: Rows) -> Array:
        inner = np.asarray(features[part], dtype=np.float32) @ np.asarray(features[rows], dtype=np.float32).T
        return _minus_distance(inner, norm[part], norm[rows], bound)

    def at(rows: Rows) -> DenseSimilarity:
        return distance_similarity(np.asarray(features[rows]), usable[rows], float(bound))

    return DenseSimilarity(n=len(features), block=block, at=at, rounding=1e-6 * float(bound))


def _parts(n: int) -> list[slice]:
    return [slice(start, min(start + DENSE_ROWS, n)) for start in range(0, n, DENSE_ROWS)]


@numba.njit(cache=True)
def _add_gains(similarity: Array, best: Array, demand: Array, rounding: float, gains: Array) -> None:
    least = np.float32(rounding)
    for v in range(similarity.shape[0]):
        for j in range(similarity.shape[1]):
            improvement = similarity[v, j] - best[v]  # of an unusable row NaN, which is not > least
            gains[j] += demand[v] * (improvement if improvement > least else np.float32(0.0))


@numba.njit(cache=True)
def _cover(similarity: Array, best: Array, demand: Array, rounding: float) -> float:
    least = np.float32(rounding)
    gain = 0.0
    for v in range(similarity.shape[0]):
        improvement = similarity[v] - best[v]
        if improvement > least:  # False for an unusable row's NaN
            gain += demand[v] * improvement
            best[v] = similarity[v]
    return gain


@numba.njit(cache=True)
def _minus_distance(inner: Array, row_norm: Array, column_norm: Array, bound: np.float32) -> Array:
    for v in range(inner.shape[0]):
        for j in range(inner.shape[1]):
            scale = row_norm[v] * row_norm[v] + column_norm[j] * column_norm[j]
            squared = scale - np.float32(2.0) * inner[v, j]
            distance = np.float32(0.0) if squared < np.float32(4e-6) * scale else np.sqrt(squared)
            inner[v, j] = bound - distance
    return inner


@numba.njit(cache=True)
def _graph_gains(
    indptr: Array, indices: Array, similarity: Array, best: Array, demand: Array, rows: Rows
) -> Array:
    gains = np.empty(rows.shape[0], dtype=np.float64)
    for position in range(rows.shape[0]):
        j = rows[position]
        total = demand[j] * max(np.float32(0.0), np.float32(1.0) - best[j])
        for edge in range(indptr[j], indptr[j + 1]):
            v = indices[edge]
            total += demand[v] * max(np.float32(0.0), similarity[edge] - best[v])
        gains[position] = total
    return gains


@numba.njit(cache=True)
def _graph_cover(
    indptr: Array, indices: Array, similarity: Array, best: Array, demand: Array, row: int
) -> float:
    total = demand[row] * max(np.float32(0.0), np.float32(1.0) - best[row])
    best[row] = max(best[row], np.float32(1.0))
    for edge in range(indptr[row], indptr[row + 1]):
        v = indices[edge]
        total += demand[v] * max(np.float32(0.0), similarity[edge] - best[v])
        best[v] = max(best[v], similarity[edge])
    return total


@numba.njit(cache=True)
def _graph_nearest(indptr: Array, indices: Array, similarity: Array, chosen: Rows) -> Array:
    n = indptr.shape[0] - 1
    best = np.zeros(n, dtype=np.float32)
    nearest = np.full(n, -1, dtype=np.int64)
    for position in range(chosen.shape[0]):
        for edge in range(indptr[chosen[position]], indptr[chosen[position] + 1]):
            v = indices[edge]
            if similarity[edge] > best[v]:
                best[v] = similarity[edge]
                nearest[v] = position
    for position in range(chosen.shape[0]):
        nearest[chosen[position]] = position
    return nearest

"""Where similarities come from: a sparse graph here, all pairs of features in `dense.py`.

The engines ask a source for the few things of `Similarity`, so another one (a GPU, a composite distance)
needs no change there. Similarities are >= 0, and every row covers itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numba
import numpy as np

from coretune.select.dense import MakeProducts, cosine_similarity, products_here
from coretune.select.ranking import usable_feature
from coretune.types import Array, Pool, Rows


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
        """In place: best_v <- max(best_v, sim(v, row)); returns the gain, as `gains` would have it."""
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


def pool_similarity(
    pool: Pool, kind: str, embedding: str, products: MakeProducts = products_here
) -> Similarity:
    """Cosines of the pool: "graph" along its k-NN graph, "dense" between all rows of the named embedding."""
    if kind == "graph":
        return graph_similarity(pool)
    if kind == "dense":
        return cosine_similarity(usable_feature(pool, embedding), products)
    raise ValueError(f"no similarity is named {kind!r}; there are graph, dense")


def graph_similarity(pool: Pool) -> GraphSimilarity:
    """The pool's k-NN graph, symmetrised by union."""
    if pool.graph is None:
        raise ValueError("this selection reads the k-NN graph, but the pool has none: build the graph first")
    from coretune.neighbors.graph import (
        symmetric_csr,  # here: it imports FAISS, which no other selection needs
    )

    return GraphSimilarity(*symmetric_csr(pool.graph))


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

"""Which chosen row represents each row of the pool: by the method, by the graph, or by its signal."""

from __future__ import annotations

import numpy as np

from coretune.neighbors.graph import symmetric_csr
from coretune.types import Array, Coreset, NeighborGraph, Pool, Rows

#: Component of methods that say themselves which row represents a row; -1 = none.
REPRESENTED_BY = "represented_by"
PRODUCTS = 2e11  # of numbers, that a search among all chosen rows may take: about ten seconds
BLOCK = 2**24  # cosines held at once


def represented(pool: Pool, coreset: Coreset) -> tuple[Array, Array]:
    """(n,) int32 the chosen row that represents each row, -1 = none; (n,) float32 the cosine with it, else 0.

    What the method says, and then no cosine (NaN), for it goes by distances of its own; else the nearest
    chosen row in the graph; without a graph the nearest by the pool's first vector signal, as long as that
    takes at most PRODUCTS [choice]. A chosen row represents itself, at 1.
    """
    chosen = coreset.indices
    if REPRESENTED_BY in coreset.reasons:
        nearest = coreset.reasons[REPRESENTED_BY].astype(np.int32)
        closeness = np.where(nearest < 0, np.float32(0), np.float32(np.nan))
    elif pool.graph is None and len(chosen) and (vectors := _vectors(pool, len(chosen))) is not None:
        nearest, closeness = nearest_of(vectors, chosen, pool.usable)
    else:
        return representatives(pool.graph, chosen, pool.n)
    nearest[chosen], closeness[chosen] = chosen, 1.0
    return nearest, closeness


def nearest_of(vectors: Array, chosen: Rows, usable: Array) -> tuple[Array, Array]:
    """The chosen row of largest cosine: (n,) int32, (n,) float32; -1, 0 for unusable rows and zero vectors.

    vectors (n, d), may be memory-mapped. Of equals the row chosen first.
    """
    n = len(vectors)
    nearest, closeness = np.full(n, -1, np.int32), np.zeros(n, np.float32)
    picked = _unit(vectors[chosen])
    step = max(1, BLOCK // len(chosen))
    for start in range(0, n, step):
        rows = start + np.flatnonzero(usable[start : start + step])
        own = _unit(vectors[rows])
        cosine = own @ picked.T  # (b, K)
        best = cosine.argmax(axis=1)
        there = own.any(axis=1)
        nearest[rows[there]] = chosen[best[there]]
        closeness[rows[there]] = cosine[np.arange(len(rows)), best][there]
    return nearest, closeness


def _vectors(pool: Pool, size: int) -> Array | None:
    """The signal to compare by: the first by name that is a vector; None where it would take too long."""
    names = sorted(name for name, value in pool.features.items() if value.ndim == 2)
    if not names:
        return None
    vectors = pool.features[names[0]]
    return vectors if float(vectors.size) * size <= PRODUCTS else None


def _unit(rows: Array) -> Array:
    values = np.asarray(rows, np.float32)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-20)


def representatives(graph: NeighborGraph | None, chosen: Rows, n: int) -> tuple[Array, Array]:
    """(n,) int32 the nearest chosen row, -1 where there is none; (n,) float32 the cosine with it, 0 there.

    A chosen row represents itself, at 1. Others search among their neighbours in the graph, both ways
    [choice: all pairs would cost n·K products at every refresh, and a row farther than the neighbours says
    little]; of equals the lowest row. Without a graph only the chosen have one.
    """
    nearest: Array = np.full(n, -1, np.int32)
    closeness: Array = np.zeros(n, np.float32)
    if graph is not None and len(chosen):
        is_chosen = np.zeros(n, bool)
        is_chosen[chosen] = True
        starts, others, cosine = symmetric_csr(graph)
        owner = np.repeat(np.arange(n), np.diff(starts))
        there = is_chosen[others]
        owner, others, cosine = owner[there], others[there], cosine[there]
        order = np.lexsort((others, -cosine, owner))  # of each owner the nearest first
        owner, first = np.unique(owner[order], return_index=True)
        nearest[owner], closeness[owner] = others[order][first], cosine[order][first]
    nearest[chosen], closeness[chosen] = chosen, 1.0
    return nearest, closeness

"""Which chosen row stands for each row of the pool, read off the k-NN graph."""

from __future__ import annotations

import numpy as np

from coretune.graph import symmetric_csr
from coretune.types import Array, NeighborGraph, Rows


def representatives(graph: NeighborGraph | None, chosen: Rows, n: int) -> tuple[Array, Array]:
    """(n,) int32 the nearest chosen row, -1 where there is none; (n,) float32 the cosine with it, 0 there.

    A chosen row stands for itself, at 1. Others look among their neighbours in the graph, in both directions
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

"""Ours: the anchors' changes spread along the graph to the rows beside them, in place of Eq. 21 (`paper.py`).

z_i ← z_i + Σ_{j ∈ anchors} α_ij (z_j − z_j before)     [choice]
"""

from __future__ import annotations

import numpy as np
from numba import njit

from coretune.neighbors.graph import Csr
from coretune.policies.paper import SHORT
from coretune.types import Array, Rows


def rows_beside(edges: Csr, anchors: Rows, usable: Array) -> Rows:
    """Usable rows, no anchors themselves, with at least one anchor among their neighbours; rising."""
    return np.flatnonzero(_beside(*edges[:2], anchors) & usable)


def spread(
    values: Array, edges: Csr, usable: Array, rows: Rows, anchors: Rows, change: Array, unit: bool
) -> None:
    """`rows` after the anchors' changes have spread, in place; no row of `rows` is an anchor.

    [choice] Averaging values smooths extremes away round after round; spreading changes does not.

    values  (n,) or (n, d) float32      change  (a,) or (a, d) of the anchors
    unit    rows get back their length 1; one that came to nothing stays where it was
    """
    place = np.full(len(values), -1, np.int32)
    place[anchors] = np.arange(len(anchors), dtype=np.int32)
    n, a = len(values), len(anchors)
    _spread(values.reshape(n, -1), *edges, usable, rows, place, change.reshape(a, -1), unit)


@njit(cache=True, nogil=True)
def _beside(indptr: Array, indices: Array, anchors: Rows) -> Array:
    beside = np.zeros(len(indptr) - 1, np.bool_)
    for i in anchors:
        for e in range(indptr[i], indptr[i + 1]):
            beside[indices[e]] = True
    for i in anchors:
        beside[i] = False
    return beside


@njit(cache=True, nogil=True)
def _spread(
    values: Array,
    indptr: Array,
    indices: Array,
    similarity: Array,
    usable: Array,
    rows: Rows,
    place: Array,
    change: Array,
    unit: bool,
) -> None:
    width = values.shape[1]
    moved = np.empty(width, np.float32)
    for i in rows:
        total = np.float32(0)
        for e in range(indptr[i], indptr[i + 1]):
            if usable[indices[e]]:
                total += similarity[e]
        moved[:] = values[i]
        for e in range(indptr[i], indptr[i + 1]):
            at = place[indices[e]]
            if at >= 0 and usable[indices[e]]:
                alpha = similarity[e] / total
                for c in range(width):
                    moved[c] += alpha * change[at, c]
        scale = np.float32(1)
        if unit:
            square = np.float32(0)
            for c in range(width):
                square += moved[c] * moved[c]
            length = np.sqrt(square)
            if length <= SHORT:
                continue
            scale = np.float32(1) / length
        for c in range(width):
            values[i, c] = moved[c] * scale

"""How what a few rows told spreads along the graph to the rows beside them: work only where it arrives.

α_ij = max(cos_ij, 0) / Σ_j max(cos_ij, 0)   over the usable neighbours j of i

average  z_i ← ½ z_i + ½ Σ_j α_ij z_j                      [paper, Eq. 21]
spread   z_i ← z_i + Σ_{j ∈ anchors} α_ij (z_j − z_j before)     [choice]
"""

from __future__ import annotations

import numpy as np
from numba import njit
from scipy import sparse

from coretune.types import Array, Rows

Csr = tuple[Array, Array, Array]  # indptr (n+1,) int64, indices (e,) int32, similarity (e,) float32 > 0

UNIT = "_embedding"  # features whose names end so have rows of length 1
SHORT = np.float32(1e-6)  # a vector of at most this length has no direction


def rows_beside(edges: Csr, anchors: Rows, usable: Array) -> Rows:
    """Usable rows, no anchors themselves, with at least one anchor among their neighbours; rising."""
    return np.flatnonzero(_beside(*edges[:2], anchors) & usable)


def propagation_weights(edges: Csr, rows: Rows, usable: Array) -> sparse.csr_matrix:
    """(m, n) float32 α of `rows`: α_ij = max(cos_ij, 0) / Σ_j max(cos_ij, 0) over usable neighbours j.

    A row without such a neighbour is empty. Work is proportional to the edges of `rows`.
    """
    indptr, indices, similarity = edges
    n = len(indptr) - 1
    weight = sparse.csr_matrix((similarity, indices, indptr), shape=(n, n))[rows]
    weight.data = np.where(usable[weight.indices], weight.data, np.float32(0))
    weight.eliminate_zeros()
    total = np.asarray(weight.sum(axis=1)).ravel()
    weight.data /= np.repeat(total, np.diff(weight.indptr))
    return weight


def eq21_step(values: Array, weights: sparse.csr_matrix, rows: Rows) -> Array:
    """One synchronous step of `rows`: the z that minimises E(z) = ½(z − z_old)² + ½ Σ_j w_j (z − z_j)².

    z ← (z_old + Σ_j w_j z_j) / (1 + Σ_j w_j). [paper, Eq. 21] states z ← ½ z_old + ½ Σ_j α_ij z_j, which is
    this minimiser when Σ_j w_j = 1; [choice] so we take w := α. A row without neighbours stays where it is.

    values  (n,) or (n, d)  before the step      weights  (m, n) sparse, row r holds the w of rows[r]
    returns (m,) or (m, d)  after it
    """
    total = np.asarray(weights.sum(axis=1)).ravel().astype(np.float32)
    moved = weights @ values
    moved += values[rows]
    moved /= (1 + total).reshape(-1, *[1] * (values.ndim - 1))
    return moved


def average(values: Array, edges: Csr, usable: Array, rows: Rows, unit: bool) -> None:
    """`eq21_step` of `rows` with w = α, in place. unit: rows get back their length 1."""
    moved = eq21_step(values, propagation_weights(edges, rows, usable), rows)
    if unit:
        length = np.sqrt(np.einsum("ij,ij->i", moved, moved))
        moved[length <= SHORT] = values[rows[length <= SHORT]]  # one that came to nothing stays where it was
        moved /= np.where(length > SHORT, length, np.float32(1))[:, None]
    values[rows] = moved


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

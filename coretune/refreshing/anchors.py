"""Which rows to look at again: of old news, or at odds with their neighbours, and telling of most others."""

from __future__ import annotations

import heapq

import numpy as np
from numba import njit
from scipy import sparse

from coretune.refreshing.propagation import Csr
from coretune.select.importance import scaled
from coretune.types import Array, Rows

SAME_PLACE = 0.9999  # cosine of rows that are not told apart
SAME_SCORE = 1e-3  # nor by scores as near as that, in parts of the larger


def priority(score: Array, staleness: Array, alpha: sparse.csr_matrix, usable: Array, beta: float) -> Array:
    """(n,) float64 in [0, 1]: p_i = β·staleness_i + (1−β)·|g_i − Σ_j α_ij g_j| [paper]; 0 for unusable rows.

    Both parts are brought to [0, 1] [choice]: staleness, in rounds since the last exact look, by its maximum;
    the discrepancy by rank, since one outlier would press all the others towards 0. A row without neighbours
    disagrees with nobody.
    """
    g = score.astype(np.float64)
    discrepancy = np.abs(g - alpha.astype(np.float64) @ g)
    discrepancy[np.diff(alpha.indptr) == 0] = 0
    stale = staleness / max(1, int(staleness[usable].max()))
    return np.where(usable, beta * stale + (1 - beta) * scaled(discrepancy, usable), 0)


def rows_alike(edges: Csr, score: Array, usable: Array) -> Array:
    """(n,) int64: usable neighbours that nothing known tells from a row, and itself.

    [choice] A look at one of equal rows tells of all of them (`twins.py`), so it is worth as much as theirs
    together; `pick_spread_anchors` then leaves the others last. Without it, since a pick damps its copies,
    anchors are rows without copies, of which a look tells least (LOG.md).
    """
    return _rows_alike(*edges, score.astype(np.float64), usable)


def pick_spread_anchors(priority: Array, edges: Csr, candidates: Rows, count: int) -> Rows:
    """`count` candidates, rising: greedily by priority, a pick's neighbours damped so that the picks spread.

    [choice] p_j ← p_j · (1 − cos_ij) for the neighbours j of a pick i: what i's fresh values leave unsaid of
    j. Copies of a pick come last. Of equals the lowest row is taken.
    """
    return np.sort(_greedy_spread(priority.astype(np.float64), *edges, candidates, count))


@njit(cache=True)
def _greedy_spread(
    priority: Array, indptr: Array, indices: Array, similarity: Array, candidates: Rows, count: int
) -> Rows:
    now = priority.copy()
    heap = [(-now[row], row) for row in candidates]
    heapq.heapify(heap)
    picked = np.empty(count, np.int64)
    size = 0
    while size < count:
        bound, row = heapq.heappop(heap)
        if -bound > now[row]:  # damped since it was pushed: back with what it is worth now
            heapq.heappush(heap, (-now[row], row))
            continue
        picked[size] = row
        size += 1
        for e in range(indptr[row], indptr[row + 1]):
            now[indices[e]] *= 1.0 - similarity[e]
    return picked


@njit(cache=True)
def _rows_alike(indptr: Array, indices: Array, similarity: Array, score: Array, usable: Array) -> Array:
    count = np.ones(len(indptr) - 1, np.int64)
    for i in range(len(count)):
        for e in range(indptr[i], indptr[i + 1]):
            j = indices[e]
            near = abs(score[i] - score[j]) <= SAME_SCORE * max(abs(score[i]), abs(score[j]))
            if usable[j] and near and similarity[e] >= SAME_PLACE:
                count[i] += 1
    return count

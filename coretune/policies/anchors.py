"""The policy of planned anchors: which rows to measure again is known before any is measured.

By `AnchorRefresh.anchors`: "priority" (as published, `paper.py`, or with what is [choice] below) or "all".
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

import numpy as np
from numba import njit

from coretune.neighbors.graph import Csr, symmetric_csr
from coretune.policies import paper
from coretune.rounds.measurement import NOBODY
from coretune.rounds.refresh_settings import AnchorRefresh
from coretune.types import Array, Pool, Rows

SAME_PLACE = 0.9999  # cosine of rows that are not distinguished
SAME_SCORE = 1e-3  # nor by scores as near as that, in parts of the larger


@dataclass(frozen=True)
class Planned:
    """A `RefreshPolicy` that measures its anchors, and all rows as long as none was measured."""

    refresh: AnchorRefresh
    round: int

    compares_anew = True

    def defers(self, pool: Pool) -> bool:
        return False

    def plan(self, pool: Pool) -> Rows:
        return planned(self.refresh, pool, self.round)

    def more(self, pool: Pool, turn: int) -> Rows:
        return NOBODY

    def as_selected(self, pool: Pool) -> Pool:
        return pool


def planned(refresh: AnchorRefresh, pool: Pool, round: int) -> Rows:
    """The rows to measure, rising: all as long as none ever was, then the anchors, usable rows only."""
    if pool.unmeasured:
        return np.arange(pool.n, dtype=np.int64)
    usable = np.flatnonzero(pool.usable).astype(np.int64)
    if refresh.anchors == "all":
        return usable
    edges, count = edges_of(pool), anchor_count(refresh, usable)
    alpha = paper.propagation_weights(edges, np.arange(pool.n), pool.usable)
    score = pool.feature(refresh.priority_score)
    worth = paper.priority(score, round - pool.measured_at, alpha, pool.usable, refresh.beta)
    if refresh.count_alike:
        worth *= rows_alike(edges, score, pool.usable)
    if refresh.spread_anchors:
        return pick_spread_anchors(worth, edges, usable, count)
    return paper.highest(worth, usable, count)


def some(refresh: AnchorRefresh, pool: Pool, rng: np.random.Generator) -> Rows:
    """`anchor_share` of the usable rows, drawn at random, rising."""
    usable = np.flatnonzero(pool.usable).astype(np.int64)
    return np.sort(rng.choice(usable, anchor_count(refresh, usable), replace=False))


def anchor_count(refresh: AnchorRefresh, usable: Rows) -> int:
    """Rows that a refresh measures: `anchor_share` of the usable ones, rounded up."""
    return min(len(usable), math.ceil(refresh.anchor_share * len(usable)))


def edges_of(pool: Pool) -> Csr:
    """The pool's graph in both directions; ValueError where it has none."""
    if pool.graph is None:
        raise ValueError("the pool has no graph to spread along: measure all its rows first")
    return symmetric_csr(pool.graph)


def rows_alike(edges: Csr, score: Array, usable: Array) -> Array:
    """(n,) int64: usable neighbours that nothing measured distinguishes from a row, and itself.

    [choice] A measurement of one of exact duplicates is of all of them (`exact_duplicates.py`): it is worth
    as much as theirs together; `pick_spread_anchors` then leaves the others last. Without it, since a pick
    damps its copies, anchors are rows without copies, whose measurement says least (docs/results.md).
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

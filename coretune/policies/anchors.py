"""The policy of planned anchors: which rows to measure again is known before any is measured.

By `AnchorRefresh.anchors`: "priority" (`paper.py`) or "all".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from coretune.neighbors.graph import Csr, symmetric_csr
from coretune.policies import paper
from coretune.rounds.measurement import NO_ROWS
from coretune.rounds.refresh_settings import AnchorRefresh
from coretune.types import Pool, Rows


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
        return NO_ROWS

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

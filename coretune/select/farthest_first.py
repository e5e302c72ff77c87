"""Farthest-first traversal: each pick is the row that the picks so far cover worst."""

from __future__ import annotations

import numpy as np

from coretune.progress_reports import Reporter, reporter
from coretune.select.objective import Picks
from coretune.select.quota import BudgetTracker
from coretune.select.similarity import Similarity
from coretune.types import Array, Budget, Rows


def farthest_first(
    similarity: Similarity, budget: Budget, cost: Array, candidates: Array, first: int
) -> Picks:
    """k-center greedy from the row `first`: the next pick is argmin over candidates of max_{j∈S} sim(v, j).

    With sim = c − distance for a metric distance, the largest distance to the nearest of K picks is at most
    twice the best possible (Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985). None
    is proven for tokens, where the farthest row that still fits is taken [choice].
    The gain of a pick is how much better it covers itself: its distance to the picks before it. Rows as close
    as rounding are equals, of which the lowest is taken. K passes over the pool.

    cost (n,) int64 · candidates (n,) bool. Raises ValueError when the candidates cannot fill a row budget.
    """
    price = np.ones_like(cost) if budget.unit == "rows" else cost
    if budget.unit == "rows" and budget.amount > candidates.sum():
        raise ValueError(
            f"a budget of {budget.amount} rows, but only {candidates.sum()} candidates; ask for fewer"
        )
    if price[first] > budget.amount:
        raise ValueError(f"row {first} costs {price[first]} tokens, more than the budget of {budget.amount}")
    best = np.zeros(similarity.n, dtype=np.float32)
    no_demand = np.zeros(similarity.n)
    indices: list[int] = []
    gains: list[float] = []
    tracker, open_rows, row = BudgetTracker(budget), np.flatnonzero(candidates), first
    tell = Reporter(reporter("choosing"), budget.amount)
    while True:
        before = float(best[row])
        similarity.cover(best, no_demand, row)
        indices.append(row)
        gains.append(float(best[row]) - before)
        tracker.spend(row, int(price[row]))
        tell(int(price[row]))
        open_rows = open_rows[open_rows != row]
        open_rows = open_rows[tracker.allows(open_rows, price[open_rows])]
        if not len(open_rows):
            return Picks(np.array(indices, dtype=np.int64), np.array(gains), best)
        row = _farthest(open_rows, best, similarity.rounding)


def _farthest(rows: Rows, best: Array, rounding: float) -> int:
    covered = best[rows]
    return int(rows[covered <= covered.min() + rounding][0])  # rows rise

"""The set while it grows: its picks, its coverage, what is left of the budget and of its quota."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from coretune.progress_reports import Reporter
from coretune.select.objective import Objective, Picks
from coretune.select.quota import BudgetTracker
from coretune.select.similarity import Similarity
from coretune.types import Advance, Array, Budget, Rows


class Chosen:
    """S while an engine builds it."""

    def __init__(
        self, objective: Objective, budget: Budget, cost: Array, progress: Advance | None = None
    ) -> None:
        """Cost (n,) int64 in the budget's unit; progress gets how much of the budget is spent."""
        self.objective = objective
        self.cost = cost
        self.tracker = BudgetTracker(budget)
        self.indices: list[int] = []
        self.gains: list[float] = []
        self.best = np.zeros(objective.similarity.n, dtype=np.float32)
        self.rest: Similarity | None = None
        self._tell = Reporter(progress, budget.amount)

    @property
    def left(self) -> int:
        return self.tracker.left

    def worth(self, rows: Rows, by_cost: bool) -> Array:
        """(m,) float64 gain of each row now, per token if so asked."""
        gains = self.objective.gains(self.best, rows)
        return gains / self.cost[rows] if by_cost else gains

    def fitting(self, rows: Rows) -> Rows:
        """Those that may be taken now. The others never may again, as S only grows."""
        return rows[self.tracker.allows(rows, self.cost[rows])]

    def take(self, row: int) -> None:
        objective = self.objective
        covered = objective.similarity.cover(self.best, objective.demand, row)
        self.gains.append(float(objective.modular[row] + objective.scale * covered))
        self.indices.append(int(row))
        self.tracker.spend(row, int(self.cost[row]))
        self._tell(int(self.cost[row]))

    def go_on_with(self, rest: Similarity) -> None:
        """From here on gains and coverage are asked of another source that gives the same."""
        self.rest = rest
        self.objective = replace(self.objective, similarity=rest)

    def picks(self) -> Picks:
        return Picks(np.array(self.indices, dtype=np.int64), np.array(self.gains), self.best, rest=self.rest)


def winner(rows: Rows, worth: Array, tie: float) -> int:
    """Position of the largest worth; among those equal to it, of the lowest row."""
    best = worth.max()
    equal = np.flatnonzero(worth >= best - tie * abs(best))
    return int(equal[rows[equal].argmin()])

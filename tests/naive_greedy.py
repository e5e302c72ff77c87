"""The oracle of the greedy solvers: every candidate's gain anew for every pick."""

from __future__ import annotations

import numpy as np

from coretune.select.chosen import Chosen, winner
from coretune.select.greedy import _within_budget
from coretune.select.objective import Objective, Picks
from coretune.types import Array, Budget, Rows


def naive_greedy(objective: Objective, budget: Budget, cost: Array, candidates: Array) -> Picks:
    """Slow and obvious. Arguments and errors as of `lazy_greedy`."""
    return _within_budget(_naive, objective, budget, cost, candidates)


def _naive(chosen: Chosen, rows: Rows, by_cost: bool) -> None:
    while len(rows):
        best = winner(rows, chosen.worth(rows, by_cost), chosen.objective.tie)
        chosen.take(rows[best])
        rows = chosen.fitting(np.delete(rows, best))

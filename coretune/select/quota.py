"""At least and at most so much of a budget for each group of rows, kept while rows are chosen one by one.

A row may be taken when its group has room for it and what is left pays for it and for what the other groups
are still owed. Sets that can be completed within such bounds form a matroid for budgets in rows, so greedy
has F(S) >= ½ F(best within the quota) (Fisher, Nemhauser, Wolsey, "An analysis of approximations for
maximizing submodular set functions II", 1978; El Halabi et al., "Fairness in Streaming Submodular
Maximization", NeurIPS 2020). For tokens no factor is known.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from coretune.types import Array, Budget, Quota, Rows


class BudgetTracker:
    """What is left of a budget, and of its quota."""

    def __init__(self, budget: Budget) -> None:
        self.left = budget.amount
        self._quota = budget.quota
        if budget.quota is not None:
            self._room = budget.quota.most.copy()  # what each group may still take
            self._owed = budget.quota.least.copy()  # what each group must still get
            self._owed_all = int(budget.quota.least.sum())

    def allows(self, rows: Rows, cost: Array) -> Array:
        """(m,) bool: may each row of that cost be taken now?

        Neither what is left beside the other groups' dues nor a group's room ever grows: a no is for good.
        """
        if self._quota is None:
            return cost <= self.left
        group = self._quota.group[rows]
        others_owed = self._owed_all - self._owed[group]
        allowed: Array = (cost <= self._room[group]) & (cost <= self.left - others_owed)
        return allowed

    def spend(self, row: int, cost: int) -> None:
        self.left -= cost
        if self._quota is not None:
            group = self._quota.group[row]
            paid = min(cost, int(self._owed[group]))
            self._room[group] -= cost
            self._owed[group] -= paid
            self._owed_all -= paid


def within(budget: Budget, rows: Rows) -> Budget:
    """The same budget for a pool of these rows alone."""
    if budget.quota is None:
        return budget
    return replace(budget, quota=replace(budget.quota, group=budget.quota.group[rows]))


def refuse_quota(budget: Budget, who: str) -> None:
    """ValueError where there is a quota."""
    if budget.quota is not None:
        raise ValueError(f"{who} keeps no quota: leave quota out")


def check_quota(quota: Quota, budget: Budget, cost: Array, candidates: Array) -> None:
    """ValueError unless the candidates (n,) bool can fill the budget within the quota.

    cost (n,) int64 in the budget's unit. A budget of tokens is filled when no more row fits, and a minimum is
    met when no more row of its group fits it.
    """
    held = np.bincount(quota.group[candidates], cost[candidates], len(quota.least)).astype(np.int64)
    for group in np.flatnonzero(held < quota.least):
        raise ValueError(
            f"quota: {quota.names[group]} is to get {quota.least[group]} {budget.unit} or more, and its "
            f"candidates hold {held[group]}: lower its min"
        )
    if quota.least.sum() > budget.amount:
        raise ValueError(
            f"quota: the minima add up to {quota.least.sum()} {budget.unit}, the budget is {budget.amount}: "
            "lower them"
        )
    room = int(np.minimum(held, quota.most).sum())
    if budget.unit == "rows" and room < budget.amount:
        raise ValueError(
            f"quota: {room} rows may be chosen within the maxima, and the budget is {budget.amount}: raise "
            "them, or lower the budget"
        )
    if not (candidates & (cost <= quota.most[quota.group])).any():
        raise ValueError(f"quota: no candidate fits the maxima of a budget of {budget.amount} {budget.unit}")

"""How many rows a budget needs, and what a budget becomes where filters leave fewer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from coretune.select.ranking import sizes, take_in_order
from coretune.types import Array, Budget, Pool, Quota, Rows


def enough(pool: Pool, budget: Budget, order: Rows) -> Array:
    """(n,) bool: the first usable rows of `order` that fit the budget and together fill it."""
    size = sizes(pool, budget)
    order = order[pool.usable[order] & (size[order] <= budget.amount)]
    found = np.zeros(pool.n, bool)
    if budget.quota is not None and len(order):
        if size[order].sum() >= budget.amount:
            found[take_in_order(order, pool.cost, budget)] = True
        for group in np.flatnonzero(budget.quota.least):
            own = order[budget.quota.group[order] == group]
            found[_first(own, size, int(budget.quota.least[group]))] = True
        return found
    found[_first(order, size, budget.amount)] = True
    return found


def shrunk(budget: Budget, pool: Pool) -> Budget:
    """The budget as far as the usable rows of the pool can fill it.

    Its quota too: no group owes more than it has, and the whole is no more than all groups may give.
    """
    size = sizes(pool, budget)
    quota, most = budget.quota, int(size[pool.usable].sum())
    if quota is not None:
        rows = np.flatnonzero(pool.usable)
        there = np.bincount(quota.group[rows], weights=size[rows], minlength=len(quota.least)).astype(
            np.int64
        )
        quota = Quota(quota.group, np.minimum(quota.least, there), quota.most, quota.names)
        most = int(np.minimum(quota.most, there).sum())
    return replace(budget, amount=min(budget.amount, most), quota=quota)


def _first(order: Rows, size: Array, amount: int) -> Rows:
    """The first rows that together come to the amount."""
    return order[: int(np.searchsorted(np.cumsum(size[order]), amount)) + 1]

"""Selection by rank: rows in a given order, as many as the budget holds; and what every selector returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from coretune.select.quota import BudgetTracker
from coretune.types import Array, Budget, Coreset, Pool, Rows

#: Rows that are asked one by one before those that no longer fit are left out.
IN_TURN = 1024


def usable_feature(pool: Pool, name: str) -> Array:
    """The feature (n, ...) of that name; ValueError naming the first usable row where it is not finite."""
    feature = pool.feature(name)
    for start in range(0, pool.n, 65536):  # in parts: the feature may be memory-mapped
        part = slice(start, start + 65536)
        finite = np.isfinite(feature[part]).reshape(len(feature[part]), -1).all(axis=1)
        bad = np.flatnonzero(pool.usable[part] & ~finite)
        if len(bad):
            raise ValueError(
                f"feature {name!r} of usable row {start + bad[0]} is not finite: mark the row unusable"
            )
    return feature


def ranked(pool: Pool, worth: Array, budget: Budget, reasons: Mapping[str, Array]) -> Coreset:
    """The usable rows of highest worth (n,), weights 1, gain = worth; the lower row among equals.

    No guarantee is needed: the objective is a plain sum, so the top rows are its maximum (rows; under a token
    budget each row in turn is taken if it still fits).
    """
    rows = np.flatnonzero(pool.usable)
    indices = take_in_order(rows[np.argsort(-worth[rows], kind="stable")], pool.cost, budget)
    return coreset(indices, worth[indices], reasons)


def sizes(pool: Pool, budget: Budget) -> Array:
    """(n,) int64: what each row takes of the budget."""
    return pool.cost if budget.unit == "tokens" else np.ones(pool.n, np.int64)


def take_in_order(order: Rows, cost: Array, budget: Budget) -> Rows:
    """(K,) int64 rows of `order`, in that order, that the budget holds; ValueError when they fall short.

    Under a quota each row in turn that its group has room for, with the other groups' dues kept.
    """
    if budget.unit == "rows":
        if budget.amount > len(order):
            raise ValueError(
                f"a budget of {budget.amount} rows, but only {len(order)} may be chosen; ask for fewer"
            )
        if budget.quota is None:
            return order[: budget.amount]
        return _in_turn(order, np.ones_like(cost), budget)
    shortest = int(cost[order].min(initial=budget.amount + 1))
    if shortest > budget.amount:
        raise ValueError(f"no row fits a budget of {budget.amount} tokens; ask for more")
    return _in_turn(order, cost, budget)


def _in_turn(order: Rows, cost: Array, budget: Budget) -> Rows:
    """What is not allowed when its turn comes never will be, so all that is not is left out at once."""
    tracker, taken = BudgetTracker(budget), list[int]()
    while len(order):
        order = order[tracker.allows(order, cost[order])]
        for row in order[:IN_TURN]:
            if tracker.allows(np.array([row]), cost[row : row + 1])[0]:
                taken.append(int(row))
                tracker.spend(int(row), int(cost[row]))
        order = order[IN_TURN:]
    return np.array(taken, dtype=np.int64)


def coreset(
    indices: Rows,
    gains: Array,
    reasons: Mapping[str, Array],
    weights: Array | None = None,
    figures: Mapping[str, Any] | None = None,
) -> Coreset:
    """A Coreset with float64 gains, and weights 1 unless given; given ones are brought to mean 1."""
    if weights is None:
        weights = np.ones(len(indices))
    return Coreset(
        indices=np.asarray(indices, dtype=np.int64),
        weights=np.asarray(weights / weights.mean(), dtype=np.float64),
        gains=np.asarray(gains, dtype=np.float64),
        reasons=reasons,
        figures=figures or {},
    )

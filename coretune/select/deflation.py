"""A budget filled by pursuits: one, then more on what is left until it is full or nothing is of use.

A pursuit may return fewer rows than it was asked for: no more than NNLS gives a weight. Then the same target
is pursued again with the rows not taken yet, and the rounds are mixed by their numbers of rows m_k,

    w = Σ_k (m_k / Σ m) w_k,   so that   ‖b − Σ w_i a_i‖ <= Σ_k (m_k / Σ m) ‖b − Σ w_{k,i} a_i‖.

Of a group of copies only the lowest row may be chosen, until no distinct row points towards the target;
then the second of each group, and so on. A row that does not point towards it is taken only inside a
pursuit, where it balances others. When none is left that does, the coreset stays smaller than the budget:
nothing is padded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from coretune.select.pursuit import Pursuit, TokenLimit
from coretune.types import Array, Budget, Rows

log = logging.getLogger("coretune")

#: (target (D,), size, open rows (n,) bool, tokens) -> one pursuit
Engine = Callable[[Array, int, Array, TokenLimit | None], Pursuit]


@dataclass(frozen=True)
class Filled:
    """What the pursuits chose.

    rows, weights, gains, entered   (K,) as in `Pursuit`, round after round
    round                           (K,) int64 pursuit in which a row was chosen, from 1
    remainder                       (D,) float64  b − Σ w_i a_i
    residual                        its norm over ‖b‖
    iterations                      of all pursuits
    """

    rows: Rows
    weights: Array
    gains: Array
    entered: Array
    round: Array
    remainder: Array
    residual: float
    iterations: int

    @property
    def rounds(self) -> int:
        return int(self.round.max(initial=0))


def require_budget(budget: Budget, cost: Array, usable: Array) -> None:
    """ValueError with both numbers when the usable rows cannot hold the budget at all."""
    if budget.unit == "rows" and budget.amount > usable.sum():
        raise ValueError(
            f"a budget of {budget.amount} rows, but only {usable.sum()} may be chosen; ask for fewer"
        )
    if budget.unit == "tokens" and cost[usable].min(initial=budget.amount + 1) > budget.amount:
        raise ValueError(f"no row fits a budget of {budget.amount} tokens; ask for more")


def fill(
    engine: Engine, target: Array, budget: Budget, cost: Array, open_rows: Array, ranks: Array
) -> Filled:
    """Pursue the target until the budget is full or no open row points towards it.

    budget     under tokens a pursuit's size is the tokens left over the mean cost of the open rows [choice]
    cost       (n,) int64 tokens, read under a token budget only
    open_rows  (n,) bool
    ranks      (n,) int64 from `column_copies.copy_ranks`
    """
    pursuits: list[Pursuit] = []
    left, still, level = budget.amount, open_rows.copy(), 0
    deepest = int(ranks[open_rows].max(initial=0))
    while left > 0:
        if budget.unit == "tokens":
            still &= cost <= left
        allowed = still & (ranks <= level)
        found = _pursue(engine, target, left, budget.unit, cost, allowed)
        if found is None:
            if level == deepest:
                break
            level += 1
            continue
        pursuits.append(found)
        still[found.rows] = False
        left -= len(found.rows) if budget.unit == "rows" else int(cost[found.rows].sum())
    return _mixed(pursuits, np.asarray(target, dtype=np.float64))


def announce(name: str, filled: list[Filled], budget: Budget, ranks: Array) -> dict[str, Any]:
    """Log what was chosen; warn of a budget that took more than one pursuit, or was not filled.

    Returns the figures of the selection: distinct (rows that are no copy of another chosen row's group),
    residuals (one a target), iterations, pursuits (most for a target: 1 = no deflation).
    """
    rows = np.concatenate([one.rows for one in filled])
    first = sum(int((one.round == 1).sum()) for one in filled)
    rounds = max(one.rounds for one in filled)
    figures: dict[str, Any] = {
        "distinct": int((ranks[rows] == 0).sum()),
        "residuals": [one.residual for one in filled],
        "iterations": sum(one.iterations for one in filled),
        "pursuits": rounds,
    }
    log.info(
        "%s: %d rows, %d of them no copy of another, match the target up to %s of it; %d iterations",
        name,
        len(rows),
        figures["distinct"],
        ", ".join(f"{residual:.3f}" for residual in figures["residuals"]),
        figures["iterations"],
    )
    if rounds > 1:
        log.warning(
            "%s: a first pursuit gave weight to %d rows, the other %d are from %d more on the rows that were "
            "left (deflation)",
            name,
            first,
            len(rows) - first,
            rounds - 1,
        )
    if budget.unit == "rows" and len(rows) < budget.amount:
        log.warning(
            "%s: %d of the %d rows asked for; no other usable row points towards the target",
            name,
            len(rows),
            budget.amount,
        )
    return figures


def _pursue(
    engine: Engine, target: Array, left: int, unit: str, cost: Array, allowed: Array
) -> Pursuit | None:
    """None when no allowed row points towards the target."""
    if not allowed.any():
        return None
    if unit == "rows":
        found = engine(target, left, allowed, None)
    else:
        size = max(1, int(left / cost[allowed].mean()))
        found = engine(target, size, allowed, TokenLimit(cost, left))
    return found if len(found.rows) else None


def _mixed(pursuits: list[Pursuit], target: Array) -> Filled:
    total = sum(len(found.rows) for found in pursuits)
    part = [len(found.rows) / total for found in pursuits]
    remainder = sum(
        (share * found.remainder for share, found in zip(part, pursuits, strict=True)),
        start=np.zeros(len(target)) if pursuits else target,
    )
    nothing = [np.zeros(0)]
    return Filled(
        rows=np.concatenate([found.rows for found in pursuits] or [np.zeros(0, dtype=np.int64)]),
        weights=np.concatenate(
            [share * found.weights for share, found in zip(part, pursuits, strict=True)] or nothing
        ),
        gains=np.concatenate([found.gains for found in pursuits] or nothing),
        entered=np.concatenate([found.entered for found in pursuits] or nothing),
        round=np.repeat(np.arange(1, len(pursuits) + 1), [len(found.rows) for found in pursuits]),
        remainder=remainder,
        residual=float(np.linalg.norm(remainder) / np.linalg.norm(target)),
        iterations=sum(len(found.objectives) for found in pursuits),
    )

"""What methods with a target share: targets and examples that take turns, which example a row serves, and
whether the pool can serve a target at all.

    similarity (n, m), target_of (m,), share (S,) ─► turns ─► an order of the rows, and whose turn it was
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from coretune.select.ranking import coreset, ranked, sizes, take_in_order
from coretune.types import (
    SERVES,
    SHARE,
    TARGET_NUMBER,
    TARGET_OF,
    TARGET_SIMILARITY,
    Array,
    Budget,
    Coreset,
    Pool,
    Rows,
)

#: Figures of a selection, a list of one number a target each (`nearness`).
NEAREST_POOL, NEAREST_OWN = "target_nearest_pool", "target_nearest_own"


def examples_of(pool: Pool, columns: int) -> tuple[Array, Array]:
    """(m,) the target of each example, (S,) the targets' shares of the budget.

    ValueError where the pool says nothing of them, or has others than the signal's `columns`.
    """
    if not {TARGET_OF, SHARE} <= pool.references.keys():
        raise ValueError("the pool has no target to compare with: give trusted rows as target_data")
    of = np.asarray(pool.references[TARGET_OF], np.int64)
    if len(of) != columns:
        raise ValueError(f"a signal compares with {columns} target examples, and the pool has {len(of)}")
    return of, np.asarray(pool.references[SHARE], np.float64)


def of_targets(values: Array, of: Array, targets: int) -> Array:
    """(n, S) float64: the mean of values (n, m) over each target's examples."""
    return np.stack([values[:, of == target].mean(axis=1, dtype=np.float64) for target in range(targets)], 1)


def chosen_for_targets(
    pool: Pool, worth: Array, share: Array, budget: Budget, reasons: Mapping[str, Array]
) -> Coreset:
    """The rows of highest worth (n, S) for each target, for its share of the budget, in turns."""
    if worth.shape[1] == 1:
        return ranked(pool, worth[:, 0], budget, reasons)
    order, taker = turns(worth, share, sizes(pool, budget), np.flatnonzero(pool.usable))
    return _chosen(pool, worth, order, _by_row(pool, order, taker), np.arange(len(share)), budget, reasons)


def chosen_for_examples(pool: Pool, worth: Array, of: Array, share: Array, budget: Budget) -> Coreset:
    """The rows of highest worth (n, m) for each example, in turns; examples of a target share its share."""
    order, taker = turns_of_examples(pool, worth, of, share, budget)
    serves = np.where(pool.usable, np.argmax(worth, axis=1), -1).astype(np.float64)
    example = _by_row(pool, order, taker)
    chosen = _chosen(pool, worth, order, example, of, budget, {SERVES: serves})
    serves[chosen.indices] = example[chosen.indices]
    return chosen


def turns_of_examples(
    pool: Pool, worth: Array, of: Array, share: Array, budget: Budget
) -> tuple[Rows, Array]:
    """All usable rows in the order in which the m examples take them, and whose turn it was."""
    each = share[of] / np.bincount(of, minlength=len(share))[of]
    return turns(worth, each, sizes(pool, budget), np.flatnonzero(pool.usable))


def _by_row(pool: Pool, order: Rows, taker: Array) -> Array:
    """(n,) int64: the column that took each row of the pool, -1 = none did."""
    column = np.full(pool.n, -1, np.int64)
    column[order] = taker
    return column


def _chosen(
    pool: Pool,
    worth: Array,
    order: Rows,
    column: Array,
    of: Array,
    budget: Budget,
    reasons: Mapping[str, Array],
) -> Coreset:
    """What of the order the budget holds; column (n,): that took each row; of (c,): the target of each."""
    indices = take_in_order(order, pool.cost, budget)
    if int(of.max()) > 0:
        number = np.full(pool.n, -1.0)
        number[indices] = of[column[indices]]
        reasons = {**reasons, TARGET_NUMBER: number}
    return coreset(indices, worth[indices, column[indices]], reasons)


def turns(worth: Array, share: Array, size: Array, rows: Rows) -> tuple[Rows, Array]:
    """(r,) the rows in the order in which columns take them, and (r,) the column that took each.

    The column that has had least of its share takes the row of highest worth that is left, until none is:
    with equal shares and sizes, one after the other. Half a row is taken as had at the start, as Sainte-Laguë
    does, so that a small share does not come first. Of equals the lower column and the lower row.

    worth (n, c)   share (c,) > 0   size (n,) what a row takes of the budget
    """
    best = [rows[np.argsort(-worth[rows, c], kind="stable")].tolist() for c in range(worth.shape[1])]
    half = float(size[rows].mean()) / 2 if len(rows) else 0.0
    at, waiting = [0] * len(best), [(half / float(share[c]), c) for c in range(len(best))]
    heapq.heapify(waiting)
    free = np.ones(len(worth), bool)
    order, taker = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
    for turn in range(len(rows)):
        had, column = heapq.heappop(waiting)
        while not free[best[column][at[column]]]:
            at[column] += 1
        row = best[column][at[column]]
        free[row], order[turn], taker[turn] = False, row, column
        heapq.heappush(waiting, (had + float(size[row]) / float(share[column]), column))
    return order, taker


def with_served(pool: Pool, chosen: Coreset) -> Coreset:
    """The coreset with which example of the target each row serves: what the method says, else the nearest
    by `target_similarity`, of the target that the row was chosen for; and how near the pool comes to each
    target.

    As it is where the pool has no such signal.
    """
    if TARGET_SIMILARITY not in pool.features or TARGET_OF not in pool.references:
        return chosen
    near, of = np.asarray(pool.feature(TARGET_SIMILARITY)), np.asarray(pool.references[TARGET_OF])
    reasons = dict(chosen.reasons)
    if SERVES not in reasons:
        target = reasons.get(TARGET_NUMBER, np.full(pool.n, -1.0))
        allowed = (target[:, None] < 0) | (target[:, None] == of)
        serves = np.argmax(np.where(allowed, near, -np.inf), axis=1)
        reasons[SERVES] = np.where(pool.usable, serves, -1.0)
    served = np.maximum(reasons[SERVES].astype(np.int64), 0)
    similarity = near[np.arange(pool.n), served]
    reasons[TARGET_SIMILARITY] = np.where(pool.usable, similarity, np.nan).astype(np.float32)
    return replace(chosen, reasons=reasons, figures={**chosen.figures, **nearness(pool, near, of)})


def nearness(pool: Pool, near: Array, of: Array) -> dict[str, Any]:
    """Of each target, means over its examples: the similarity to the nearest row of the pool that may be
    chosen, and to the nearest other example of the same target. {} where the latter is not known, or a target
    has one example alone."""
    own = pool.references.get(TARGET_SIMILARITY)
    if own is None or np.bincount(of).min() < 2:
        return {}
    other = np.where((of[:, None] == of) & ~np.eye(len(of), dtype=bool), own, -np.inf).max(axis=1)
    nearest = near[pool.usable].max(axis=0)
    means = [[float(values[of == t].mean()) for t in range(int(of.max()) + 1)] for values in (nearest, other)]
    return {
        name: [round(value, 4) for value in some]
        for name, some in zip((NEAREST_POOL, NEAREST_OWN), means, strict=True)
    }


def unserved(figures: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """A line for each target that the pool cannot serve.

    [choice] A pool of thousands of rows that holds the wanted task comes nearer to an example than the few
    other examples of that task do; where it does not, it has nothing of the kind.
    """
    lines = []
    for name, pool, own in zip(
        names, figures.get(NEAREST_POOL, []), figures.get(NEAREST_OWN, []), strict=False
    ):
        if pool < own:
            lines.append(
                f"{name}: the pool seems to hold nothing of this kind: its nearest rows have a similarity "
                f"of {pool:.3f} to the target's examples, which have {own:.3f} among themselves. Add rows of "
                "the wanted kind to train_data, or expect little"
            )
    return lines

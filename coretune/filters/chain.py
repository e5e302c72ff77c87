"""Filters one after the other, each on what those before it left; and what becomes of the budget.

pool, budget ─► duplicates ─► noise ─► cooldown ─► a pool whose usable rows may be chosen ─► any method
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from coretune.filters.room import shrunk
from coretune.select.ranking import sizes
from coretune.types import Array, Budget, Coreset, Filter, Pool, Verdict

log = logging.getLogger("coretune")


@dataclass(frozen=True)
class Filtered:
    """What filters leave.

    pool      the same pool; its usable rows are those that may be chosen
    budget    as much of the one given as they can fill
    taken     (n,) int8: position of the filter that took a row out, from 1; 0 = none did
    verdicts  filter -> what it said, in their order
    """

    pool: Pool
    budget: Budget
    taken: Array
    verdicts: Mapping[str, Verdict]

    def noted(self, chosen: Coreset) -> Coreset:
        """The coreset with which rows each filter took out, each row's scores, and what they say."""
        names = tuple(self.verdicts)
        if not names:
            return chosen
        scores = {name: verdict.score for name, verdict in self.verdicts.items()}
        figures = {f"filtered_{name}": int((self.taken == at).sum()) for at, name in enumerate(names, 1)}
        for verdict in self.verdicts.values():
            figures |= verdict.figures
        return replace(
            chosen,
            reasons={**chosen.reasons, **scores},
            figures={**chosen.figures, **figures},
            filters=names,
            filtered=self.taken,
        )


def apply(filters: Sequence[Filter], pool: Pool, budget: Budget) -> Filtered:
    """A row that one filter took out is not there for the next one, and for no method either.

    Where too few rows are left for the budget it shrinks, and the log says so. ValueError where none is left.
    """
    left, taken, verdicts = judged(filters, pool, budget)
    return Filtered(left, _fitting(left, budget, verdicts, taken), taken, verdicts)


def judged(filters: Sequence[Filter], pool: Pool, budget: Budget) -> tuple[Pool, Array, dict[str, Verdict]]:
    """The pool whose usable rows are left, (n,) which filter took a row out, and what each said."""
    left, taken, verdicts = pool, np.zeros(pool.n, np.int8), dict[str, Verdict]()
    for at, each in enumerate(filters, 1):
        verdict = each.judge(left, budget)
        out = left.usable & ~verdict.keep
        taken[out] = at
        left = replace(left, usable=left.usable & verdict.keep)
        verdicts[each.name] = verdict
        if not left.usable.any():
            break  # `_fitting` says so
    return left, taken, verdicts


def _fitting(left: Pool, budget: Budget, verdicts: Mapping[str, Verdict], taken: Array) -> Budget:
    if not taken.any():
        return budget
    counts = ", ".join(f"{name} {(taken == at).sum():,}" for at, name in enumerate(verdicts, 1))
    fitting = shrunk(budget, left)
    if not left.usable.any() or sizes(left, budget)[left.usable].min() > fitting.amount:
        raise ValueError(
            f"the filters leave no row that fits the budget (taken out: {counts}): "
            "raise the budget, or leave a filter out of coreset.filters"
        )
    if fitting.amount < budget.amount:
        log.warning(
            "filters leave %d of the %d %s that the budget asks for (taken out: %s): the budget shrinks",
            fitting.amount,
            budget.amount,
            budget.unit,
            counts,
        )
    return fitting

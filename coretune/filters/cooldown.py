"""Not the same rows again too soon."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np

from coretune.choices import refuse_other
from coretune.filters.room import enough
from coretune.select.demand import regional_loss
from coretune.types import TRAINED_AT, TRAINED_TIMES, Array, Budget, Pool, Verdict

By = Literal["count", "loss"]


@dataclass(frozen=True)
class Cooldown:
    """Rows that were trained on not long ago, or more often than is their share, may not be chosen.

    A coreset changes with it although the scores hardly do: other rows are worth more than the best again.

    It never leaves fewer rows than the budget asks for: those trained longest ago, or least of their share,
    stay. Nothing is taken out before a coreset was trained on.

    Attributes:
        coresets: Rows that one of so many last coresets trained on cool down.
        by: A row's share of what was trained: "count", as often as the rows that may be chosen were on
            average; "loss", d_i times as often, d_i (of mean 1) the median loss of its neighbours.

    Score: 1 / k for a row that the last coreset but k − 1 trained on; 0 for one that was never trained on.
    """

    coresets: int = 3
    by: By = "count"

    name: ClassVar[str] = "cooldown"
    says: ClassVar[str] = "cooling down: trained on not long ago, or more often than its share"

    def __post_init__(self) -> None:
        if self.coresets < 1:
            raise ValueError(f"cooldown.coresets is {self.coresets}: give at least 1, or leave cooldown out")
        refuse_other("cooldown.by", self.by, get_args(By))

    @property
    def needs(self) -> tuple[str, ...]:
        return ("loss",) if self.by == "loss" else ()

    @property
    def reads_graph(self) -> bool:
        """Whether a row's share is that of its neighbours' loss."""
        return self.by == "loss"

    def judge(self, pool: Pool, budget: Budget) -> Verdict:
        trained_at, times = pool.feature(TRAINED_AT), pool.feature(TRAINED_TIMES)
        newest = int(trained_at[pool.usable].max())
        score = np.where(trained_at < 0, 0.0, 1.0 / np.maximum(newest - trained_at + 1, 1))
        rested = (trained_at < 0) | (trained_at <= newest - self.coresets)
        rested |= _needed(pool, budget, trained_at.astype(np.float64), pool.usable)
        worth = self._worth(pool)
        share = worth * times[pool.usable].sum() / worth[pool.usable].sum()
        due = (times <= share) | _needed(pool, budget, times / worth, pool.usable & rested)
        return Verdict(rested & due, score.astype(np.float32))

    def _worth(self, pool: Pool) -> Array:
        """(n,) float64 > 0, of mean 1 over the usable rows."""
        return np.where(pool.usable, regional_loss(pool), 1.0) if self.by == "loss" else np.ones(pool.n)


def _needed(pool: Pool, budget: Budget, key: Array, among: Array) -> Array:
    """(n,) bool: of the rows `among` those of least key that fill the budget, and those equal to the last."""
    order = np.argsort(np.where(among, key, np.inf), kind="stable")
    filling = enough(pool, budget, order) & among
    return among & (key <= key[filling].max(initial=-np.inf))

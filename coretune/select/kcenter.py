"""k-center: no row of the pool far from a chosen one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coretune.select.dense import distance_similarity
from coretune.select.farthest_first import farthest_first
from coretune.select.quota import BudgetTracker
from coretune.select.ranking import coreset, usable_feature
from coretune.types import Budget, Coreset, Pool


@dataclass(frozen=True)
class KCenter:
    """Farthest-first traversal over Euclidean distances of the embedding.

    Sener and Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach", ICLR 2018,
    Algorithm 1:  u = argmax_v min_{j∈S} ‖z_v − z_j‖. Within twice the best radius for a row budget. The
    first row is drawn at random among those that fit. O(K N d).

    Attributes:
        embedding: Name of an (n, d) feature.

    Reasons: distance (n,): of each pick to those before it, of each other row to the nearest pick.
    """

    embedding: str = "response_embedding"

    name: ClassVar[str] = "kcenter"
    keeps_quota: ClassVar[bool] = True

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.embedding,)

    def select(self, pool: Pool, budget: Budget, rng: np.random.Generator) -> Coreset:
        source = distance_similarity(usable_feature(pool, self.embedding), pool.usable)
        price = np.ones_like(pool.cost) if budget.unit == "rows" else pool.cost
        fits = pool.usable & BudgetTracker(budget).allows(np.arange(pool.n), price)
        if not fits.any():
            raise ValueError(f"no usable row fits a budget of {budget.amount} {budget.unit}; ask for more")
        first = int(rng.choice(np.flatnonzero(fits)))
        picks = farthest_first(source, budget, pool.cost, pool.usable, first)
        distance = np.where(pool.usable, picks.best[first] - picks.best, 0.0)
        distance[picks.indices] = picks.gains
        return coreset(picks.indices, picks.gains, {"distance": distance})

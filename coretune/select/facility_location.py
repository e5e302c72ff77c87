"""Facility location: the rows that stand best for the whole pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coretune.select.dense import MakeProducts, products_here
from coretune.select.greedy import Engine, lazy_greedy
from coretune.select.objective import Objective, coverage_worth
from coretune.select.ranking import coreset
from coretune.select.similarity import pool_similarity
from coretune.types import Budget, Coreset, Pool


@dataclass(frozen=True)
class FacilityLocation:
    """Maximise  F(S) = 1/N Σ_v max_{j∈S} sim(v, j)  over the N usable rows v, by lazy greedy.

    Wei, Iyer, Bilmes, "Submodularity in Data Subset Selection and Active Learning", ICML 2015.
    F(S) >= (1 − 1/e) F(best) for rows, 0.405 for tokens (`greedy.py`). Weights are 1.

    Attributes:
        similarity: "graph": cosines along the pool's k-NN graph, 0 elsewhere; "dense": all pairs of
            `embedding`, exact.
        embedding: The signal that is compared.

    Reasons: coverage, the gain; covered = max_{j∈S} sim(v, j).
    """

    similarity: str = "graph"
    embedding: str = "prompt_embedding"

    name: ClassVar[str] = "facility_location"
    keeps_quota: ClassVar[bool] = True

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.embedding,)

    @property
    def graph_of(self) -> str:
        return self.embedding

    def select(self, pool: Pool, budget: Budget, rng: np.random.Generator) -> Coreset:
        return self.choose(pool, budget)

    def choose(
        self,
        pool: Pool,
        budget: Budget,
        greedy: Engine = lazy_greedy,
        products: MakeProducts = products_here,
    ) -> Coreset:
        """`select` by another engine (`two_rounds.py`), or with products elsewhere (`torch_greedy.py`)."""
        demand = pool.usable.astype(np.float64)
        source = pool_similarity(pool, self.similarity, self.embedding, products)
        objective = Objective(source, np.zeros(pool.n), 1.0 / max(1.0, demand.sum()), demand)
        picks = greedy(objective, budget, pool.cost, pool.usable)
        coverage = coverage_worth(objective, picks, pool.usable)
        return coreset(picks.indices, picks.gains, {"coverage": coverage, "covered": picks.best})

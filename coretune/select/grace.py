"""GRACE's objective: importance plus coverage of the pool.

As published, as far as the paper says: `lambda: 0.5`, `demand: equal` and what else `presets.GRACE_PAPER`
lists (`method: grace-paper`). Ours are `demand: loss` (`demand.py`), the other defaults below, and which rows
may be chosen (`coretune/filters/`). GRACE's refresh, which rows to measure again, is `policies/paper.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coretune.select.demand import regional_loss
from coretune.select.dense import MakeProducts, products_here
from coretune.select.greedy import Engine, lazy_greedy
from coretune.select.importance import importance, scaled
from coretune.select.objective import Objective, coverage_worth
from coretune.select.ranking import coreset
from coretune.select.similarity import pool_similarity
from coretune.types import Array, Budget, Coreset, Pool


@dataclass(frozen=True)
class Grace:
    """A row is worth its importance and the part of the pool that it covers and no pick before it did.

    Tang, Li, Chen, "GRACE: A Dynamic Coreset Selection Framework for Large Language Model Optimization",
    arXiv:2604.11810, 2026. [paper] representation diversity is combined with gradient-based importance;
    [choice] so:

        F(S) = λ/K Σ_{i∈S} ĝ_i + (1−λ)/N Σ_v d_v max_{j∈S} sim(v, j),   ĝ = rank of the importance, in [0, 1]

    over the N usable rows v, the d_v of mean 1, for K picks (under a token budget tokens / mean tokens of a
    row), so that both terms range over [0, 1]; by lazy greedy: F(S) >= (1 − 1/e) F(best) for rows, 0.405 for
    tokens (`greedy.py`). Weights are 1.

    Attributes:
        lambda_: In [0, 1]; 0 = coverage alone.
        importance: A name of `importance.IMPORTANCES`.
        demand: What covering row v is worth: "equal"; "loss" [choice], d_v ∝ the median loss of v's
            neighbours in the graph (`demand.regional_loss`).
        similarity: "graph": cosines along the pool's k-NN graph, 0 elsewhere; "dense": all pairs of
            `embedding`, exact.
        embedding: The signal of the graph, and of "dense".

    Reasons: importance (λ/K ĝ_i) and coverage, which add up to the gain; covered = max_{j∈S}
        sim.
    """

    lambda_: float = 0.0
    demand: str = "loss"
    importance: str = "gradient_norm"
    similarity: str = "graph"
    embedding: str = "prompt_embedding"

    name: ClassVar[str] = "grace"
    keeps_quota: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.lambda_ <= 1.0:
            raise ValueError(f"lambda {self.lambda_} is no share: give 0 <= lambda <= 1")
        if self.demand not in ("loss", "equal"):
            raise ValueError(f"demand {self.demand!r} is unknown; there are loss, equal")

    @property
    def needs(self) -> tuple[str, ...]:
        """Signals to measure."""
        weighing = importance(self.importance).needs if self.lambda_ else ()
        losses = ("loss",) if self.demand == "loss" else ()
        return tuple(dict.fromkeys((*weighing, *losses, self.embedding)))

    @property
    def unused_settings(self) -> tuple[str, ...]:
        """Settings that these values leave without effect."""
        if self.lambda_ == 0.0:
            return ("importance",)
        return ("demand", "similarity") if self.lambda_ == 1.0 else ()

    @property
    def graph_of(self) -> str:
        """The embedding of the graph."""
        return self.embedding

    def select(self, pool: Pool, budget: Budget, rng: np.random.Generator) -> Coreset:
        """The rows that lazy greedy finds; nothing is drawn at random."""
        return self.choose(pool, budget)

    def choose(
        self,
        pool: Pool,
        budget: Budget,
        greedy: Engine = lazy_greedy,
        products: MakeProducts = products_here,
    ) -> Coreset:
        """`select` by another engine (`two_rounds.py`), or with products elsewhere (`torch_greedy.py`)."""
        objective = self._objective(pool, budget, products)
        picks = greedy(objective, budget, pool.cost, pool.usable)
        reasons = {
            "importance": objective.modular,
            "coverage": coverage_worth(objective, picks, pool.usable),
            "covered": picks.best,
        }
        return coreset(picks.indices, picks.gains, reasons)

    def value(self, pool: Pool, chosen: Coreset) -> float:
        """F of a coreset under this pool."""
        return self._objective(pool, Budget(len(chosen.indices), "rows")).value(chosen.indices)

    def _objective(self, pool: Pool, budget: Budget, products: MakeProducts = products_here) -> Objective:
        modular: Array = np.zeros(pool.n)
        if self.lambda_:
            worth = scaled(importance(self.importance).score(pool), pool.usable)
            modular = self.lambda_ / self._terms(pool, budget) * worth
        return Objective(
            similarity=pool_similarity(pool, self.similarity, self.embedding, products),
            modular=modular,
            scale=(1.0 - self.lambda_) / pool.usable.sum(),
            demand=self._demand(pool),
        )

    def _demand(self, pool: Pool) -> Array:
        """(n,) float64 d_v, of mean 1 over the usable rows, 0 for the others."""
        return regional_loss(pool) if self.demand == "loss" else pool.usable.astype(np.float64)

    def _terms(self, pool: Pool, budget: Budget) -> float:
        """K, by which the sum of importances is divided."""
        if budget.unit == "rows":
            return float(budget.amount)
        return max(1.0, budget.amount / float(pool.cost[pool.usable].mean()))

"""GRACE's selection: importance plus coverage of the pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coretune.select.greedy import Objective, coverage_worth, lazy_greedy
from coretune.select.importance import cut_off, importance, scaled
from coretune.select.ranking import coreset
from coretune.select.similarity import pool_similarity
from coretune.types import Budget, Coreset, Pool


@dataclass(frozen=True)
class Grace:
    """A row is worth its importance and the part of the pool that it stands for and none before it did.

    Tang, Li, Chen, "GRACE: A Dynamic Coreset Selection Framework for Large Language Model Optimization",
    arXiv:2604.11810, 2026. [paper] combines representation diversity with gradient-based importance;
    [choice] does it so:

        F(S) = λ Σ_{i∈S} ĝ_i + (1−λ)/N Σ_v max_{j∈S} sim(v, j),   ĝ = rank of the importance, in [0, 1]

    over the N usable rows v, by lazy greedy: F(S) >= (1 − 1/e) F(best) for rows, 0.405 for tokens
    (`greedy.py`). Weights are 1.

    lambda_          in [0, 1]; 0 = coverage alone
    importance       a name of `importance.IMPORTANCES`
    importance_term  "sum": λ Σ ĝ as above, which K picks bring to λK while coverage stays below 1 − λ;
                     "mean": λ/K Σ ĝ, with which both terms range over [0, 1] (under a token budget K = tokens
                     / mean tokens of a row)
    cutoff           share of the usable rows, those of highest importance, that may not be chosen
    similarity       "graph": cosines along the pool's k-NN graph, 0 elsewhere; "dense": all pairs of
                     `embedding`, exact
    reasons          importance (λ ĝ_i, or its K-th part) and coverage, which add up to the gain;
                     covered = max_{j∈S} sim(v, j)

    Raises ValueError for a setting out of range, and when the cut-off leaves fewer rows than the budget.
    """

    lambda_: float = 0.5
    importance: str = "gradient_norm"
    importance_term: str = "sum"
    cutoff: float = 0.0
    similarity: str = "graph"
    embedding: str = "response_embedding"

    name: ClassVar[str] = "grace"

    @property
    def needs(self) -> tuple[str, ...]:
        signals = importance(self.importance).needs
        return (*signals, self.embedding) if self.similarity == "dense" else signals

    def select(self, pool: Pool, budget: Budget, rng: np.random.Generator) -> Coreset:
        if not 0.0 <= self.lambda_ <= 1.0:
            raise ValueError(f"lambda {self.lambda_} is no share: give 0 <= lambda <= 1")
        raw = importance(self.importance).score(pool)
        worth = self.lambda_ / self._terms(pool, budget) * scaled(raw, pool.usable)
        objective = Objective(
            similarity=pool_similarity(pool, self.similarity, self.embedding),
            modular=worth,
            scale=(1.0 - self.lambda_) / max(1, pool.usable.sum()),
            demand=pool.usable.astype(np.float64),
        )
        picks = lazy_greedy(objective, budget, pool.cost, cut_off(raw, pool.usable, self.cutoff))
        coverage = coverage_worth(objective, picks, pool.usable)
        reasons = {"importance": worth, "coverage": coverage, "covered": picks.best}
        return coreset(picks.indices, picks.gains, reasons)

    def _terms(self, pool: Pool, budget: Budget) -> float:
        """What the sum of importances is divided by."""
        if self.importance_term == "sum":
            return 1.0
        if self.importance_term != "mean":
            raise ValueError(f"importance_term {self.importance_term!r} is unknown; there are sum, mean")
        if budget.unit == "rows":
            return float(budget.amount)
        return max(1.0, budget.amount / float(pool.cost[pool.usable].mean()))

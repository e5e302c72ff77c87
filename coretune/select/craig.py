"""CRAIG: few weighted rows whose gradients add up to the pool's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coretune.select.dense import MakeProducts, distance_similarity, products_here
from coretune.select.greedy import Engine, lazy_greedy
from coretune.select.objective import Objective, coverage_worth
from coretune.select.ranking import coreset, usable_feature
from coretune.types import Budget, Coreset, Pool


@dataclass(frozen=True)
class Craig:
    """Facility location over distances between gradients, each pick weighted by the rows it represents.

    Mirzasoleiman, Bilmes, Leskovec, "Coresets for Data-efficient Training of Machine Learning Models", ICML
    2020:

        d_ij = ‖∇ℓ_i − ∇ℓ_j‖,   L(S) = Σ_i min_{j∈S} d_ij  bounds the error of Σ_{j∈S} γ_j ∇ℓ_j
        maximise F(S) = Σ_i [c − min_{j∈S} d_ij],  c >= max d;   γ_j = #{i : j = argmin_{s∈S} d_is}

    The constant c takes the place of the paper's auxiliary element s0. Gradients are the random projections
    of the signal `gradient`; weights are γ brought to mean 1. F(S) >= (1 − 1/e) F(best) for rows, 0.405 for
    tokens (`greedy.py`): of F, not of the error. The paper selects per class; instructions have none
    [choice]. O(N² p).

    Reasons: coverage, the gain; represents = γ_j, 0 for a row not chosen.
    """

    name: ClassVar[str] = "craig"
    keeps_quota: ClassVar[bool] = True

    @property
    def needs(self) -> tuple[str, ...]:
        return ("gradient",)

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
        source = distance_similarity(usable_feature(pool, "gradient"), pool.usable, products=products)
        objective = Objective(source, np.zeros(pool.n), 1.0, pool.usable.astype(np.float64))
        picks = greedy(objective, budget, pool.cost, pool.usable)
        nearest = picks.nearest(source)
        cluster = np.bincount(nearest[pool.usable & (nearest >= 0)], minlength=len(picks.indices))
        represents = np.zeros(pool.n)
        represents[picks.indices] = cluster
        reasons = {"coverage": coverage_worth(objective, picks, pool.usable), "represents": represents}
        return coreset(picks.indices, picks.gains, reasons, weights=cluster)

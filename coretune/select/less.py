"""LESS: rows whose gradient points where the target's does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coretune.select.by_target import chosen_for_targets, examples_of, of_targets
from coretune.select.ranking import usable_feature
from coretune.types import Budget, Coreset, Pool


@dataclass(frozen=True)
class Less:
    """Rank by the cosine with the target's gradients.

    Xia et al., "LESS: Selecting Influential Data for Targeted Instruction Tuning", ICML 2024,
    arXiv:2402.04333:

        score_i = max over target groups of  Σ_t η_t cos(∇ℓ̄_target(θ_t), Γ(z_i, θ_t))

    with Γ the Adam update and θ_t the checkpoints of the warm-up. Ours reads the signal `target_cosine`,
    which is measured at the model as it stands [choice]: one scan. With `preconditioner: adam` the pool's
    side goes through Γ, as in the paper; by default it is the projected gradient itself, for which no
    optimiser state is needed [choice]. Several targets take turns by their shares of the budget [choice].

    Reasons: target_cosine, the mean over a target's examples, the largest over the targets; for_target.
    """

    name: ClassVar[str] = "less"
    keeps_quota: ClassVar[bool] = True

    @property
    def needs(self) -> tuple[str, ...]:
        return ("target_cosine",)

    def select(self, pool: Pool, budget: Budget, rng: np.random.Generator) -> Coreset:
        cosine = usable_feature(pool, "target_cosine").astype(np.float64)  # (n, m)
        of, share = examples_of(pool, cosine.shape[1])
        mean = of_targets(cosine, of, len(share))
        return chosen_for_targets(pool, mean, share, budget, {"target_cosine": mean.max(axis=1)})

"""Loss drop: rows that become easier for a model which has seen the target alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coretune.select.by_target import chosen_for_targets
from coretune.select.importance import LEAST_LOSS
from coretune.select.ranking import usable_feature
from coretune.types import SHARE, TARGET_LOSS, Budget, Coreset, Pool


@dataclass(frozen=True)
class LossDrop:
    """Rank by how much of its loss a row loses after a short warm-up on the target's examples.

    Yang, He, Cheng, "Let the Target Select for Itself: Data Selection via Target-Aligned Paths", 2026,
    arXiv:2605.09404: with θ_0 the base model and θ_T the same after a warm-up on the target alone,

        drop_i = (ℓ_i(θ_0) − ℓ_i(θ_T)) / ℓ_i(θ_0)

    Two forward passes a row; the warm-up is of a few steps, and its model is dropped. Losses below LEAST_LOSS
    are divided by that [choice]. Several targets have a warm-up and a pass each, and take turns by their
    shares [choice].

    Attributes:
        target_epochs: Passes of the warm-up over the target's examples [choice].

    Reasons: loss_drop, the largest over the targets; for_target.
    """

    target_epochs: int = 4

    name: ClassVar[str] = "loss_drop"
    keeps_quota: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.target_epochs < 1:
            raise ValueError(f"target_epochs is {self.target_epochs}: give at least 1 pass over the target")

    @property
    def needs(self) -> tuple[str, ...]:
        return (TARGET_LOSS, "loss")

    def select(self, pool: Pool, budget: Budget, rng: np.random.Generator) -> Coreset:
        after = usable_feature(pool, TARGET_LOSS).astype(np.float64)
        before = usable_feature(pool, "loss").astype(np.float64)[:, None]
        drop = (before - after) / np.maximum(before, LEAST_LOSS)
        share = np.asarray(pool.references.get(SHARE, np.ones(drop.shape[1])), np.float64)
        return chosen_for_targets(pool, drop, share, budget, {"loss_drop": drop.max(axis=1)})

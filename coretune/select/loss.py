"""Highest or lowest loss first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coretune.select.ranking import ranked, usable_feature
from coretune.types import Budget, Coreset, Pool


@dataclass(frozen=True)
class Loss:
    """Rank by the response's token-mean loss ℓ_i.

    Highest first is hard-example mining: Loshchilov and Hutter, "Online Batch Selection for Faster Training
    of Neural Networks", arXiv:1511.06343; Jiang et al., "Accelerating Deep Learning by Focusing on the
    Biggest Losers", arXiv:1910.00762. Both draw with a probability that grows with the loss; this takes the
    top [choice].

    Attributes:
        highest: False = lowest loss first.
    """

    highest: bool = True

    name: ClassVar[str] = "loss"
    keeps_quota: ClassVar[bool] = True

    @property
    def needs(self) -> tuple[str, ...]:
        return ("loss",)

    def select(self, pool: Pool, budget: Budget, rng: np.random.Generator) -> Coreset:
        loss = usable_feature(pool, "loss").astype(np.float64)
        return ranked(pool, loss if self.highest else -loss, budget, {"loss": loss})

"""The baseline that counts: a random draw, new at every refresh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coretune.select.ranking import ranked
from coretune.types import Budget, Coreset, Pool


@dataclass(frozen=True)
class Random:
    """Usable rows in random order, without replacement; under a token budget each in turn if it still fits.

    The gain of a row is the uniform number in [0, 1) that it drew: nothing else decides.
    """

    name: ClassVar[str] = "random"
    keeps_quota: ClassVar[bool] = True

    @property
    def needs(self) -> tuple[str, ...]:
        return ()

    def select(self, pool: Pool, budget: Budget, rng: np.random.Generator) -> Coreset:
        draw = rng.random(pool.n)
        return ranked(pool, draw, budget, {"draw": draw})

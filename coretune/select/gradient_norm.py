"""Largest gradient first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coretune.select.ranking import ranked, usable_feature
from coretune.types import Budget, Coreset, Pool


@dataclass(frozen=True)
class GradientNorm:
    """Rank by ‖∇ℓ_i‖, the GraNd score: Paul, Ganguli, Dziugaite, "Deep Learning on a Data Diet: Finding
    Important Examples Early in Training", NeurIPS 2021 (there the mean over ten initialisations; here the
    model as it stands).
    """

    name: ClassVar[str] = "gradient_norm"
    keeps_quota: ClassVar[bool] = True

    @property
    def needs(self) -> tuple[str, ...]:
        return ("gradient_norm",)

    def select(self, pool: Pool, budget: Budget, rng: np.random.Generator) -> Coreset:
        norm = usable_feature(pool, "gradient_norm").astype(np.float64)
        return ranked(pool, norm, budget, {"gradient_norm": norm})

"""A small method that measures at checkpoints of a warm-up run: the test of what is done around one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from coretune.types import Budget, Coreset, Pool


@dataclass(frozen=True)
class ByCheckpoints:
    """The rows whose `signal` is longest, weighted by their length."""

    signal: str = "gradient"
    checkpoints_from: str = "warmup"
    checkpoints: int = 2

    name: ClassVar[str] = "by_checkpoints"

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.signal,)

    @property
    def defaults(self) -> Mapping[str, Any]:
        return {
            "weighted": True,
            "refresh_every": "never",
            "refresh": {"warmup": 0.25, "anchors": "all", "propagate": "none", "repair": "none"},
            "signals": {"projection_dim": 16},
        }

    def select(self, pool: Pool, budget: Budget, rng: np.random.Generator) -> Coreset:
        length = np.linalg.norm(pool.feature(self.signal), axis=1).astype(np.float64)
        order = np.argsort(-np.where(pool.usable, length, -1), kind="stable")
        rows = order[: budget.amount]
        return Coreset(rows, length[rows] / length[rows].mean(), length[rows], {"length": length})

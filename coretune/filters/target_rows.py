"""The target's own examples are not trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coretune.types import TARGET_ROW, Budget, Pool, Verdict


@dataclass(frozen=True)
class TargetRows:
    """Rows of the pool that equal an example of the target: the same tokens, the same prompt.

    Applied of itself, as the first filter, where a target is given and the pool holds such rows, unless
    `train_on_target` is set. Which rows these are is known before anything is measured (`target_row`).

    Score: 1 for such a row, 0 for all others.
    """

    name: ClassVar[str] = "target_rows"
    says: ClassVar[str] = "an example of the target"

    @property
    def needs(self) -> tuple[str, ...]:
        return ()

    def judge(self, pool: Pool, budget: Budget) -> Verdict:
        if TARGET_ROW not in pool.features:
            raise ValueError(
                "filters has target_rows, and no target is given: set target_data, or leave it out"
            )
        of_target = pool.feature(TARGET_ROW) > 0
        return Verdict(pool.usable & ~of_target, of_target.astype(np.float32))

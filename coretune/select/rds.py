"""RDS+: rows nearest to the target's examples, which take turns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coretune.select.by_target import chosen_for_examples, examples_of
from coretune.select.ranking import usable_feature
from coretune.types import TARGET_SIMILARITY, Budget, Coreset, Pool


@dataclass(frozen=True)
class Rds:
    """Nearest rows by the position-weighted mean of the last hidden states.

    Ivison, Zhang, Brahman, Koh, Dasigi, "Large-Scale Data Selection for Instruction Tuning", 2025,
    arXiv:2503.01807 (RDS+): with h_t the last hidden state at token t of prompt and response

        z_i = Σ_t t h_t / Σ_t t,   similarity_ij = cos(z_i, z_j),  j an example of the target

    and the examples take turns in taking the nearest row that is left. One forward pass without the head.
    Several targets have their shares of the turns [choice].

    Reasons: serves, the example that took the row (of a row not chosen the nearest one); for_target.
    """

    name: ClassVar[str] = "rds"
    keeps_quota: ClassVar[bool] = True

    @property
    def needs(self) -> tuple[str, ...]:
        return (TARGET_SIMILARITY,)

    def select(self, pool: Pool, budget: Budget, rng: np.random.Generator) -> Coreset:
        similarity = usable_feature(pool, TARGET_SIMILARITY)
        of, share = examples_of(pool, similarity.shape[1])
        return chosen_for_examples(pool, similarity, of, share, budget)

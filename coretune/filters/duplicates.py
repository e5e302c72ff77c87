"""Of rows that are the same only one may be chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coretune.select.copies import RESPONSES, best_of_copies
from coretune.select.ranking import usable_feature
from coretune.types import EQUAL_TO, Array, Budget, Pool, Verdict


@dataclass(frozen=True)
class Duplicates:
    """Exact duplicates: rows of the same tokens and the same prompt. The lowest row of each group stays.

    near  a cosine: of rows that are neighbours in the graph and whose responses have at least this cosine,
          about the mean of all, only the one of least loss stays, too. None [choice] = exact duplicates
          alone: on real text a paraphrase can have a lower cosine than two rows that both have to stay

    Which rows are equal is known before anything is measured (feature `equal_to`), so it costs nothing.
    score  1 for a row that equals another which stays, 0 for all others
    """

    near: float | None = None

    name: ClassVar[str] = "duplicates"
    says: ClassVar[str] = "a duplicate of another row"

    def __post_init__(self) -> None:
        if self.near is not None and not 0.0 < self.near <= 1.0:
            raise ValueError(f"duplicates.near is {self.near}: give a cosine above 0, at most 1, or null")

    @property
    def needs(self) -> tuple[str, ...]:
        return (RESPONSES, "loss") if self.near is not None else ()

    def judge(self, pool: Pool, budget: Budget) -> Verdict:
        keep = _first_of_equals(pool)
        if self.near is not None:
            loss = usable_feature(pool, "loss").astype(np.float64)
            keep = keep & best_of_copies(pool, loss, self.near, RESPONSES)
        return Verdict(keep, (pool.usable & ~keep).astype(np.float32))


def _first_of_equals(pool: Pool) -> Array:
    """(n,) bool: usable rows of which no lower usable row is equal."""
    rows = np.flatnonzero(pool.usable)
    first = np.unique(pool.feature(EQUAL_TO)[rows], return_index=True)[1]
    keep = np.zeros(pool.n, bool)
    keep[rows[first]] = True
    return keep

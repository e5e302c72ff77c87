"""Of rows that are the same only one may be chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np

from coretune.choices import refuse_other
from coretune.types import EQUAL_TO, FOLDED_TO, Array, Budget, Pool, Verdict

Alike = Literal["exact", "folded"]


@dataclass(frozen=True)
class Duplicates:
    """Duplicates: of each group of rows that are the same the lowest usable one stays.

    Which rows are the same is known before anything is measured (features `equal_to`, `folded_to`), so it
    costs nothing.

    Attributes:
        alike: "exact": the same tokens and the same prompt; "folded": the same but for upper case, white
            space and punctuation, too (`rounds/folded_duplicates.py`).

    Score: 1 for a row that equals another which stays, 0 for all others.
    """

    alike: Alike = "exact"

    name: ClassVar[str] = "duplicates"
    says: ClassVar[str] = "a duplicate of another row"
    needs: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        refuse_other("duplicates.alike", self.alike, get_args(Alike))

    def judge(self, pool: Pool, budget: Budget) -> Verdict:
        group = pool.feature(EQUAL_TO if self.alike == "exact" else FOLDED_TO)
        rows = np.flatnonzero(pool.usable)
        keep: Array = np.zeros(pool.n, bool)
        keep[rows[np.unique(group[rows], return_index=True)[1]]] = True
        return Verdict(keep, (pool.usable & ~keep).astype(np.float32))

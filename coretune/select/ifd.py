"""IFD: rows whose prompt helps least, as long as it helps."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coretune.select.ranking import ranked, usable_feature
from coretune.types import Budget, Coreset, Pool


@dataclass(frozen=True)
class Ifd:
    """Rank by the instruction-following difficulty, leaving out what the prompt does not help at all.

    Li et al., "From Quantity to Quality: Boosting LLM Performance with Self-Guided Data Selection for
    Instruction Tuning" (Cherry), NAACL 2024, arXiv:2308.12032: highest IFD first, IFD >= 1 dropped, where

        IFD_i = ppl(y_i | x_i) / ppl(y_i)

    (the paper's formula has the ratio of the losses; both cross 1 at the same rows). A budget that the rows
    below 1 cannot fill goes on with the others, lowest IFD first [choice], and warns with both numbers.
    """

    name: ClassVar[str] = "ifd"
    keeps_quota: ClassVar[bool] = True

    @property
    def needs(self) -> tuple[str, ...]:
        return ("loss", "unconditional_loss")

    def select(self, pool: Pool, budget: Budget, rng: np.random.Generator) -> Coreset:
        loss, alone = (usable_feature(pool, name).astype(np.float64) for name in self.needs)
        log_ifd = loss - alone
        helped = log_ifd < 0.0
        # IFD − 1, in (−1, 0), for the rows below 1; −1 or less, falling with IFD, for the others: one order
        worth = np.where(helped, np.expm1(np.minimum(log_ifd, 0.0)), -1.0 - np.maximum(log_ifd, 0.0))
        result = ranked(pool, worth, budget, {"log_ifd": log_ifd})
        over = int((~helped[result.indices]).sum())
        if over:
            warnings.warn(
                f"only {(helped & pool.usable).sum()} usable rows have IFD < 1: {over} of the "
                f"{len(result.indices)} chosen have IFD >= 1; ask for a smaller budget",
                stacklevel=2,
            )
        return result

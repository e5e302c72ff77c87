"""Rows whose loss is far above their neighbours': noise detection for a small model that learns from scratch.

Ours, not a published rule. For pretrained models `noise` finds far more (docs/filters.md): there this filter
finds a third to a half of the wrong responses, and flags a tenth of a clean pool.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from coretune.select.importance import LEAST_LOSS, around
from coretune.select.ranking import usable_feature
from coretune.types import MATCHED, MISMATCHED, Array, Budget, Pool, Rows, Verdict

RATIO_ABOVE, WAY_ABOVE = 1.65, 0.33  # [choice] settled on seeds 0-2 of the skills (docs/results.md)
TOLD_ABOVE = 1.5  # times its loss after its own prompt, a response has after another: it is distinguished
NEARLY = 0.9  # of its loss after another prompt, a response has after its own: it may be wrong


@dataclass(frozen=True)
class Neighbours:
    """Of a loss l among neighbours of median loss m, where a response after another prompt has one of D:
    flagged are rows with l > 1.65 m (both with 0.02 nats added) whose way (l − m) / (D − m) is above 0.33.

    [choice] A share to cut would have to be known: on a clean pool any share cuts the rows that are hard and
    right. The ratio alone takes those too, once their neighbours are learnt and have next to no loss.

    Attributes:
        pairs: Prompts with another row's response that are measured before every selection, beside the same
            responses after their own prompts (`Pool.references`): D is their median.
        min_loss_ratio: Noise detection is on where D is above so many times the median after their own
            prompts; else no row is taken out, and the log says so. 0 = always on.

    Score: the way, in [0, 1].

    Figures: noise_on; matched_loss and mismatched_loss: the medians of the pairs.
    """

    pairs: int = 32
    min_loss_ratio: float = TOLD_ABOVE

    name: ClassVar[str] = "neighbours"
    says: ClassVar[str] = "flagged as noisy: its loss is far above that of rows that ask alike"
    reads_graph: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.pairs < 1:
            raise ValueError(
                f"neighbours.pairs is {self.pairs}: give at least 1 pair, or leave neighbours out"
            )
        if not self.min_loss_ratio >= 0:
            raise ValueError(
                f"neighbours.min_loss_ratio is {self.min_loss_ratio}: give a factor; 0 = always on"
            )

    @property
    def needs(self) -> tuple[str, ...]:
        return ("loss",)

    def judge(self, pool: Pool, budget: Budget) -> Verdict:
        medians = _medians(pool)
        if medians is None:
            return Verdict(pool.usable.copy(), np.full(pool.n, np.nan, np.float32))
        own = usable_feature(pool, "loss").astype(np.float64)
        flagged, way = _against(own, around(pool, own), medians[1])
        keep = pool.usable & ~flagged if self.on(pool) else pool.usable.copy()
        return Verdict(keep, np.where(pool.usable, way, np.nan).astype(np.float32), self.figures(pool))

    def when_measured(self, pool: Pool, rows: Rows) -> Pool:
        """Nothing is kept: a loss is held against those of now."""
        return pool

    def on(self, pool: Pool) -> bool:
        """Whether the model can tell a response to another prompt from one to its own."""
        medians = _medians(pool)
        return medians is not None and medians[1] > self.min_loss_ratio * medians[0]

    def separates(self, pool: Pool) -> bool:
        """The same, where the filter is always on too."""
        medians = _medians(pool)
        return medians is not None and medians[1] > (self.min_loss_ratio or TOLD_ABOVE) * medians[0]

    def seem_wrong(self, pool: Pool) -> int:
        """How many of the pairs' responses would be flagged, were the others their neighbours, and
        have a loss hardly lower after their own prompts than after others."""
        medians = _medians(pool)
        if medians is None:
            return 0
        own = pool.references[MATCHED].astype(np.float64)
        near = own >= NEARLY * pool.references[MISMATCHED]
        return int((_against(own, np.full(len(own), medians[0]), medians[1])[0] & near).sum())

    def figures(self, pool: Pool) -> dict[str, Any]:
        """What a selection says of the noise in its pool; {} without a pair."""
        medians = _medians(pool)
        if medians is None:
            return {}
        costs = dict(zip((MATCHED, MISMATCHED), (round(median, 4) for median in medians), strict=True))
        return {"noise_on": int(self.on(pool)), **costs}


def _against(own: Array, near: Array, mismatched: float) -> tuple[Array, Array]:
    """(n,) bool: flagged; (n,) float64: the way, D − m being at least LEAST_LOSS."""
    ratio = (own + LEAST_LOSS) / (near + LEAST_LOSS)
    way = np.clip((own - near) / np.maximum(mismatched - near, LEAST_LOSS), 0, 1)
    return (ratio > RATIO_ABOVE) & (way > WAY_ABOVE), way


def _medians(pool: Pool) -> tuple[float, float] | None:
    """Median loss of the pairs' responses after their own prompts, and after others; None without a pair.

    ValueError where nobody has measured them.
    """
    if not {MISMATCHED, MATCHED} <= pool.references.keys():
        raise ValueError(
            f"the pool has no references[{MISMATCHED!r}] and [{MATCHED!r}], the losses of responses after "
            "other rows' prompts and after their own: measure them, or leave neighbours out of the filters"
        )
    own, other = pool.references[MATCHED], pool.references[MISMATCHED]
    return (float(np.median(own)), float(np.median(other))) if len(own) and len(other) else None

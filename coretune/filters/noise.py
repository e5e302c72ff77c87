"""Rows whose response seems wrong: their own prompt does not make it likelier."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from coretune.filters.contrast import Decision, centre_and_spread, decide
from coretune.select.importance import LEAST_LOSS
from coretune.select.ranking import usable_feature
from coretune.types import (
    EMPTY_PROMPT_LOSS,
    MATCHED,
    MISMATCHED,
    NOISE_SCORE,
    PAIR_TOKENS,
    RESPONSE_TOKENS,
    UNPROMPTED,
    Array,
    Budget,
    Pool,
    Rows,
    Verdict,
)

LEARNT, CLEARLY = 0.3, -2.0  # [choice] of a row's neighbours; their score at most (docs/filters.md)
TOLD = 0.9  # [choice] clean and wrong rows are distinguished


@dataclass(frozen=True)
class Noise:
    """Ours, by contrast (`contrast.py`): a right response is far likelier with its prompt than without.

    How many rows are flagged is decided from the scores; no share has to be given.

    Attributes:
        pairs: Prompts with another row's response that are measured before every selection, beside the same
            responses after their own prompts and after an empty one (`Pool.references`): they say what wrong
            responses score.
        min_auc: In [0, 1]: noise detection is on where right and wrong responses are separated at least so
            well (area under the ROC curve); else, or where more than 50 % of the rows seem wrong, no row is
            taken out, and the log says so. 0 = always on, however many seem wrong.

    Score: √T log(l / h) of `contrast.py` against that of the pairs (`scores`); about 0 for a wrong row, far
        below for a right one.

    Figures: noise_on, noise_auc, noise_share and noise_cut of the decision; matched_loss, mismatched_loss:
        the median losses of the pairs' responses after their own and after other prompts.
    """

    pairs: int = 64
    min_auc: float = TOLD

    name: ClassVar[str] = "noise"
    reads_graph: ClassVar[bool] = True
    says: ClassVar[str] = "flagged as noisy: its prompt does not make its response likelier"

    def __post_init__(self) -> None:
        if self.pairs < 1:
            raise ValueError(f"noise.pairs is {self.pairs}: give at least 1 pair, or leave noise out")
        if not 0.0 <= self.min_auc <= 1.0:
            raise ValueError(f"noise.min_auc is {self.min_auc}: give a number from 0 to 1; 0 = always on")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("loss", EMPTY_PROMPT_LOSS)

    def judge(self, pool: Pool, budget: Budget) -> Verdict:
        found, score = self.decision(pool), scores(pool)
        if found is None:
            return Verdict(pool.usable.copy(), score)
        flagged = (score >= found.cut) & _learnt(pool, score, found.cut)
        keep = pool.usable & ~flagged if self._is_on(found) else pool.usable.copy()
        return Verdict(keep, score, self._figures(pool, found))

    def figures(self, pool: Pool) -> dict[str, Any]:
        """What a selection says of the noise in its pool; {} without two pairs."""
        found = self.decision(pool)
        return {} if found is None else self._figures(pool, found)

    def _figures(self, pool: Pool, found: Decision) -> dict[str, Any]:
        return {
            "noise_on": int(self._is_on(found)),
            "noise_auc": round(found.auc, 3),
            "noise_share": round(found.share, 3),
            "noise_cut": round(found.cut, 3),
            **{name: round(float(np.median(pool.references[name])), 4) for name in (MATCHED, MISMATCHED)},
        }

    def on(self, pool: Pool) -> bool:
        """Whether the model can tell a response to another prompt from one to its own."""
        found = self.decision(pool)
        return found is not None and self._is_on(found)

    def separates(self, pool: Pool) -> bool:
        """The same, where the filter is always on too."""
        found = self.decision(pool)
        return found is not None and found.on(self.min_auc or TOLD)

    def seem_wrong(self, pool: Pool) -> int:
        """How many of the pairs' responses score as high after their own prompts as half of them do after
        others."""
        own, other = pair_scores(pool)
        return int((own >= np.median(other)).sum()) if len(other) else 0

    def when_measured(self, pool: Pool, rows: Rows) -> Pool:
        """The pool with the scores of rows that were just measured, against the pairs measured with them.

        NaN where noise detection was off then: of such a row nothing is known.
        """
        if EMPTY_PROMPT_LOSS not in pool.features:
            return pool
        own, other = pair_scores(pool)
        fresh = _against_pairs(pool)
        score = pool.features.get(NOISE_SCORE, fresh).astype(np.float32)
        # By the pairs alone: the rows measured may be chosen ones.
        known = len(other) > 1 and decide(own, own, other).auc >= self.min_auc
        score[rows] = fresh[rows] if known else np.nan
        return replace(pool, features={**pool.features, NOISE_SCORE: score})

    def decision(self, pool: Pool) -> Decision | None:
        """For the rows with a score; where there is none, for the pairs' own. None without two pairs."""
        own, other = pair_scores(pool)
        if len(other) < 2:
            return None
        score = scores(pool) if EMPTY_PROMPT_LOSS in pool.features else own
        score = score[np.isfinite(score)]
        return decide(score if len(score) else own, own, other)

    def _is_on(self, found: Decision) -> bool:
        return self.min_auc == 0.0 or found.on(self.min_auc)


def scores(pool: Pool) -> Array:
    """(n,) float32: √T log(l / h) less its median for the pairs' responses after other prompts, in their
    standard deviations; 0 = as half of the wrong ones. Of each row when it was measured.

    NaN for rows that are not usable, or that were measured while noise detection was off.

    [choice] While a model is trained, what wrong responses score moves by more than their spread: a row is
    held against the pairs that were measured with the same weights.
    """
    found = pool.feature(NOISE_SCORE) if NOISE_SCORE in pool.features else _against_pairs(pool)
    return np.where(pool.usable, found, np.nan).astype(np.float32)


def _learnt(pool: Pool, score: Array, cut: float) -> Array:
    """(n,) bool: of a row's neighbours with a score at least LEARNT are clearly right; true without any.

    [choice] What the model has not learnt yet scores like noise, but so do all rows that ask alike.
    """
    if pool.graph is None:
        raise ValueError(
            "noise compares rows along the k-NN graph, but the pool has none: build the graph first"
        )
    neighbors = pool.graph.neighbors
    counted = (neighbors >= 0) & np.isfinite(score)[neighbors]
    right = counted & (score[neighbors] < min(cut, CLEARLY))
    found: Array = right.sum(axis=1) >= LEARNT * counted.sum(axis=1)
    return found


def _against_pairs(pool: Pool) -> Array:
    """(n,) float64: of all rows, as if the pairs had been measured with each."""
    centre, spread = centre_and_spread(_measured_pairs(pool)[1])
    loss, empty = usable_feature(pool, "loss"), usable_feature(pool, EMPTY_PROMPT_LOSS)
    found: Array = (_score(loss, empty, pool.feature(RESPONSE_TOKENS)) - centre) / spread
    return found


def _score(loss: Array, empty: Array, tokens: Array) -> Array:
    """(n,) float64; LEAST_LOSS keeps a loss of 0 finite, and one that was propagated may be below it."""
    ratio = (np.maximum(loss, 0).astype(np.float64) + LEAST_LOSS) / (empty.astype(np.float64) + LEAST_LOSS)
    found: Array = np.sqrt(tokens) * np.log(ratio)
    return found


def pair_scores(pool: Pool) -> tuple[Array, Array]:
    """(m,) float64 each, as in `scores`: of the pairs' responses after their own prompts, and after others.

    ValueError where nobody has measured them.
    """
    own, other = _measured_pairs(pool)
    centre, spread = centre_and_spread(other)
    return (own - centre) / spread, (other - centre) / spread


def _measured_pairs(pool: Pool) -> tuple[Array, Array]:
    """√T log(l / h) of both."""
    names = (MATCHED, MISMATCHED, UNPROMPTED, PAIR_TOKENS)
    missing = [name for name in names if name not in pool.references]
    if missing:
        raise ValueError(
            f"the pool has no references[{missing[0]!r}], of responses after other rows' prompts and after "
            "their own: measure them, or leave noise out of coreset.filters"
        )
    own, other, empty, tokens = (pool.references[name] for name in names)
    return _score(own, empty, tokens), _score(other, empty, tokens)

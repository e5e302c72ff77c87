"""Which responses are wrong, by how much their own prompt helps, and how many: numbers only.

A response y of T tokens has a loss of l nats a token after its prompt x, and of h after an empty prompt:

    s = √T log(l / h)                                            the noise score

A right response is far likelier with its prompt: s is far below 0. A wrong one gains nothing: s is about 0.
What wrong responses score is measured on pairs made for it, responses after other rows' prompts; so no share
of wrong rows and no threshold has to be given:

    share    π = 2 · P(s above the pairs' median), for hardly any right response scores so high
    cut      begins at the t below which MISSED of the pairs score, and rises, to their median at most, until
             at most FLAGGED of the clean rows score as high: P(s ≥ t) − π P(pairs ≥ t) ≤ FLAGGED (1 − π),
             allowed for the error of π; never so low that more than MOST_WRONG of all rows are flagged

l / h is IFD's ratio (Li et al., NAACL 2024). [choice] √T, for a mean over T tokens varies as 1 / √T: a short
response has to differ more from the others before it is flagged. docs/filters.md compares.
Pairs made to be wrong: after the decoys of Elias and Gygi, Nature Methods 2007. The rest is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from coretune.types import Array

MISSED, FLAGGED = 0.09, 0.01  # of wrong rows, of right ones [choice: settled on two pools, docs/filters.md]
#: A larger estimated share of wrong rows is not believed: no row is flagged then. [choice] What a model has
#: not learnt yet scores as wrong responses do.
MOST_WRONG = 0.5


@dataclass(frozen=True)
class Decision:
    """What is known of a pool's noise.

    cut     rows that score at least so much are flagged, where `on`
    share   the estimated share of wrong rows
    auc     the estimated area under the ROC curve of clean against wrong rows, from 0.5 (not at all) to 1
    """

    cut: float
    share: float
    auc: float

    def on(self, min_auc: float) -> bool:
        """Whether rows are flagged: right and wrong ones have to be distinguished at least so well."""
        return self.auc >= min_auc and self.share <= MOST_WRONG


def decide(scores: Array, own: Array, pairs: Array) -> Decision:
    """The decision for rows of these scores.

    scores  (n,) of the rows, finite
    own     (m,) of the pairs' responses after their own prompts
    pairs   (m,) of the same responses after other prompts, finite; m >= 2
    """
    centre, spread = centre_and_spread(pairs)
    share = min(1.0, 2.0 * float((scores > centre).mean()))
    auc = _auc(own, pairs, share)
    missed = np.linspace(MISSED, 0.5, 100)
    cuts = centre + spread * _quantile(missed)  # a smooth curve: of few pairs the quantiles themselves jump
    flagged = 1.0 - np.searchsorted(np.sort(scores), cuts, side="left") / len(scores)
    right = flagged - share * (1.0 - missed)
    error = 2.0 * share / np.sqrt(len(pairs))  # two standard errors of the share, whose pairs are few
    fine = np.flatnonzero(right <= FLAGGED * (1.0 - share) + error)
    cut = float(cuts[fine[0] if len(fine) else -1])
    least = np.nextafter(np.float32(np.quantile(scores, 1.0 - MOST_WRONG)), np.float32(np.inf))
    return Decision(max(cut, float(least)), share, auc)


def centre_and_spread(pairs: Array) -> tuple[float, float]:
    """The median, and the standard deviation of a normal distribution with the same lower half: the cut lies
    there. 0 and 1 of fewer than two."""
    if len(pairs) < 2:
        return 0.0, 1.0
    low, middle = np.quantile(pairs, [0.1, 0.5])
    return float(middle), max(float(middle - low) / float(-_quantile(0.1)), 1e-6)


def _quantile(share: Any) -> Any:
    """Of the standard normal distribution."""
    from scipy.special import ndtri  # late: a mistake in a config is reported without it

    return ndtri(share)


def _auc(own: Array, pairs: Array, share: float) -> float:
    """P(a right response scores below a wrong one), of own prompts of which `share` are wrong themselves."""
    seen = float((own[:, None] < pairs[None, :]).mean() + 0.5 * (own[:, None] == pairs[None, :]).mean())
    right = 1.0 - min(share, MOST_WRONG)
    return float(np.clip((seen - 0.5 * (1.0 - right)) / right, 0.0, 1.0))

"""How much a row matters by itself: a small family of scores, one function each.

Every signal is a mean over the response's tokens, so none of them grows with length [choice].
GRACE [paper] uses gradient-based importance; on a dirty pool the plain norm ranks wrong rows first, hence the
others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from coretune.select.ranking import usable_feature
from coretune.types import Array, Pool

LEAST_LOSS = 0.02  # nats a token [choice]


@dataclass(frozen=True)
class Importance:
    """A score and what must be measured for it.

    needs  names of signals
    score  Pool -> (n,) float64, the raw score; anything on unusable rows
    """

    needs: tuple[str, ...]
    score: Callable[[Pool], Array]


def gradient_norm(pool: Pool) -> Array:
    """‖∂ℓ_i/∂φ‖, φ the last blocks' adapter or attention-output weights (STAFF, Zhang et al., ICLR 2025)."""
    return _signal(pool, "gradient_norm")


def loss(pool: Pool) -> Array:
    """The response's loss ℓ_i."""
    return _signal(pool, "loss")


def learnability(pool: Pool) -> Array:
    """ℓ_i one exact measurement ago − ℓ_i now: high for what is being learnt, low for noise.

    After the reducible holdout loss of Mindermann et al., ICML 2022, where the reference is another model.
    0 where there was no measurement before [choice], as in the first round.
    """
    previous = pool.feature("previous_loss")
    return np.where(np.isfinite(previous), previous - _signal(pool, "loss"), 0.0)


#: name in the configuration -> score
IMPORTANCES: dict[str, Importance] = {
    "gradient_norm": Importance(("gradient_norm",), gradient_norm),
    "learnability": Importance(("loss",), learnability),  # previous_loss is kept by the refresh, not measured
    "loss": Importance(("loss",), loss),
}


def importance(name: str) -> Importance:
    """The importance of that name; ValueError with the names there are."""
    if name not in IMPORTANCES:
        raise ValueError(f"no importance is named {name!r}; there are {', '.join(IMPORTANCES)}")
    return IMPORTANCES[name]


def scaled(raw: Array, usable: Array) -> Array:
    """(n,) float64 ranks of the usable rows brought to [0, 1]; equal scores share their mean rank.

    Unusable rows get 0. By rank [choice], so that one outlier does not flatten all the others. All equal, or
    only one row: 0.5.
    """
    result = np.zeros(len(raw))
    _, position, count = np.unique(raw[usable], return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(count) - (count + 1) / 2.0  # 0-based
    last = count.sum() - 1
    result[usable] = (mean_rank / last)[position] if last > 0 else 0.5
    return result


def around(pool: Pool, score: Array) -> Array:
    """(n,) median score of each row's usable graph neighbours; its own where it has none."""
    if pool.graph is None:
        raise ValueError(
            "rows are compared along the k-NN graph, but the pool has none: build the graph first"
        )
    neighbors = pool.graph.neighbors
    counted = (neighbors >= 0) & pool.usable[neighbors]  # (n, k)
    sorted_ = np.sort(
        np.where(counted, score[neighbors], np.inf), axis=1
    )  # those that do not count come last
    count = counted.sum(axis=1)
    middle = np.stack([np.maximum(count - 1, 0) // 2, count // 2], axis=1)
    median = np.take_along_axis(sorted_, np.minimum(middle, sorted_.shape[1] - 1), axis=1).mean(axis=1)
    return np.where(count > 0, median, score)


def _signal(pool: Pool, name: str) -> Array:
    return usable_feature(pool, name).astype(np.float64)

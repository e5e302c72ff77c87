"""A percentile interval of a mean, for few values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000


def bootstrap(values: Sequence[float], share: float = 0.95) -> tuple[float, float]:
    """The percentile interval of the mean over resamples of the values, drawn with seed 0; NaN below two.

    With five values it is narrower than Student's t gives: read it beside the standard error.
    """
    array = np.asarray(values, float)
    if len(array) < 2:
        return float("nan"), float("nan")
    drawn = np.random.default_rng(0).integers(len(array), size=(RESAMPLES, len(array)))
    low, high = np.quantile(array[drawn].mean(axis=1), [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)

"""What a row's region is worth, by its losses. Ours: GRACE's paper knows no weights of the rows covered."""

from __future__ import annotations

import numpy as np

from coretune.select.importance import LEAST_LOSS, around
from coretune.select.ranking import usable_feature
from coretune.types import Array, Pool

STANDING_LOSS = "standing_loss"  # a feature: the losses by which regions are weighed


def regional_loss(pool: Pool) -> Array:
    """(n,) float64 of mean 1 over the usable rows, 0 for the others [choice]: the median loss of each row's
    usable graph neighbours, and LEAST_LOSS.

    Of the losses when the refresh began, where the pool has them as `standing_loss` (`policies/reuse.py`).
    """
    losses = usable_feature(pool, STANDING_LOSS if STANDING_LOSS in pool.features else "loss")
    near = around(pool, losses.astype(np.float64))[pool.usable]
    demand = np.zeros(pool.n)
    demand[pool.usable] = np.maximum(near, 0.0) + LEAST_LOSS
    demand[pool.usable] /= demand[pool.usable].mean()
    return demand

"""Ours: rows drawn at random before the first measurement, those of the warm-up and, as long as it would tell
nothing (`CoresetConfig.defer_first_measurement`), those after it. When that is, `Reuse.defers` says.

responses after their own and after other prompts ─► noise detection is on ─► first measurement
                                                     it does not ─► the next rows of the draw

[choice] A measurement that was deferred costs more of the training that is left, so it comes only where there
seems to be something to find: where at least one of the pairs' responses seems wrong by itself (`seem_wrong`
of the filter).
"""

from __future__ import annotations

import numpy as np

from coretune.policies.reuse import noise_is_off, noise_sought
from coretune.rounds.coreset_config import CoresetConfig
from coretune.rounds.measurement import Measurement
from coretune.select.ranking import coreset, take_in_order
from coretune.types import TARGET_ROW, TRAINED_TIMES, Array, Coreset, Pool, Rows


def warmup_rows(config: CoresetConfig, pool: Pool, measurement: Measurement | None, most: int) -> Rows:
    """(at most `most`,) random usable rows; of a method with a noise filter drawn as by `draw`."""
    if measurement is not None and noise_sought(config) is not None:
        order, _ = _order(config, pool, np.zeros(pool.n), measurement, 0)
    else:
        order = np.random.default_rng([config.seed, 0, 2]).permutation(pool.n)
    return order[trainable(config, pool)[order]][:most].astype(np.int64)


def trainable(config: CoresetConfig, pool: Pool) -> Array:
    """(n,) bool: usable rows that may be trained on before any filter is applied: no examples of a target."""
    if config.train_on_target or TARGET_ROW not in pool.features:
        return pool.usable
    return pool.usable & (pool.feature(TARGET_ROW) == 0)


def draw(config: CoresetConfig, pool: Pool, measurement: Measurement, number: int) -> Coreset:
    """[choice] The budget's fill of random rows, each of equals once, nobody twice before all came once.

    number  of the round
    """
    order, luck = _order(config, pool, pool.feature(TRAINED_TIMES), measurement, number)
    budget = config.with_quota(pool, config.budget.resolve(pool))
    rows = take_in_order(order[trainable(config, pool)[order]], pool.cost, budget)
    assert config.noise is not None  # without it nothing is deferred
    nobody = {} if noise_is_off(config, pool) else {"seem_wrong": 0}
    figures = {"drawn": 1, **nobody, **config.noise.figures(pool)}
    return coreset(rows, luck[rows], {"draw": luck}, figures=figures)


def _order(
    config: CoresetConfig, pool: Pool, times: Array, measurement: Measurement, number: int
) -> tuple[Rows, Array]:
    """(n,) all rows in the order in which they are drawn, and (n,) what luck each had.

    times   (n,) how often each row was trained on
    """
    everyone = np.arange(pool.n)
    again = ~np.isin(everyone, measurement.distinct(everyone))
    luck = np.random.default_rng([config.seed, number, 2]).random(pool.n)
    return np.lexsort((luck, times, again)), luck

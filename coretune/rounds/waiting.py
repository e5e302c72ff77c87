"""Before the first look at the pool rows are drawn: the warm-up's, and as long as a look would tell nothing
those after it (`CoresetConfig.wait`).

responses after their own and after other prompts ─► the model tells them apart ─► first look (`looking.py`)
                                                     it does not ─► the next rows of the draw, no look

[choice] A look that has waited costs more of the training that is left, so it comes only where there seems to
be somebody to find: where one at least of the 32 responses seems wrong by itself (`suspects` of the filter).
"""

from __future__ import annotations

import numpy as np

from coretune.ledger import Ledger
from coretune.rounds.looking import (
    Meter,
    due,
    meter_of,
    noise_is_off,
    noise_sought,
    unmeasured,
    with_references,
)
from coretune.rounds.schedule import CoresetConfig
from coretune.rounds.state import State
from coretune.select.ranking import coreset, take_in_order
from coretune.types import MATCHED, Array, Coreset, Pool, Rows


def asked(config: CoresetConfig, state: State, meter: Meter, ledger: Ledger) -> Pool:
    """The pool; where its first look may wait with what its rows would be compared with, which is asked anew
    each time the run is `look_again` times as old."""
    pool = state.pool
    if not _may_wait(config, pool):
        return pool
    if MATCHED in pool.references and not due(config.refresh.look_again, state.round, state.selected_in):
        return pool
    return with_references(pool, meter_of(meter, pool), ledger)


def waits(config: CoresetConfig, state: State) -> bool:
    """Whether the first look would tell nothing yet or, once it has waited, find nobody."""
    pool, noise = state.pool, noise_sought(config)
    if noise is None or not _may_wait(config, pool):
        return False
    return noise_is_off(config, pool) or (state.selections > 0 and noise.suspects(pool) == 0)


def _may_wait(config: CoresetConfig, pool: Pool) -> bool:
    asks_again = config.refresh_every != "never"
    return config.wait and asks_again and noise_sought(config) is not None and unmeasured(pool)


def warmup_rows(config: CoresetConfig, pool: Pool, meter: Meter | None, most: int) -> Rows:
    """(at most `most`,) random usable rows; of a method that suspects rows drawn as by `draw`."""
    if meter is not None and noise_sought(config) is not None:
        order, _ = _order(config, pool, np.zeros(pool.n), meter, 0)
    else:
        order = np.random.default_rng([config.seed, 0, 2]).permutation(pool.n)
    return order[pool.usable[order]][:most].astype(np.int64)


def draw(config: CoresetConfig, pool: Pool, times: Array, meter: Meter, number: int) -> Coreset:
    """[choice] The budget's fill of random rows, each of equals once, nobody twice before all came once.

    times   (n,) how often each row was trained on
    number  of the round
    """
    order, luck = _order(config, pool, times, meter, number)
    budget = config.budget.resolve(pool)
    if config.quota is not None:
        budget = config.with_quota(pool, budget)
    rows = take_in_order(order[pool.usable[order]], pool.cost, budget)
    assert config.noise is not None  # without it nothing is deferred
    nobody = {} if noise_is_off(config, pool) else {"suspects": 0}
    figures = {"drawn": 1, **nobody, **config.noise.figures(pool)}
    return coreset(rows, luck[rows], {"draw": luck}, figures=figures)


def _order(config: CoresetConfig, pool: Pool, times: Array, meter: Meter, number: int) -> tuple[Rows, Array]:
    """(n,) all rows in the order in which they are drawn, and (n,) what luck each had."""
    everyone = np.arange(pool.n)
    again = ~np.isin(everyone, meter.distinct(everyone))
    luck = np.random.default_rng([config.seed, number, 2]).random(pool.n)
    return np.lexsort((luck, times, again)), luck

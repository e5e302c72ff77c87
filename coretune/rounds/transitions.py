"""States made from states: at the beginning of a run, after training, and for those who need less of one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from coretune.rounds.coreset_config import CoresetConfig
from coretune.rounds.order import round_order
from coretune.rounds.schedule import Schedule
from coretune.rounds.state import State
from coretune.types import (
    EQUAL_TO,
    FOLDED_TO,
    RESPONSE_TOKENS,
    TRAINED_AT,
    TRAINED_TIMES,
    Array,
    Coreset,
    Pool,
    Rows,
)

NO_SELECTION = -1


def empty_pool(cost: Array, equal_to: Rows | None = None, response: Array | None = None) -> Pool:
    """A pool of which nothing is known but what a row costs, and which rows are equal; their format counts
    (FOLDED_TO) until somebody says which are the same but for it.

    cost      (n,) tokens
    equal_to  (n,) the lowest row that is equal to each; None = no two rows are
    response  (n,) tokens of the response; None = all of them
    """
    n = len(cost)
    equal = np.arange(n) if equal_to is None else equal_to
    return Pool(
        features={
            TRAINED_AT: np.full(n, -1, np.int32),
            TRAINED_TIMES: np.zeros(n, np.int32),
            EQUAL_TO: equal.astype(np.int32),
            FOLDED_TO: equal.astype(np.int32),
            RESPONSE_TOKENS: np.asarray(cost if response is None else response, np.int32),
        },
        cost=np.asarray(cost, np.int64),
        measured_at=np.full(n, -1, np.int32),
        usable=np.ones(n, bool),
    )


def whole_pool(cost: Array) -> State:
    """Before there is a coreset: the pool itself, every row once a pass."""
    rows = np.arange(len(cost), dtype=np.int64)
    return warming_up(empty_pool(cost), rows)


def warming_up(pool: Pool, rows: Rows) -> State:
    """Round 0 of a run, on rows that no selection chose."""
    return State(0, NO_SELECTION, 0, pool, Coreset(rows, np.ones(len(rows)), np.zeros(len(rows))))


def after_steps(state: State, schedule: Schedule, steps: int, seed: int) -> State:
    """The state after `steps` of its round's steps, for the rest of the round to go on in another batch.

    The coreset's passes go on where they stopped: no row is skipped and none comes again.
    schedule  under which the steps were made
    """
    order = round_order(state, schedule, seed)
    rows = order.of(order.skipped, max(order.skipped, steps * schedule.batch))
    return replace(trained(state, rows), skipped=steps)


def without_measurements(state: State) -> State:
    """The state without what is known of the pool and why rows were chosen: as much as training needs."""
    slim = replace(state.coreset, reasons={}, filters=(), filtered=None)
    return replace(state, pool=empty_pool(state.pool.cost), coreset=slim)


def without_unread_features(config: CoresetConfig, state: State) -> State:
    """The state without what no later round reads of the pool: features of more than a number a row, where
    nothing is selected again or every row is measured again first. They may be larger than the memory.
    """
    if config.refresh_every != "never" and not config.refresh.starts_anew:
        return state
    features = {name: value for name, value in state.pool.features.items() if value.ndim == 1}
    return replace(state, pool=replace(state.pool, features=features))


def row_weights(state: State) -> Array:
    """(n,) float64: each pool row's weight in the loss, 0 for rows outside the coreset."""
    weights = np.zeros(state.pool.n)
    weights[state.coreset.indices] = state.coreset.weights
    return weights


def trained(state: State, rows: Rows) -> State:
    """The state after training on the next `rows` of the passes."""
    stamped, times = state.pool.feature(TRAINED_AT).copy(), state.pool.feature(TRAINED_TIMES).copy()
    stamped[rows] = state.selections
    np.add.at(times, rows, 1)
    features = {**state.pool.features, TRAINED_AT: stamped, TRAINED_TIMES: times}
    return replace(state, pool=replace(state.pool, features=features), cursor=state.cursor + len(rows))

"""One round of a run: plan → measure → absorb → select. Pure functions over a state (`state.py`).

    rounds    0        1        2        3        4
              warm-up  select   ·        refresh  ·          (a refresh every two rounds)

A round is a fixed number of optimiser steps, one epoch of the Trainer. The warm-up fills the first rounds
with random rows, so that gradients mean something; then a coreset is chosen, and again when a refresh is due.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from coretune.ledger import Ledger, Round, overlap
from coretune.neighbors import graph
from coretune.refreshing.approximation import compare
from coretune.rounds.looking import (
    Looked,
    Meter,
    look,
    look_around,
    meter_of,
    select,
    unmeasured,
    with_found,
)
from coretune.rounds.order import round_order
from coretune.rounds.schedule import Clock, CoresetConfig
from coretune.rounds.state import State
from coretune.rounds.waiting import asked, draw, waits, warmup_rows
from coretune.select.copies import COPY_COSINE, copies_by, copy_groups
from coretune.types import (
    EQUAL_TO,
    RESPONSE_TOKENS,
    TRAINED_AT,
    TRAINED_TIMES,
    Array,
    Coreset,
    Pool,
    Rows,
    Valued,
)

NO_SELECTION = -1


def empty_pool(cost: Array, equal_to: Rows | None = None, response: Array | None = None) -> Pool:
    """A pool of which nothing is known but what a row costs, and which rows are equal.

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
            RESPONSE_TOKENS: np.asarray(cost if response is None else response, np.int32),
        },
        cost=np.asarray(cost, np.int64),
        measured_at=np.full(n, -1, np.int32),
        usable=np.ones(n, bool),
    )


def whole(cost: Array) -> State:
    """Before there is a coreset: the pool itself, every row once a pass."""
    rows = np.arange(len(cost), dtype=np.int64)
    return State(0, NO_SELECTION, 0, empty_pool(cost), Coreset(rows, np.ones(len(rows)), np.zeros(len(rows))))


def start(config: CoresetConfig, pool: Pool, clock: Clock, meter: Meter | None, ledger: Ledger) -> State:
    """Round 0: the warm-up's random rows, or the first selection where there is none."""
    config.budget.resolve(pool)  # a budget that cannot be filled is an error now, not after the warm-up
    if clock.warmup_rounds:
        rows = warmup_rows(config, pool, meter, clock.rows * clock.warmup_rounds)
        return State(0, NO_SELECTION, 0, pool, Coreset(rows, np.ones(len(rows)), np.zeros(len(rows))))
    return _refresh(config, State(0, NO_SELECTION, 0, pool, _nothing()), meter, ledger)


def advance(config: CoresetConfig, state: State, clock: Clock, meter: Meter | None, ledger: Ledger) -> State:
    """The state of the next round: the same coreset, or a new one when a refresh is due."""
    rows = round_order(state, clock, config.seed).trained
    state = replace(_trained(state, rows), round=state.round + 1, skipped=0)
    if state.round < clock.warmup_rounds:
        return state
    if state.selected_in == NO_SELECTION:
        return _refresh(config, state, meter, ledger)
    if clock.every == 0 or (state.round - clock.warmup_rounds) % clock.every:
        return state
    return _refresh(config, state, meter, ledger)


def relaid(state: State, clock: Clock, steps: int, seed: int) -> State:
    """The state after `steps` of its round's steps, for the rest of the round to go on in another batch.

    The coreset's passes go on where they stopped: no row is skipped and none comes again.
    clock  under which the steps were made
    """
    order = round_order(state, clock, seed)
    rows = order.of(order.skipped, max(order.skipped, steps * clock.batch))
    return replace(_trained(state, rows), skipped=steps)


def unseen(state: State) -> State:
    """The state without what is known of the pool and why rows were chosen: as much as training needs."""
    slim = replace(state.coreset, reasons={}, filters=(), filtered=None)
    return replace(state, pool=empty_pool(state.pool.cost), coreset=slim)


def lasting(config: CoresetConfig, state: State) -> State:
    """The state without what no later round reads of the pool: features of more than a number a row, where
    nothing is selected again or every row is measured again first. They may be larger than the memory.
    """
    if config.refresh_every != "never" and config.refresh.follows_graph:
        return state
    features = {name: value for name, value in state.pool.features.items() if value.ndim == 1}
    return replace(state, pool=replace(state.pool, features=features))


def row_weights(state: State) -> Array:
    """(n,) float64: each pool row's weight in the loss, 0 for rows outside the coreset."""
    weights = np.zeros(state.pool.n)
    weights[state.coreset.indices] = state.coreset.weights
    return weights


def _nothing() -> Coreset:
    return Coreset(np.zeros(0, np.int64), np.zeros(0), np.zeros(0))


def _trained(state: State, rows: Rows) -> State:
    """The state after training on the next `rows` of the passes."""
    stamped, times = state.pool.feature(TRAINED_AT).copy(), state.pool.feature(TRAINED_TIMES).copy()
    stamped[rows] = state.selections
    np.add.at(times, rows, 1)
    features = {**state.pool.features, TRAINED_AT: stamped, TRAINED_TIMES: times}
    return replace(state, pool=replace(state.pool, features=features), cursor=state.cursor + len(rows))


def _refresh(config: CoresetConfig, state: State, meter: Meter | None, ledger: Ledger) -> State:
    """Measure the planned rows, absorb what they tell, choose again unless the adaptive test says wait."""
    began = ledger.clock()
    if config.needs and meter is not None:
        state = replace(state, pool=asked(config, state, meter, ledger))
        if waits(config, state):
            return _drawn(config, state, meter, ledger, began)
    pool = state.pool
    looked = Looked(pool, pool, np.zeros(0, np.int64), 0, 0)
    figures: dict[str, float] = {}
    if config.needs:
        looked = look_around(config, state, meter, ledger)
        pool = looked.pool
        if meter is not None and meter.harvested is not None:
            figures["rows_harvested"] = float(looked.harvested)
        if config.refresh_every == "adaptive" and _settled(config, state, pool, looked.rows):
            return replace(state, pool=pool)
        with ledger.phase("graph"):
            figures |= _graph_figures(config, state, pool)
    coreset = with_found(config, state, looked, select(config, looked.choosing, state.round, ledger))
    seconds = ledger.clock() - began
    figures |= _audit(config, state, pool, coreset, meter, ledger)
    same = overlap(state.coreset.indices if state.selections else None, coreset.indices)
    chosen = len(coreset.indices)
    ledger.add_round(Round(state.round, looked.passed, chosen, seconds, same, figures, coreset.figures))
    return State(state.round, state.round, state.selections + 1, pool, coreset)


def _drawn(config: CoresetConfig, state: State, meter: Meter, ledger: Ledger, began: float) -> State:
    """A coreset without a look, while a look would tell nothing or find nobody.

    What training has shown is forgotten: kept, it would become as large as the pool's signals.
    """
    pool = state.pool
    if meter.harvested is not None:
        meter.harvested()
    with ledger.phase("selection"):
        chosen = draw(config, pool, pool.feature(TRAINED_TIMES), meter, state.round)
    same = overlap(state.coreset.indices if state.selections else None, chosen.indices)
    rows, seconds = len(chosen.indices), ledger.clock() - began
    ledger.add_round(Round(state.round, 0, rows, seconds, same, {}, chosen.figures))
    return State(state.round, state.round, state.selections + 1, pool, chosen)


def _settled(config: CoresetConfig, state: State, pool: Pool, rows: Rows) -> bool:
    """Is what was believed of the anchors still true enough to keep the coreset?"""
    if not state.selections or not pool.usable[state.coreset.indices].all():
        return False
    rows = rows[pool.usable[rows]]
    if len(rows) == 0:
        return True
    name = config.refresh.priority_score
    believed, found = state.pool.feature(name)[rows], pool.feature(name)[rows]
    error = np.abs(found - believed).mean() / max(float(np.abs(believed).mean()), 1e-12)
    return bool(error <= config.threshold)


def _graph_figures(config: CoresetConfig, state: State, pool: Pool) -> dict[str, float]:
    """Of a graph that was made anew, else {}: near_copies, the share of rows that have one, where there are
    any; graph_recall, the share of true neighbours listed, where they were not all searched exactly."""
    made = pool.graph
    if made is None or made is state.pool.graph or made.reserve is None:
        return {}
    if made.built_from.dtype == np.float16:  # mended: most lists are from before
        return {}
    group = copy_groups(pool, COPY_COSINE, copies_by(pool, config.refresh.embedding))
    rows = np.bincount(group, minlength=made.n)[group] > 1
    figures = {"near_copies": float(rows.mean())} if rows.any() else {}
    if len(made.reserve.centroids) > 1:
        rng = np.random.default_rng([config.seed, state.round, 5])
        figures["graph_recall"] = graph.recall(made, pool.feature(config.refresh.embedding), rng)
    return figures


def _audit(
    config: CoresetConfig, state: State, pool: Pool, coreset: Coreset, meter: Meter | None, ledger: Ledger
) -> Mapping[str, float]:
    """How far the propagated pool is from a full measurement at the same weights; its cost is "other"."""
    if not (config.audit_every and config.needs and state.selections) or unmeasured(state.pool):
        return {}
    if state.selections % config.audit_every:
        return {}
    refresh, selector = config.refresh, config.selector
    with ledger.phase("other"):
        everyone = np.flatnonzero(state.pool.usable)
        fresh = look(meter_of(meter, pool), pool, everyone, ledger, "other")
        oracle = replace(refresh, anchors="all", repair="rebuild")
        exact = oracle.absorb(state.pool, everyone, fresh, state.round)
        rng = np.random.default_rng([config.seed, state.round, 4])
        wanted = config.select(exact, config.budget.resolve(exact), rng)
        value = selector.value if isinstance(selector, Valued) else None
        return compare(pool, exact, refresh.priority_score, refresh.embedding, coreset, wanted, value)

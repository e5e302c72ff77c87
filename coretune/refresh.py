"""One refresh, from top to bottom: all that happens between two coresets.

    due? ─► references ─► plan ─► measure ─► update ─► filter and select ─► record
                            ▲      more?       │
                            └──────────────────┘

A round is a fixed number of optimiser steps, one epoch of the Trainer. The first rounds train on random rows,
the warm-up, so that gradients mean something; then a coreset is chosen, and again when a refresh is due.

Pure functions over a state (`rounds/state.py`). Whom to measure: `policies/reuse.py`, ours and the default,
which may also draw at random for now, and `policies/paper.py`, GRACE's. What is measured:
`rounds/measurement.py`. The estimates of the others: `policies/update.py`. Filters and method:
`CoresetConfig.select`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from coretune.ledger import Ledger, Round, overlap
from coretune.policies.approximation import beside_full_measurement, graph_figures
from coretune.policies.deferral import draw, warmup_rows
from coretune.policies.narrowing import narrowed
from coretune.policies.reuse import policy_of, with_found
from coretune.policies.update import update
from coretune.rounds.coreset_config import CoresetConfig
from coretune.rounds.measurement import NO_ROWS, Known, Measurement
from coretune.rounds.order import round_order
from coretune.rounds.schedule import Schedule
from coretune.rounds.state import State
from coretune.rounds.transitions import NO_SELECTION, trained, warming_up
from coretune.types import Coreset, Pool, RefreshPolicy


def start(
    config: CoresetConfig, pool: Pool, schedule: Schedule, measurement: Measurement | None, ledger: Ledger
) -> State:
    """Round 0: the warm-up's random rows, or the first selection where there is none."""
    config.budget.resolve(pool)  # a budget that cannot be filled is an error now, not after the warm-up
    if schedule.warmup_rounds:
        return warming_up(
            pool, warmup_rows(config, pool, measurement, schedule.rows * schedule.warmup_rounds)
        )
    return refresh(config, warming_up(pool, NO_ROWS), measurement, ledger)


def advance(
    config: CoresetConfig, state: State, schedule: Schedule, measurement: Measurement | None, ledger: Ledger
) -> State:
    """The state of the next round: the same coreset, or a new one when a refresh is due."""
    rows = round_order(state, schedule, config.seed).trained
    state = replace(trained(state, rows), round=state.round + 1, skipped=0)
    if state.round < schedule.warmup_rounds:
        return state
    again = schedule.every and (state.round - schedule.warmup_rounds) % schedule.every == 0
    if again or state.selected_in == NO_SELECTION:
        return refresh(config, state, measurement, ledger)
    return state


def refresh(config: CoresetConfig, state: State, measurement: Measurement | None, ledger: Ledger) -> State:
    """The state with a coreset chosen anew of what is known now, and what that took in the ledger."""
    began, choose = ledger.clock(), partial(select, config, round=state.round, ledger=ledger)
    if not config.needs:  # the method measures nothing
        return record(state, state.pool, choose(state.pool), ledger, ledger.clock() - began)
    if measurement is None:
        raise ValueError("this method measures the pool, so it needs a model to measure with")

    # What rows are compared with, under the weights of now; and whether they are to be measured already.
    before, source = state.pool, measurement.now(state.pool)
    policy = policy_of(config, state, measurement.online is not None, choose)
    if policy.compares_anew:
        before = source.with_references(before, ledger)
    known = measurement.with_online(before, config.needs)
    if policy.defers(before):
        with ledger.phase("selection"):
            drawn = draw(config, before, measurement, state.round)
        return record(state, before, drawn, ledger, ledger.clock() - began)

    # Plan, measure, update.
    pool, known = remeasured(config, replace(state, pool=before), known, policy, source, ledger)
    if source.rest is not None:  # signals that only the rows which the filter narrow leaves need
        pool = narrowed(config, pool, state.round, source.rest, ledger)

    # Filter and select.
    figures = {} if measurement.online is None else {"rows_online": float(known.online)}
    with ledger.phase("graph"):
        figures |= graph_figures(config, state, pool)
    chosen = choose(policy.as_selected(pool))
    chosen = with_found(config, state, pool, known.rows, chosen)

    # Record.
    seconds = ledger.clock() - began
    figures |= beside_full_measurement(config, state, pool, chosen, measurement, ledger)
    passed = len(source.distinct(known.measured))
    return record(state, pool, chosen, ledger, seconds, passed, figures)


def remeasured(
    config: CoresetConfig,
    state: State,
    known: Known,
    policy: RefreshPolicy,
    source: Measurement,
    ledger: Ledger,
) -> tuple[Pool, Known]:
    """The state's pool as it is known now, and what is known of it under the weights of now."""
    pool, wanted, turn = state.pool, policy.plan(state.pool), 0
    while True:
        known = source.with_measured(known, wanted, pool, ledger)
        with ledger.phase("graph"):
            # Always from the pool before, so that no row that was measured is moved by another.
            pool = update(config.refresh, state.pool, known.rows, known.signals, state.round, config.noise)
        wanted, turn = np.setdiff1d(policy.more(pool, turn), known.rows), turn + 1
        if not len(wanted):
            return pool, known


def select(config: CoresetConfig, pool: Pool, round: int, ledger: Ledger) -> Coreset:
    """The method's choice of the rows that the filters leave."""
    with ledger.phase("selection"):
        rng = np.random.default_rng([config.seed, round, 4])
        return config.select(pool, config.budget.resolve(pool), rng)


def record(
    state: State,
    pool: Pool,
    chosen: Coreset,
    ledger: Ledger,
    seconds: float,
    measured: int = 0,
    figures: Mapping[str, float] | None = None,
) -> State:
    """The state with this coreset; the refresh becomes a line of the ledger."""
    same = overlap(state.coreset.indices if state.selections else None, chosen.indices)
    rows = len(chosen.indices)
    ledger.add_round(Round(state.round, measured, rows, seconds, same, figures or {}, chosen.figures))
    return State(state.round, state.round, state.selections + 1, pool, chosen)

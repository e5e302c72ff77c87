"""One round of a run: plan → measure → absorb → select. Pure functions over a state (`state.py`).

    rounds    0        1        2        3        4
              warm-up  select   ·        refresh  ·          (a refresh every two rounds)

A round is a fixed number of optimiser steps, one epoch of the Trainer. The warm-up fills the first rounds
with random rows, so that gradients mean something; then a coreset is chosen, and again when a refresh is due.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from coretune import graph
from coretune.approximation import compare
from coretune.ledger import Ledger, Round, overlap
from coretune.order import round_order
from coretune.schedule import Clock, CoresetConfig
from coretune.state import State
from coretune.types import Array, Coreset, Measure, Pool, Rows, Valued

# (n,) int32 feature kept here: number of the coreset that last trained on a row; 0 = warm-up, -1 = none
TRAINED_AT = "trained_at"
NO_SELECTION = -1
LOOKS = 4  # rounds of choosing and looking in one refresh with anchors "candidates"


#: Rows, and name -> (m, ...) signals of them.
Shown = tuple[Rows, Mapping[str, Array]]


@dataclass(frozen=True)
class Meter:
    """The door to the model, and what a look through it costs.

    references  what rows are compared with under the weights of that moment, for `Pool.references`; asked for
                once a refresh, its FLOPs in those of a look
    harvested   rows that training has shown since the last refresh, and what of them (with `harvest`)
    first       the look of the first selection where it is another: through a teacher's checkpoints, on disk
    """

    measure: Measure
    flops: Callable[[Rows], float]
    references: Callable[[], Mapping[str, Array]] = dict
    harvested: Callable[[], Shown] | None = None
    first: Meter | None = None


def empty_pool(cost: Array) -> Pool:
    """A pool of which nothing is known but what a row costs. cost: (n,) tokens."""
    n = len(cost)
    return Pool(
        features={TRAINED_AT: np.full(n, -1, np.int32)},
        cost=np.asarray(cost, np.int64),
        measured_at=np.full(n, -1, np.int32),
        usable=np.ones(n, bool),
    )


def start(config: CoresetConfig, pool: Pool, clock: Clock, meter: Meter | None, ledger: Ledger) -> State:
    """Round 0: the warm-up's random rows, or the first selection where there is none."""
    config.budget.resolve(pool)  # a budget that cannot be filled is an error now, not after the warm-up
    if clock.warmup_rounds:
        return State(0, NO_SELECTION, 0, pool, _warmup_rows(config, pool, clock))
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
    slim = replace(state.coreset, reasons={})
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


def _warmup_rows(config: CoresetConfig, pool: Pool, clock: Clock) -> Coreset:
    """As many distinct random rows as the warm-up's rounds can take."""
    usable = np.flatnonzero(pool.usable)
    take = min(len(usable), clock.rows * clock.warmup_rounds)
    rows = np.random.default_rng([config.seed, 0, 2]).permutation(usable)[:take]
    return Coreset(rows.astype(np.int64), np.ones(take), np.zeros(take))


def _nothing() -> Coreset:
    return Coreset(np.zeros(0, np.int64), np.zeros(0), np.zeros(0))


def _trained(state: State, rows: Rows) -> State:
    """The state after training on the next `rows` of the passes."""
    stamped = state.pool.feature(TRAINED_AT).copy()
    stamped[rows] = state.selections
    features = {**state.pool.features, TRAINED_AT: stamped}
    return replace(state, pool=replace(state.pool, features=features), cursor=state.cursor + len(rows))


def _refresh(config: CoresetConfig, state: State, meter: Meter | None, ledger: Ledger) -> State:
    """Measure the planned rows, absorb what they tell, choose again unless the adaptive test says wait."""
    began = ledger.clock()
    pool = state.pool
    rows: Rows = np.zeros(0, np.int64)
    harvested = 0
    figures: dict[str, float] = {}
    if config.needs:
        pool, rows, harvested = _measure(config, state, meter, ledger)
        figures |= {"rows_harvested": float(harvested)} if config.refresh.harvest else {}
        if config.refresh_every == "adaptive" and _settled(config, state, pool, rows):
            return replace(state, pool=pool)
        with ledger.phase("graph"):
            figures |= _graph_figures(config, state, pool)
    coreset = _select(config, pool, state.round, ledger)
    seconds = ledger.clock() - began
    figures |= _audit(config, state, pool, coreset, meter, ledger)
    same = overlap(state.coreset.indices if state.selections else None, coreset.indices)
    looked, chosen = len(rows) - harvested, len(coreset.indices)
    ledger.add_round(Round(state.round, looked, chosen, seconds, same, figures, coreset.figures))
    return State(state.round, state.round, state.selections + 1, pool, coreset)


def _measure(
    config: CoresetConfig, state: State, meter: Meter | None, ledger: Ledger
) -> tuple[Pool, Rows, int]:
    """The pool after this refresh's exact looks, the rows it knows exactly, and how many of them by harvest.

    With anchors "candidates" [choice]: choose, look at those chosen that are `unsure`, absorb what that
    tells, choose again, until the last look at all that is chosen is good or LOOKS rounds of it are over. So
    what is trained on was looked at not long before, and what turns out contradicted gives way.
    """
    rng = np.random.default_rng([config.seed, state.round, 3])
    meter = _meter_of(meter, state.pool)
    state = replace(state, pool=_with_references(state.pool, meter, ledger))
    rows, fresh = _harvest(config, state, meter, ledger)
    harvested = len(rows)
    if config.refresh.anchors != "candidates" or not state.selections:
        more = np.setdiff1d(config.refresh.plan(state.pool, state.round, rng), rows)
        rows, fresh = _with_look(meter, state.pool, more, (rows, fresh), ledger)
        return _absorb(config, state, rows, fresh, ledger), rows, harvested
    pool = _absorb(config, state, rows, fresh, ledger)
    for _ in range(LOOKS):
        chosen = _select(config, pool, state.round, ledger).indices
        more = np.setdiff1d(_unsure(config, pool, chosen, state.round), rows)
        if len(more) == 0:
            break
        rows, fresh = _with_look(meter, pool, more, (rows, fresh), ledger)
        pool = _absorb(config, state, rows, fresh, ledger)  # always from the start: a fresh row is not moved
    return pool, rows, harvested


def _unsure(config: CoresetConfig, pool: Pool, chosen: Rows, round: int) -> Rows:
    """Chosen rows to look at first; all of them where the adaptive test is to read what has changed."""
    return chosen if config.refresh_every == "adaptive" else config.refresh.unsure(pool, chosen, round)


def _with_look(meter: Meter, pool: Pool, more: Rows, known: Shown, ledger: Ledger) -> Shown:
    """What is known of some rows, and what a look at `more` finds."""
    rows, fresh = known
    if not len(more) and fresh:
        return known
    found = _look(meter, pool, more, ledger, "measurement")
    fresh = {name: np.concatenate([fresh[name], v]) if fresh else v for name, v in found.items()}
    return np.concatenate([rows, more]), fresh


def _harvest(config: CoresetConfig, state: State, meter: Meter, ledger: Ledger) -> Shown:
    """Usable rows that training has shown since the last refresh; their FLOPs were those of training."""
    if not config.refresh.harvest or not state.selections:
        return np.zeros(0, np.int64), {}
    if meter.harvested is None:
        raise ValueError("harvest is on, and this trainer's meter has no harvest: set harvest to false")
    rows, signals = meter.harvested()
    good = state.pool.usable[rows]
    tokens = int(state.pool.cost[rows[good]].sum())
    ledger.add("measurement", rows=int(good.sum()), tokens=tokens, flops=0.0)
    return rows[good], {name: value[good] for name, value in signals.items()}


def _absorb(
    config: CoresetConfig, state: State, rows: Rows, fresh: Mapping[str, Array], ledger: Ledger
) -> Pool:
    with ledger.phase("graph"):
        return config.refresh.absorb(state.pool, rows, fresh, state.round)


def _meter_of(meter: Meter | None, pool: Pool) -> Meter:
    """The one to look through now; the first look has its own where there is one."""
    if meter is None:
        raise ValueError("this method measures the pool, so it needs a model to measure with")
    return meter.first if meter.first is not None and (pool.measured_at < 0).all() else meter


def _with_references(pool: Pool, meter: Meter, ledger: Ledger) -> Pool:
    with ledger.phase("measurement"):
        return replace(pool, references=meter.references())


def _look(meter: Meter, pool: Pool, rows: Rows, ledger: Ledger, phase: str) -> Mapping[str, Array]:
    with ledger.phase(phase, rows=len(rows), tokens=int(pool.cost[rows].sum()), flops=meter.flops(rows)):
        return meter.measure(rows)


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
    """Of a graph that was made anew, else {}: near_copies, the share of rows that have one by the graph's
    cosine, where there are any; graph_recall, the share of true neighbours listed, where they were not all
    searched exactly."""
    made = pool.graph
    if made is None or made is state.pool.graph or made.reserve is None:
        return {}
    if made.built_from.dtype == np.float16:  # mended: most lists are from before
        return {}
    group = graph.near_copies(made)
    rows = np.bincount(group, minlength=made.n)[group] > 1
    figures = {"near_copies": float(rows.mean())} if rows.any() else {}
    if len(made.reserve.centroids) > 1:
        rng = np.random.default_rng([config.seed, state.round, 5])
        figures["graph_recall"] = graph.recall(made, pool.feature(config.refresh.embedding), rng)
    return figures


def _select(config: CoresetConfig, pool: Pool, round: int, ledger: Ledger) -> Coreset:
    with ledger.phase("selection"):
        rng = np.random.default_rng([config.seed, round, 4])
        return config.select(pool, config.budget.resolve(pool), rng)


def _audit(
    config: CoresetConfig, state: State, pool: Pool, coreset: Coreset, meter: Meter | None, ledger: Ledger
) -> Mapping[str, float]:
    """How far the propagated pool is from a full measurement at the same weights; its cost is "other"."""
    if not (config.audit_every and config.needs and state.selections):
        return {}
    if state.selections % config.audit_every:
        return {}
    refresh, selector = config.refresh, config.selector
    with ledger.phase("other"):
        everyone = np.flatnonzero(state.pool.usable)
        fresh = _look(_meter_of(meter, pool), pool, everyone, ledger, "other")
        oracle = replace(refresh, anchors="all", repair="rebuild")
        exact = oracle.absorb(state.pool, everyone, fresh, state.round)
        rng = np.random.default_rng([config.seed, state.round, 4])
        wanted = config.select(exact, config.budget.resolve(exact), rng)
        value = selector.value if isinstance(selector, Valued) else None
        return compare(pool, exact, refresh.priority_score, refresh.embedding, coreset, wanted, value)

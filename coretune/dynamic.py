"""One round of a run: plan → measure → absorb → select. Pure functions over a state that can be saved.

    rounds    0        1        2        3        4
              warm-up  select   ·        refresh  ·          (a refresh every two rounds)

A round is a fixed number of optimiser steps, one epoch of the Trainer. The warm-up fills the first rounds
with random rows, so that gradients mean something; then a coreset is chosen, and again when a refresh is due.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from coretune.approximation import compare
from coretune.budget import BudgetRequest
from coretune.ledger import Ledger, Round, overlap
from coretune.refresh import AnchorRefresh
from coretune.types import Array, Coreset, Measure, NeighborGraph, Pool, Rows, Selector, Valued

# (n,) int32 feature kept here: number of the coreset that last trained on a row; 0 = warm-up, -1 = none
TRAINED_AT = "trained_at"
NO_SELECTION = -1


@dataclass(frozen=True)
class CoresetConfig:
    """Who selects, how news spreads, how much, and when.

    refresh_every  optimiser steps between selections, "never" (one selection), or "adaptive": every
                   `check_every` steps the anchors are measured, and a new coreset is chosen when their scores
                   differ from what was believed by more than `threshold` of their mean (after CREST, Yang et
                   al. 2023, which tests its loss prediction so; the default 0.1 is theirs)
    warmup         share of the pool trained on at random before the first measurement [choice, after LESS];
                   methods that look at nothing have none
    audit_every    at every so many selections measure the whole pool and report how far the propagated
                   values are from the truth; None = never. Costs a full measurement each time.
    weighted       multiply each example's loss by its coreset weight
    """

    selector: Selector
    refresh: AnchorRefresh
    budget: BudgetRequest
    refresh_every: int | str = 100
    warmup: float = 0.05
    check_every: int = 10
    threshold: float = 0.1
    audit_every: int | None = None
    weighted: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.refresh_every, str):
            if self.refresh_every not in ("never", "adaptive"):
                raise ValueError(
                    f"refresh_every is {self.refresh_every!r}: give a number of steps, never or adaptive"
                )
        elif self.refresh_every < 1:
            raise ValueError(f"refresh_every is {self.refresh_every}: give at least 1 step, or never")
        if not 0 <= self.warmup < 1:
            raise ValueError(
                f"warmup is {self.warmup}: give the share of the pool to warm up on, from 0 to below 1"
            )
        if self.check_every < 1:
            raise ValueError(f"check_every is {self.check_every}: give at least 1 step")

    @property
    def needs(self) -> tuple[str, ...]:
        """Signals to measure; none for a selector that looks at nothing."""
        if not self.selector.needs:
            return ()
        return tuple(dict.fromkeys((*self.selector.needs, *self.refresh.needs)))


@dataclass(frozen=True)
class Meter:
    """The door to the model, and what a look through it costs."""

    measure: Measure
    flops: Callable[[Rows], float]


@dataclass(frozen=True)
class State:
    """Everything that decides the rounds to come.

    round        number of the round this state trains
    selected_in  round of the last selection, -1 while warming up
    selections   how many selections there were
    """

    round: int
    selected_in: int
    selections: int
    pool: Pool
    coreset: Coreset


@dataclass(frozen=True)
class Clock:
    """The fixed length of a round, derived once from the settings and the training arguments.

    steps          optimiser steps a round
    batch          rows an optimiser step takes over all processes
    warmup_rounds  rounds before the first selection
    every          rounds between selections; 0 = one selection only
    """

    steps: int
    batch: int
    warmup_rounds: int
    every: int

    @property
    def rows(self) -> int:
        return self.steps * self.batch


def clock(config: CoresetConfig, n: int, coreset_rows: int, batch: int) -> Clock:
    """Choose the length of a round.

    The Trainer reads the length of an epoch once, so all rounds are equally long. With a refresh every E steps
    it is the smallest divisor of E that holds the warm-up, so that the warm-up is not stretched to E steps.
    Without refreshes: the warm-up, or one pass over the coreset where there is none.

    n             rows in the pool
    coreset_rows  rows in the coreset (estimated for a token budget)
    batch         rows an optimiser step takes over all processes
    """
    warmup = math.ceil(config.warmup * n / batch) if config.needs else 0
    if config.refresh_every == "never":
        steps = warmup or math.ceil(coreset_rows / batch)
        return Clock(steps, batch, 1 if warmup else 0, 0)
    period = config.check_every if config.refresh_every == "adaptive" else int(config.refresh_every)
    steps = next((d for d in range(1, period + 1) if period % d == 0 and d >= warmup), period)
    return Clock(steps, batch, math.ceil(warmup / steps), period // steps)


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
    features = {**state.pool.features, TRAINED_AT: _stamp(state, clock, config.seed)}
    state = replace(state, round=state.round + 1, pool=replace(state.pool, features=features))
    if state.round < clock.warmup_rounds:
        return state
    if state.selected_in == NO_SELECTION:
        return _refresh(config, state, meter, ledger)
    if clock.every == 0 or (state.round - clock.warmup_rounds) % clock.every:
        return state
    return _refresh(config, state, meter, ledger)


def round_rows(state: State, clock: Clock, seed: int) -> Rows:
    """(clock.rows,) this round's rows in training order: shuffled passes over the coreset, the last one cut.

    Drawn from [seed, round] alone, so a resumed run finds the same order.
    """
    rng = np.random.default_rng([seed, state.round, 1])
    passes = math.ceil(clock.rows / len(state.coreset.indices))
    return np.concatenate([rng.permutation(state.coreset.indices) for _ in range(passes)])[: clock.rows]


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


def _stamp(state: State, clock: Clock, seed: int) -> Array:
    stamped = state.pool.feature(TRAINED_AT).copy()
    stamped[round_rows(state, clock, seed)] = state.selections
    return stamped


def _refresh(config: CoresetConfig, state: State, meter: Meter | None, ledger: Ledger) -> State:
    """Measure the planned rows, absorb what they tell, choose again unless the adaptive test says wait."""
    began = ledger.clock()
    pool, rows = state.pool, np.zeros(0, np.int64)
    if config.needs:
        rows = config.refresh.plan(pool, state.round, np.random.default_rng([config.seed, state.round, 3]))
        fresh = _look(meter, pool, rows, ledger, "measurement")
        with ledger.phase("graph"):
            pool = config.refresh.absorb(pool, rows, fresh, state.round)
        if config.refresh_every == "adaptive" and _settled(config, state, pool, rows):
            return replace(state, pool=pool)
    coreset = _select(config, pool, state.round, ledger)
    approximation = _audit(config, state, pool, coreset, meter, ledger)
    seconds = ledger.clock() - began
    same = overlap(state.coreset.indices if state.selections else None, coreset.indices)
    ledger.add_round(Round(state.round, len(rows), len(coreset.indices), seconds, same, approximation))
    return State(state.round, state.round, state.selections + 1, pool, coreset)


def _look(meter: Meter | None, pool: Pool, rows: Rows, ledger: Ledger, phase: str) -> Mapping[str, Array]:
    if meter is None:
        raise ValueError("this method measures the pool, so it needs a model to measure with")
    with ledger.phase(phase, rows=len(rows), tokens=int(pool.cost[rows].sum()), flops=meter.flops(rows)):
        return meter.measure(rows)


def _settled(config: CoresetConfig, state: State, pool: Pool, rows: Rows) -> bool:
    """Is what was believed of the anchors still true enough to keep the coreset?"""
    if not state.selections or not pool.usable[state.coreset.indices].all():
        return False
    name = config.refresh.priority_score
    rows = rows[pool.usable[rows]]
    believed, found = state.pool.feature(name)[rows], pool.feature(name)[rows]
    error = np.abs(found - believed).mean() / max(float(np.abs(believed).mean()), 1e-12)
    return bool(error <= config.threshold)


def _select(config: CoresetConfig, pool: Pool, round: int, ledger: Ledger) -> Coreset:
    with ledger.phase("selection"):
        rng = np.random.default_rng([config.seed, round, 4])
        return config.selector.select(pool, config.budget.resolve(pool), rng)


def _audit(
    config: CoresetConfig, state: State, pool: Pool, coreset: Coreset, meter: Meter | None, ledger: Ledger
) -> Mapping[str, float]:
    """How far the propagated pool is from a full measurement at the same weights; its cost counts as "other"."""
    if not config.audit_every or not config.needs or state.selections % config.audit_every:
        return {}
    with ledger.phase("other"):
        oracle = replace(config.refresh, anchors="all", repair="rebuild")
        everyone = np.flatnonzero(state.pool.usable)
        exact = oracle.absorb(
            state.pool, everyone, _look(meter, pool, everyone, ledger, "other"), state.round
        )
        rng = np.random.default_rng([config.seed, state.round, 4])
        wanted = config.selector.select(exact, config.budget.resolve(exact), rng)
        value = config.selector.value if isinstance(config.selector, Valued) else None
        return compare(
            pool, exact, config.refresh.priority_score, config.refresh.embedding, coreset, wanted, value
        )


# -------------------------------------------------------------------------------------- save and load


def save(state: State, folder: str | os.PathLike[str]) -> None:
    """Write `coreset_state.npz` and `coreset_state.json` into the folder; `load` gives back an equal state."""
    arrays: dict[str, Array] = {f"feature/{name}": value for name, value in state.pool.features.items()}
    arrays |= {f"pool/{name}": getattr(state.pool, name) for name in ("cost", "measured_at", "usable")}
    arrays |= {f"coreset/{name}": getattr(state.coreset, name) for name in ("indices", "weights", "gains")}
    arrays |= {f"reason/{name}": value for name, value in state.coreset.reasons.items()}
    if state.pool.graph is not None:
        graph = state.pool.graph
        arrays |= {
            f"graph/{name}": getattr(graph, name) for name in ("neighbors", "similarity", "built_from")
        }
    np.savez(Path(folder) / "coreset_state.npz", **arrays)  # type: ignore[arg-type]
    numbers = {"round": state.round, "selected_in": state.selected_in, "selections": state.selections}
    (Path(folder) / "coreset_state.json").write_text(json.dumps(numbers), encoding="utf-8")


def load(folder: str | os.PathLike[str]) -> State:
    """Read what `save` wrote; FileNotFoundError when the folder holds no coreset state."""
    numbers = json.loads((Path(folder) / "coreset_state.json").read_text(encoding="utf-8"))
    groups: dict[str, dict[str, Array]] = {
        name: {} for name in ("feature", "pool", "coreset", "reason", "graph")
    }
    with np.load(Path(folder) / "coreset_state.npz") as arrays:
        for key in arrays.files:
            group, name = key.split("/", 1)
            groups[group][name] = arrays[key]
    graph = NeighborGraph(**groups["graph"]) if groups["graph"] else None
    pool = Pool(features=groups["feature"], graph=graph, **groups["pool"])
    return State(pool=pool, coreset=Coreset(reasons=groups["reason"], **groups["coreset"]), **numbers)

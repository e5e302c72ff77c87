"""Rounds played through without a model, to see what choosing costs: signals come from a small sample.

`refresh.py` itself runs, so rows measured, graph and selection are those of the very settings, on signals
that were measured of a few rows and are drawn again, with noise, for as many as the pool has.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from coretune.filters.target_rows import TargetRows
from coretune.ledger import Ledger
from coretune.refresh import advance, start
from coretune.rounds.coreset_config import CoresetConfig
from coretune.rounds.measurement import Measurement
from coretune.rounds.schedule import Schedule
from coretune.rounds.transitions import empty_pool
from coretune.types import UNIT, Array, Pool, Rows

MOST = 4000  # rows rehearsed with; larger pools are extrapolated from half and all of them
NOISE = 0.3  # of a signal's own spread: rows differ, and move a little between measurements
AGAIN = 2  # refreshes rehearsed after the first selection


@dataclass(frozen=True)
class Choosing:
    """What one selection costs outside the model: seconds, and what it measures."""

    graph: float
    selection: float
    rows: float
    measurements: float


@dataclass(frozen=True)
class Rehearsal:
    """The first selection, and the mean of those after it (equal to the first where there is but one)."""

    first: Choosing
    later: Choosing


def measuring(rehearsal: Rehearsal, rows: float) -> Rehearsal:
    """The same with so many rows measured at each later refresh; of none, what it measured costs nothing.

    With anchors "candidates" the number depends on how the model changes, which noise does not imitate.
    """
    later = rehearsal.later
    if rows:
        return replace(rehearsal, later=replace(later, rows=rows))
    # The rehearsal chose before each measurement, once when nothing more was left to measure, and at the end.
    return replace(rehearsal, later=Choosing(0.0, later.selection / (later.measurements + 2), 0.0, 0.0))


def rehearse(
    config: CoresetConfig,
    sample: Pool,
    cost: Array,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> Rehearsal:
    """What choosing costs for a pool of len(cost) rows.

    sample  a pool of fewer rows, of which all signals were measured
    cost    (n,) tokens of the rows
    """
    n = len(cost)
    # Which rows are the target's only the run's own pool knows; they are few.
    filters = tuple(each for each in config.filters if not isinstance(each, TargetRows))
    config = replace(config, audit_every=None, quota=None, defer_first_measurement=False, filters=filters)
    if n <= MOST:
        return _play(config, sample, cost, seed, clock)
    half, whole = (_play(config, sample, _thinned(cost, m), seed, clock) for m in (MOST // 2, MOST))
    return Rehearsal(
        *(_extrapolated(getattr(half, name), getattr(whole, name), n) for name in ("first", "later"))
    )


def _play(
    config: CoresetConfig, sample: Pool, cost: Array, seed: int, clock: Callable[[], float]
) -> Rehearsal:
    share = config.budget.resolve(empty_pool(cost))
    batch = max(1, share.amount // 4 if share.unit == "rows" else len(cost) // 40)
    rounds = Schedule(steps=1, batch=batch, warmup_rounds=0, every=1)
    drawn = _drawn(config, sample, len(cost), seed)
    measurements: list[int] = []
    rng = np.random.default_rng([seed, 7])

    def measure(rows: Rows) -> Mapping[str, Array]:
        measurements.append(len(rows))
        return {name: _blurred(values[rows], name, rng, NOISE / 3) for name, values in drawn.items()}

    measurement = Measurement(measure, lambda rows: 0.0, lambda: sample.references) if config.needs else None
    found: list[Choosing] = []
    state = None
    for _ in range(1 + AGAIN):
        ledger = Ledger(clock)
        measurements.clear()
        if state is None:
            state = start(config, empty_pool(cost), rounds, measurement, ledger)
        else:
            state = advance(config, state, rounds, measurement, ledger)
        spent = ledger.costs
        found.append(
            Choosing(spent["graph"].seconds, spent["selection"].seconds, sum(measurements), len(measurements))
        )
    return Rehearsal(found[0], _mean(found[1:]))


def _drawn(config: CoresetConfig, sample: Pool, n: int, seed: int) -> dict[str, Array]:
    """Signals of n rows, drawn from the sample's with noise."""
    rng = np.random.default_rng([seed, 8])
    rows = rng.integers(sample.n, size=n)
    return {name: _blurred(sample.feature(name)[rows], name, rng, NOISE) for name in config.needs}


def _blurred(values: Array, name: str, rng: np.random.Generator, noise: float) -> Array:
    """Each number moved by `noise` of the signal's root mean square; unit rows stay unit, and what is nowhere
    negative, as losses, stays so."""
    scale = np.float32(noise * np.sqrt(np.mean(np.square(values, dtype=np.float64))))
    moved = values + scale * rng.standard_normal(values.shape, dtype=np.float32)
    if (values >= 0).all():
        moved = np.abs(moved)
    if name.endswith(UNIT):
        moved /= np.maximum(np.linalg.norm(moved, axis=-1, keepdims=True), 1e-12)
    return moved.astype(np.float32)


def _thinned(cost: Array, m: int) -> Array:
    return cost[np.linspace(0, len(cost) - 1, m).astype(np.int64)]


def _mean(found: list[Choosing]) -> Choosing:
    return Choosing(*(float(np.mean([vars(one)[name] for one in found])) for name in vars(found[0])))


def _extrapolated(half: Choosing, whole: Choosing, n: int) -> Choosing:
    """To n rows by the power of n that the two sizes show, between 1 (a pass) and 2 (all pairs)."""
    found = {}
    for name, at_most in vars(whole).items():
        if name == "measurements":
            found[name] = at_most
            continue
        below = max(vars(half)[name], 1e-9)
        power = 1.0 if name == "rows" else float(np.clip(np.log2(max(at_most, 1e-9) / below), 1.0, 2.0))
        found[name] = at_most * (n / MOST) ** power
    return Choosing(**found)

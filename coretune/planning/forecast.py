"""How many rows later refreshes measure, with anchors "candidates": early in the run and late.

That depends on what each measurement changes: rows that turn out noisy are replaced by others, which are
measured too, and a measurement is valid the longer the older the run is (`AnchorRefresh.look_again`). No
formula holds all that, so `refresh.py` itself is played for the whole run, without the model, on the rows of
a probe: two exact measurements of all of them are known, and between and beyond them signals move on a line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from coretune.ledger import Ledger
from coretune.refresh import advance, start
from coretune.rounds.measurement import NOBODY, Measurement
from coretune.rounds.order import round_order
from coretune.rounds.schedule import Clock, CoresetConfig
from coretune.rounds.transitions import empty_pool
from coretune.types import UNIT, Array, Pool, Rows


@dataclass(frozen=True)
class Moved:
    """All signals of some rows, measured twice while a model was trained on them.

    before, after  name -> (n, …)
    ages           how much the model had been trained at each of them: the sum of its learning rates so far
    """

    before: Mapping[str, Array]
    after: Mapping[str, Array]
    ages: tuple[float, float]

    def at(self, rows: Rows, path: float) -> dict[str, Array]:
        """Signals of these rows so far along the way: 0 = before, 1 = after."""
        return {
            name: _between(self.before[name][rows], self.after[name][rows], path, name) for name in self.after
        }


@dataclass(frozen=True)
class Looks:
    """Of one refresh: rows measured for one chosen, and in how many measurements."""

    rows: float
    looks: int


def forecast(
    config: CoresetConfig, pool: Pool, moved: Moved, clock: Clock, ages: Array, harvests: bool = False
) -> list[Looks]:
    """Of every refresh after the first selection, in turn.

    pool   the rows that moved
    clock  the run's, its rounds as long for the coreset of this pool as they are for the run's own
    ages   (rounds,) the model's age at the beginning of each of the run's rounds
    harvests  whether there are online signals; here as the rows are when the refresh begins

    [choice] The way is the logarithm of the age: a model changes fast at first and slowly later, which is
    what `look_again` rests on as well. A run's first selection is at the age of the probe's.
    """
    config = replace(config, audit_every=None, quota=None)
    first, whole = ages[clock.warmup_rounds], np.log(moved.ages[1] / moved.ages[0])
    path = np.log(np.maximum(ages, first) / first) / whole if first > 0 else np.zeros(len(ages))
    now, looks, trained = 0.0, list[int](), list[Rows]()

    def measure(rows: Rows) -> Mapping[str, Array]:
        looks.append(len(rows))
        return moved.at(rows, now)

    def harvested() -> tuple[Rows, Mapping[str, Array]]:
        rows = np.unique(np.concatenate([NOBODY, *trained]))
        trained.clear()
        return rows, moved.at(rows, now)

    shown = harvested if harvests else None
    measurement = Measurement(measure, lambda rows: 0.0, lambda: pool.references, shown)
    ledger = Ledger()
    state = start(config, empty_pool(pool.cost), clock, measurement, ledger)
    found: list[Looks] = []
    for round in range(1, len(ages)):
        now = float(path[round])
        if state.selections:
            looks.clear()
            trained.append(round_order(state, clock, config.seed).trained)
        state = advance(config, state, clock, measurement, ledger)
        if ledger.rounds[1:] and ledger.rounds[-1].round == round:
            found.append(Looks(sum(looks) / ledger.rounds[-1].rows_chosen, len(looks)))
    return found


def _between(before: Array, after: Array, path: float, name: str) -> Array:
    """Numbers above 0 by their logarithm, so that none falls below 0; rows of length 1 keep it."""
    if before.ndim == 1 and (before > 0).all() and (after > 0).all():
        moved = before * (after / before) ** path
    else:
        moved = before + path * (after - before)
    if name.endswith(UNIT):
        moved /= np.maximum(np.linalg.norm(moved, axis=-1, keepdims=True), 1e-12)
    return moved.astype(np.float32)

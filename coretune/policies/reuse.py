"""Ours: the rows about to be trained on are measured, and what is known well enough is not measured again.

    choose ─► measure those chosen whose measurement is old ─► update ─► choose ─► … until all are known well

So what is trained on was measured not long before, and what turns out noisy gives way. Signals that training
steps show (`online_signals`) count as measured. Nothing here is GRACE's: its refresh is in `paper.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from coretune.filters import DetectsNoise
from coretune.policies.anchors import Planned, some
from coretune.rounds.coreset_config import CoresetConfig
from coretune.rounds.measurement import NO_ROWS
from coretune.rounds.state import State
from coretune.select.demand import STANDING_LOSS
from coretune.select.grace import Grace
from coretune.types import MATCHED, UNIT, Coreset, Pool, RefreshPolicy, Rows

TURNS = 4  # of choosing and measuring in one refresh
#: Of a selection: the share of rows measured, and not flagged as noisy before, that are flagged now; so low
#: that measuring more finds hardly any [choice].
FOUND, FEW = "found_noisy", 0.03
#: Of a selection: 1 where all rows were measured before any training, with noise detection on.
AT_ONCE = "measured_at_once"


@dataclass(frozen=True)
class Reuse:
    """The `RefreshPolicy` of anchors "candidates" [choice].

    Where a model cannot tell wrong rows from right ones (`noise_is_off`) measuring candidates buys nothing,
    nor where hardly any was found noisy and training itself shows where the model errs: then only some rows
    drawn at random are measured, and some of those flagged as noisy, each time the run is
    `staleness_factor` times as old, to see whether it is so still. The first measurement is deferred as
    `deferral.py` says.

    A measurement before any training, with noise detection on, stays valid: a model that knows what
    belongs together does not learn it here, and rows found noisy are never trained on.

    state   before this refresh
    online  whether training steps show signals
    choose  the selection, of a pool
    """

    config: CoresetConfig
    state: State
    online: bool
    choose: Callable[[Pool], Coreset]
    rng: np.random.Generator

    @property
    def compares_anew(self) -> bool:
        return not self.measures_nothing

    @cached_property
    def measures_nothing(self) -> bool:
        """Whether nothing is asked or measured: what was measured stands, or there was no reason to measure
        at the last refresh and the run has not become `staleness_factor` times as old since."""
        if self.measured_once:
            return True
        asked = self._may_defer and MATCHED in self.state.pool.references
        return (asked or self.skips_candidates) and not due(
            self.config.refresh.staleness_factor, self.state.round, self.state.selected_in
        )

    @property
    def measured_once(self) -> bool:
        """Whether the measurement of before any training stands, and training shows what has changed."""
        return may_measure_once(self.config, self.online) and AT_ONCE in self.state.coreset.figures

    @cached_property
    def skips_candidates(self) -> bool:
        """Whether candidates are not measured, as far as is known before this refresh."""
        return self.few_found_noisy or noise_is_off(self.config, self.state.pool)

    @cached_property
    def few_found_noisy(self) -> bool:
        """Whether training shows signals, and hardly any row was found noisy by measuring candidates."""
        few = self.state.coreset.figures.get(FOUND, 1.0) < FEW
        return self.online and few

    def defers(self, pool: Pool) -> bool:
        """Whether the first measurement would tell nothing yet or, once it was deferred, find nobody."""
        noise = noise_sought(self.config)
        if noise is None or not self._may_defer:
            return False
        return noise_is_off(self.config, pool) or (self.state.selections > 0 and noise.seem_wrong(pool) == 0)

    @property
    def _may_defer(self) -> bool:
        config, pool = self.config, self.state.pool
        asks_again = config.refresh_every != "never"
        return (
            config.defer_first_measurement
            and asks_again
            and noise_sought(config) is not None
            and pool.unmeasured
        )

    def plan(self, pool: Pool) -> Rows:
        if pool.unmeasured:
            return np.arange(pool.n, dtype=np.int64)
        if self.measures_nothing or not self.skips_candidates:
            return NO_ROWS
        return np.union1d(some(self.config.refresh, pool, self.rng), self._flagged(pool, self.state.coreset))

    def more(self, pool: Pool, turn: int) -> Rows:
        """Those chosen of this pool whose measurement is old; in the first turn some of those flagged too."""
        if self.state.pool.unmeasured or self.measures_nothing or turn == TURNS:
            return NO_ROWS
        if turn == 0 and (self.few_found_noisy or noise_is_off(self.config, pool)):
            return NO_ROWS
        chosen = self.choose(self.as_selected(pool))
        rows = self._old(pool, chosen.indices)
        return rows if turn else np.union1d(rows, self._flagged(pool, chosen))

    def as_selected(self, pool: Pool) -> Pool:
        """The pool with every row at the place it had before this refresh: embeddings, graph, and the losses
        that say what its region is worth (`standing_loss`).

        [choice] A row that was measured moves away from neighbours that were not and its loss from theirs, so
        it represents less of the pool than before, and the next choice would prefer rows that were not
        measured. With all in their places it differs from the last one where a row gave way, and hardly
        anywhere else.
        """
        before = self.state.pool
        if before.unmeasured:
            return pool
        places = {name: value for name, value in before.features.items() if name.endswith(UNIT)}
        if "loss" in before.features:
            places[STANDING_LOSS] = before.features["loss"]
        return replace(pool, features={**pool.features, **places}, graph=before.graph)

    def _old(self, pool: Pool, rows: Rows) -> Rows:
        """Those of these rows whose measurement is not good any more (`AnchorRefresh.staleness_factor`)."""
        return rows[self.config.refresh.staleness_factor * pool.measured_at[rows] <= self.state.round]

    def _flagged(self, pool: Pool, chosen: Coreset) -> Rows:
        """Rows flagged as noisy by a measurement that is no longer good: at most `anchor_share` of all usable
        ones, drawn at random. [choice] Clean rows of a rare skill are flagged as long as the skill is
        unknown, and only a new measurement can tell that it has been learnt from others."""
        noise = self.config.noise
        flagged = None if noise is None else chosen.filtered_by(noise.name)
        if flagged is None:
            return NO_ROWS
        old = self._old(pool, np.flatnonzero(flagged & pool.usable))
        most = int(self.config.refresh.anchor_share * pool.usable.sum())
        return np.sort(self.rng.choice(old, min(len(old), most), replace=False))


def policy_of(
    config: CoresetConfig, state: State, online: bool, choose: Callable[[Pool], Coreset]
) -> RefreshPolicy:
    """The policy that `AnchorRefresh.anchors` names, for one refresh; arguments as of `Reuse`."""
    if config.refresh.anchors == "candidates":
        rng = np.random.default_rng([config.seed, state.round, 3])
        return Reuse(config, state, online, choose, rng)
    return Planned(config.refresh, state.round)


def may_measure_once(config: CoresetConfig, online: bool) -> bool:
    """Whether all is measured once, if noise detection is on before any training (`Reuse.measured_once`).

    [choice] Of a method that reads embeddings, or nothing, of a row: they change little while a pretrained
    model is trained; and of GRACE, for what a region is worth keeps the losses of before (`as_selected`).
    """
    before = config.warmup_share == 0 and not config.uses_checkpoints
    steady = isinstance(config.selector, Grace) or all(n.endswith(UNIT) for n in config.selector.needs)
    return (
        config.refresh.anchors == "candidates" and config.noise is not None and online and before and steady
    )


def noise_sought(config: CoresetConfig) -> DetectsNoise | None:
    """The noise filter, where candidates are measured to know which of them are noisy.

    [choice] Of GRACE, for what it covers changes little while a model is trained (docs/results.md), and of a
    method that measures nothing itself. Others need their own signals whether noise detection is on or not.
    """
    sought = isinstance(config.selector, Grace) or not config.selector.needs
    return config.noise if config.refresh.anchors == "candidates" and sought else None


def noise_is_off(config: CoresetConfig, pool: Pool) -> bool:
    """Whether candidates would be measured to know which are noisy, and the model could not tell."""
    noise = noise_sought(config)
    return noise is not None and MATCHED in pool.references and not noise.on(pool)


def due(staleness_factor: float, now: int, last: int) -> bool:
    """Whether the run became `staleness_factor` times as old, once more, after round `last` and by `now`.

    Of a refresh `last` is the refresh before, which may be several rounds ago; below 1 = there was none.
    """
    if staleness_factor == 1 or last < 1:
        return True
    return math.floor(math.log(now, staleness_factor)) > math.floor(math.log(last, staleness_factor))


def with_found(config: CoresetConfig, state: State, pool: Pool, rows: Rows, chosen: Coreset) -> Coreset:
    """The coreset with FOUND among its figures, that of the one before where no new row was measured; and
    with AT_ONCE: where noise detection is on, and not because the filter is always on, before any training,
    and not at checkpoints of a warm-up run.

    state  before this refresh
    pool   as it is known now
    rows   those whose signals became known in this refresh
    [choice] (c + 1) / (m + 2) for c of m rows, the mean of what the share may be: of few rows it is high.
    """
    noise = config.noise
    if noise is None or not chosen.figures.get("noise_on"):
        return chosen
    before = state.coreset
    flagged, known = chosen.filtered_by(noise.name), before.filtered_by(noise.name)
    assert flagged is not None
    share = before.figures.get(FOUND, 1.0)
    first = state.round == 0 and not config.uses_checkpoints and noise.separates(pool)
    at_once = {AT_ONCE: 1} if first or AT_ONCE in before.figures else {}
    if known is not None:
        rows = rows[~known[rows]]
    if len(rows):
        share = (flagged[rows].sum() + 1) / (len(rows) + 2)
    return replace(chosen, figures={**chosen.figures, FOUND: round(float(share), 4), **at_once})

"""Whom a refresh looks at, and what is known of the pool when it is over.

anchors planned ─► look ─► absorb                                    priority, random, all, trained
choose ─► look at those chosen that are unsure ─► absorb ─► choose   candidates: till all are sure
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from coretune.filters import TellsNoise
from coretune.ledger import Ledger
from coretune.refreshing.refresh import UNIT
from coretune.rounds.schedule import CoresetConfig
from coretune.rounds.state import State
from coretune.rounds.twins import Twins
from coretune.select.grace import Grace
from coretune.select.importance import STANDING_LOSS
from coretune.types import MATCHED, Array, Coreset, Measure, Pool, Rows

ENOUGH = 8  # rows measured that are not all broken by themselves [choice]
LOOKS = 4  # rounds of choosing and looking in one refresh with anchors "candidates"
#: Of a selection: the share of rows measured, and not flagged as noisy before, that are flagged now; so low
#: that measuring more finds hardly any [choice].
FOUND, FEW = "found_noisy", 0.03

#: Rows, and name -> (m, ...) signals of them.
Shown = tuple[Rows, Mapping[str, Array]]


@dataclass(frozen=True)
class Meter:
    """The door to the model, and what a look through it costs.

    references  what rows are compared with under the weights of that moment, for `Pool.references`; asked for
                once a refresh, its FLOPs in those of a look but for `reference_flops`
    harvested   rows that training has shown since the last refresh, and what of them; None: it shows nothing
    twins       rows that `measure` looks at once, and knows all of them by it; None: it looks at each
    first       the look of the first selection where it is another: through a teacher's checkpoints, on disk
    reference_flops  FLOPs of `references` at every refresh, however many rows are looked at
    """

    measure: Measure
    flops: Callable[[Rows], float]
    references: Callable[[], Mapping[str, Array]] = dict
    harvested: Callable[[], Shown] | None = None
    twins: Twins | None = None
    first: Meter | None = None
    reference_flops: float = 0.0

    def together(self, rows: Rows) -> Rows:
        """These rows, and those that a look at them tells of too."""
        return rows if self.twins is None else self.twins.together(rows)

    def distinct(self, rows: Rows) -> Rows:
        """Those of these rows that a look at all of them passes through the model."""
        return rows if self.twins is None else self.twins.distinct(rows)


@dataclass(frozen=True)
class Looked:
    """After a refresh's looks.

    pool       as it is known now
    choosing   the same for the selection that follows
    rows       those known exactly
    passed     how many of them went through the model: none that training has shown, one of equals
    harvested  how many by what training has shown
    """

    pool: Pool
    choosing: Pool
    rows: Rows
    passed: int
    harvested: int


def look_around(config: CoresetConfig, state: State, meter: Meter | None, ledger: Ledger) -> Looked:
    """The pool after this refresh's exact looks.

    With anchors "candidates" [choice]: choose, look at those chosen that are `unsure`, absorb what that
    tells, choose again, until the last look at all that is chosen is good or LOOKS rounds of it are over. So
    what is trained on was looked at not long before, and what turns out contradicted gives way. The first of
    these looks is also at some of those held back as contradicted, so that nobody stays out by an old look.

    Where a model cannot tell wrong rows from right ones (`TellsNoise`) that buys nothing, nor where
    hardly anybody turned out contradicted and training itself shows where the model errs (`harvest`): then
    [choice] only some rows drawn at random are looked at, and some of those held back, each time the run is
    `look_again` times as old, to see whether it is so still.
    """
    rng = np.random.default_rng([config.seed, state.round, 3])
    rows, fresh = _harvest(config, state, meter)
    meter = meter_of(meter, state.pool)
    harvested, calm = len(rows), _calm(config, state, meter)
    spared = calm or noise_is_off(config, state.pool)
    if spared and not due(config.refresh.look_again, state.round, state.selected_in):
        pool = _absorb(config, state, rows, fresh, ledger)
        return Looked(pool, _placed(pool, state.pool), rows, 0, harvested)
    if not (unmeasured(state.pool) and MATCHED in state.pool.references):  # just asked (`waiting.py`)
        state = replace(state, pool=with_references(state.pool, meter, ledger))
    if config.refresh.anchors != "candidates" or unmeasured(state.pool):
        more = np.setdiff1d(config.refresh.plan(state.pool, state.round, rng), rows)
        rows, fresh = _with_look(meter, state.pool, more, (rows, fresh), ledger)
        pool = _absorb(config, state, rows, fresh, ledger)
        return Looked(pool, pool, rows, len(meter.distinct(rows[harvested:])), harvested)
    if spared:
        heard = _heard(config, state.pool, state.coreset, state.round, rng)
        some = np.setdiff1d(np.union1d(config.refresh.some(state.pool, rng), heard), rows)
        rows, fresh = _with_look(meter, state.pool, some, (rows, fresh), ledger)
    pool = _absorb(config, state, rows, fresh, ledger)
    for turn in range(0 if calm or noise_is_off(config, pool) else LOOKS):
        chosen = select(config, _placed(pool, state.pool), state.round, ledger)
        asked = _unsure(config, pool, chosen.indices, state.round)
        if turn == 0:
            asked = np.union1d(asked, _heard(config, pool, chosen, state.round, rng))
        more = np.setdiff1d(asked, rows)
        if len(more) == 0:
            break
        rows, fresh = _with_look(meter, pool, more, (rows, fresh), ledger)
        pool = _absorb(config, state, rows, fresh, ledger)  # always from the start: a fresh row is not moved
    passed = len(meter.distinct(rows[harvested:]))
    return Looked(pool, _placed(pool, state.pool), rows, passed, harvested)


def look(meter: Meter, pool: Pool, rows: Rows, ledger: Ledger, phase: str) -> Mapping[str, Array]:
    """Signals of `rows`, and their cost in the ledger. ValueError where none is finite."""
    paid = meter.distinct(rows)
    with ledger.phase(phase, rows=len(paid), tokens=int(pool.cost[paid].sum()), flops=meter.flops(paid)):
        found = meter.measure(rows)
    _refuse_broken(found, min(ENOUGH, int(pool.usable.sum())))
    return found


def _refuse_broken(found: Mapping[str, Array], enough: int) -> None:
    """ValueError where a signal of so many rows and more is not finite for any: it is the model then."""
    for name, values in found.items():
        flat = values.reshape(len(values), -1)
        if len(flat) >= max(1, enough) and not np.isfinite(flat).all(axis=1).any():
            raise ValueError(
                f"{name} is not finite for any of the {len(flat)} rows measured: the model's weights, or its "
                "activations in this precision, are not. The run stops; what was saved before is kept: lower "
                "learning_rate, or set max_grad_norm, and go on with resume_from_checkpoint"
            )


def meter_of(meter: Meter | None, pool: Pool) -> Meter:
    """The one to look through now; the first look has its own where there is one."""
    if meter is None:
        raise ValueError("this method measures the pool, so it needs a model to measure with")
    return meter.first if meter.first is not None and unmeasured(pool) else meter


def unmeasured(pool: Pool) -> bool:
    """Whether nobody has looked at any of its rows."""
    return bool((pool.measured_at < 0).all())


def select(config: CoresetConfig, pool: Pool, round: int, ledger: Ledger) -> Coreset:
    with ledger.phase("selection"):
        rng = np.random.default_rng([config.seed, round, 4])
        return config.select(pool, config.budget.resolve(pool), rng)


def _placed(pool: Pool, before: Pool) -> Pool:
    """The pool with every row at the place it had before this refresh's looks: embeddings, graph, and the
    losses that say what its region is worth (`standing_loss`).

    [choice] A row that was looked at moves away from neighbours that were not and its loss from theirs, so it
    stands for less of the pool than before, and the next choice would prefer rows nobody has looked at. With
    all in their places it differs from the last one where a row gave way, and hardly anywhere else.
    """
    places = {name: value for name, value in before.features.items() if name.endswith(UNIT)}
    if "loss" in before.features:
        places[STANDING_LOSS] = before.features["loss"]
    return replace(pool, features={**pool.features, **places}, graph=before.graph)


def noise_sought(config: CoresetConfig) -> TellsNoise | None:
    """The noise filter, where candidates are measured to know which of them are noisy.

    [choice] GRACE's alone: what it covers changes little while a model is trained (LOG.md). Other methods
    need their own signals whether noise can be told or not.
    """
    return config.noise if _spares_looks(config) and isinstance(config.selector, Grace) else None


def noise_is_off(config: CoresetConfig, pool: Pool) -> bool:
    """Whether candidates would be measured to know which are noisy, and the model could not tell."""
    noise = noise_sought(config)
    return noise is not None and MATCHED in pool.references and not noise.on(pool)


def _calm(config: CoresetConfig, state: State, meter: Meter) -> bool:
    """Whether candidates would be looked at, though hardly anybody was found that way."""
    few = state.coreset.figures.get(FOUND, 1.0) < FEW
    return _spares_looks(config) and meter.harvested is not None and few


def _spares_looks(config: CoresetConfig) -> bool:
    """Whether candidates are looked at for what is found; the adaptive test reads what has changed."""
    return config.refresh.anchors == "candidates" and config.refresh_every != "adaptive"


def due(look_again: float, now: int, last: int) -> bool:
    """Whether the run became `look_again` times as old, once more, after round `last` and by round `now`.

    Of a refresh `last` is the refresh before, which may be several rounds ago; below 1 = there was none.
    """
    if look_again == 1 or last < 1:
        return True
    return math.floor(math.log(now, look_again)) > math.floor(math.log(last, look_again))


def with_found(config: CoresetConfig, state: State, looked: Looked, chosen: Coreset) -> Coreset:
    """With FOUND among its figures; that of the last selection where nobody new was looked at.

    [choice] (c + 1) / (m + 2) for c of m rows, the mean of what the share may be: of few rows it is high.
    """
    if config.noise is None or not chosen.figures.get("noise_on"):
        return chosen
    name = config.noise.name
    flagged, before = chosen.filtered_by(name), state.coreset.filtered_by(name)
    assert flagged is not None
    rows, share = looked.rows, state.coreset.figures.get(FOUND, 1.0)
    if before is not None:
        rows = rows[~before[rows]]
    if len(rows):
        share = (flagged[rows].sum() + 1) / (len(rows) + 2)
    return replace(chosen, figures={**chosen.figures, FOUND: round(float(share), 4)})


def _unsure(config: CoresetConfig, pool: Pool, chosen: Rows, round: int) -> Rows:
    """Chosen rows to look at first; all of them where the adaptive test is to read what has changed."""
    return chosen if config.refresh_every == "adaptive" else config.refresh.unsure(pool, chosen, round)


def _heard(config: CoresetConfig, pool: Pool, chosen: Coreset, round: int, rng: np.random.Generator) -> Rows:
    """Rows flagged as noisy by a measurement that is no longer good: at most `anchor_share` of the usable,
    drawn at random. [choice] Right rows of a rare skill are flagged as long as the skill is unknown, and only
    a new measurement can tell that it has been learnt from others."""
    flagged = None if config.noise is None else chosen.filtered_by(config.noise.name)
    if flagged is None:
        return np.zeros(0, np.int64)
    out = np.flatnonzero(flagged & pool.usable)
    old = config.refresh.unsure(pool, out, round)
    most = int(config.refresh.anchor_share * pool.usable.sum())
    return np.sort(rng.choice(old, min(len(old), most), replace=False))


def _with_look(meter: Meter, pool: Pool, more: Rows, known: Shown, ledger: Ledger) -> Shown:
    """What is known of some rows, and what a look at `more` finds, of these and of their equals."""
    rows, fresh = known
    if not len(more) and fresh:
        return known
    more = np.setdiff1d(meter.together(more), rows)
    more = more[pool.usable[more]]
    found = look(meter, pool, more, ledger, "measurement")
    fresh = {name: np.concatenate([fresh[name], v]) if fresh else v for name, v in found.items()}
    return np.concatenate([rows, more]), fresh


def _harvest(config: CoresetConfig, state: State, meter: Meter | None) -> Shown:
    """Usable rows that training has shown since the last refresh, and their equals, at no cost of its own.

    Without their equals copies would be known by an older model, and pass for rows of their own.
    """
    nothing: Shown = np.zeros(0, np.int64), {}
    if meter is None or meter.harvested is None or not state.selections:
        return nothing
    rows, signals = meter.harvested()
    if unmeasured(state.pool):  # a first look is at all rows, as they are now
        return nothing
    if meter.twins is not None:
        rows, signals = meter.twins.told(rows, signals)
    good = state.pool.usable[rows]
    shown = {name: value[good] for name, value in signals.items()}
    # What a step does not show stays as it was measured.
    kept = {name: state.pool.feature(name)[rows[good]] for name in config.needs if name not in shown}
    return rows[good], {**shown, **kept}


def _absorb(
    config: CoresetConfig, state: State, rows: Rows, fresh: Mapping[str, Array], ledger: Ledger
) -> Pool:
    with ledger.phase("graph"):
        return config.refresh.absorb(state.pool, rows, fresh, state.round)


def with_references(pool: Pool, meter: Meter, ledger: Ledger) -> Pool:
    with ledger.phase("measurement", flops=meter.reference_flops):
        return replace(pool, references=meter.references())

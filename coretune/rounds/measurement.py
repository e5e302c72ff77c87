"""What a refresh measures with, and what it has learnt so far.

training steps ─► online signals, at no cost ─┐
rows ─► model ─► signals, booked in the ledger ┴─► Known ─► update (`policies/update.py`)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from coretune.ledger import Ledger
from coretune.rounds.exact_duplicates import ExactDuplicates
from coretune.types import Array, Measure, Pool, Rows

ENOUGH = 8  # rows measured that are not all broken by themselves [choice]
NO_ROWS: Rows = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Known:
    """Rows whose signals are known under the weights of now.

    signals  name -> (m, ...), row r describes rows[r]; {} where there are no rows
    online   so many of the first rows are known from training steps; the others were measured
    """

    rows: Rows = field(default_factory=lambda: NO_ROWS)
    signals: Mapping[str, Array] = field(default_factory=dict)
    online: int = 0

    @property
    def measured(self) -> Rows:
        return self.rows[self.online :]


@dataclass(frozen=True)
class Measurement:
    """What measures rows of a run's pool, and what that costs.

    references  what rows are compared with under the weights of that moment, for `Pool.references`; measured
                once a refresh, its FLOPs in those of a measurement but for `reference_flops`
    online      rows whose signals training steps have shown since the last refresh; None: they show none
    duplicates  rows of which `measure` passes one of each group through the model; None: it passes each
    first       the measurement of the first selection where it is another: at checkpoints of a run,
                kept on disk
    reference_flops  FLOPs of `references` at every refresh, however many rows are measured
    rest        with the filter `narrow`: of the signals that only rows which it leaves need; `measure` is
                of those that it and the filters before it read
    """

    measure: Measure
    flops: Callable[[Rows], float]
    references: Callable[[], Mapping[str, Array]] = dict
    online: Callable[[], tuple[Rows, Mapping[str, Array]]] | None = None
    duplicates: ExactDuplicates | None = None
    first: Measurement | None = None
    reference_flops: float = 0.0
    rest: Measurement | None = None

    def now(self, pool: Pool) -> Measurement:
        """The one to measure this pool with: the first one has its own where there is one."""
        return self.first if self.first is not None and pool.unmeasured else self

    def distinct(self, rows: Rows) -> Rows:
        """Those of these rows that pass through the model when all of them are measured."""
        return rows if self.duplicates is None else self.duplicates.distinct(rows)

    def signals(self, rows: Rows, pool: Pool, ledger: Ledger, phase: str) -> Mapping[str, Array]:
        """Signals of `rows`, and their cost in the ledger. ValueError where none is finite."""
        paid = self.distinct(rows)
        with ledger.phase(phase, rows=len(paid), tokens=int(pool.cost[paid].sum()), flops=self.flops(paid)):
            found = self.measure(rows)
        _refuse_broken(found, min(ENOUGH, int(pool.usable.sum())))
        return found

    def with_references(self, pool: Pool, ledger: Ledger) -> Pool:
        """The pool with what its rows are compared with now."""
        with ledger.phase("measurement", flops=self.reference_flops):
            return replace(pool, references=self.references())

    def with_measured(self, known: Known, rows: Rows, pool: Pool, ledger: Ledger) -> Known:
        """What is known, and beside it the usable ones of `rows`, and their duplicates, measured."""
        if self.duplicates is not None:
            rows = self.duplicates.together(rows)
        rows = np.setdiff1d(rows, known.rows)
        rows = rows[pool.usable[rows]]
        if not len(rows):
            return known
        found = self.signals(rows, pool, ledger, "measurement")
        old = known.signals
        signals = {name: np.concatenate([old[name], v]) if old else v for name, v in found.items()}
        return Known(np.concatenate([known.rows, rows]), signals, known.online)

    def with_online(self, pool: Pool, needs: Sequence[str]) -> Known:
        """Usable rows that training steps have shown since the last refresh, and their duplicates, which
        would else be known by an older model, and pass for rows of their own. Nothing before the first
        measurement, which is of all rows as they are now; what was shown is forgotten then."""
        if self.online is None:
            return Known()
        rows, signals = self.online()
        if pool.unmeasured or not len(rows):
            return Known()
        if self.duplicates is not None:
            rows, signals = self.duplicates.for_all(rows, signals)
        good = pool.usable[rows]
        shown = {name: value[good] for name, value in signals.items()}
        # What a step does not show stays as it was measured.
        kept = {name: pool.feature(name)[rows[good]] for name in needs if name not in shown}
        return Known(rows[good], {**shown, **kept}, int(good.sum()))


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

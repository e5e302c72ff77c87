"""The second stage of a cascade: what the method needs is measured only of rows that `narrow` leaves.

all rows ─► cheap signals ─► filters up to `narrow` ─► the other signals of what is left ─► filters, method
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from coretune.filters import chain
from coretune.ledger import Ledger
from coretune.policies.update import update
from coretune.rounds.coreset_config import CoresetConfig
from coretune.rounds.measurement import Known, Measurement
from coretune.types import Array, Pool


def narrowed(config: CoresetConfig, pool: Pool, round: int, rest: Measurement, ledger: Ledger) -> Pool:
    """The pool with the signals of `rest`, of the rows that are left; of the others they are as they were, or
    0 where they were never measured, and no method sees those, for the filter takes them out.

    pool  with the signals that the filters up to `narrow` need, of all rows

    Where a signal turns out not to be finite, the row is no longer usable, and others take its place.
    """
    measured = np.zeros(pool.n, bool)
    while (rows := np.flatnonzero(_left(config, pool, ledger) & ~measured)).size:
        known = rest.with_measured(Known(), rows, pool, ledger)
        measured[rows] = True
        with ledger.phase("graph"):
            left = replace(pool, usable=measured & pool.usable)
            # A filter after `narrow` scores what has its signals only now.
            after = update(config.refresh, left, rows, known.signals, round, config.noise)
        pool = replace(after, usable=pool.usable & ~(measured & ~after.usable))
    return pool


def _left(config: CoresetConfig, pool: Pool, ledger: Ledger) -> Array:
    """(n,) bool: rows that the filters up to `narrow` leave."""
    budget = config.with_quota(pool, config.budget.resolve(pool))
    with ledger.phase("selection"):
        return chain.judged(config.filters[: config.narrows_at], pool, budget)[0].usable

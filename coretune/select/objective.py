"""What greedy engines maximise, and the set they find.

    F(S) = Σ_{i∈S} m_i + c · Σ_v d_v · max_{j∈S} sim(v, j)

Facility location plus a modular term: submodular, and monotone when m >= 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coretune.select.similarity import Similarity
from coretune.types import Array, Rows

#: Gains of copies differ by a few 1e-7 of themselves when BLAS sums in another order.
DENSE_TIE = 2e-6


@dataclass(frozen=True)
class Objective:
    """F(S) = Σ_{i∈S} modular_i + scale · Σ_v demand_v · max_{j∈S} sim(v, j).

    modular  (n,) float64
    demand   (n,) float64  >= 0, what covering row v is worth; 0 for a row that need not be covered
    """

    similarity: Similarity
    modular: Array
    scale: float
    demand: Array

    @property
    def tie(self) -> float:
        """Two gains closer than this share of themselves are equal: no more is known of them."""
        return DENSE_TIE if self.similarity.rounding > 0.0 else 0.0

    def gains(self, best: Array, rows: Rows) -> Array:
        """(m,) float64 F(S ∪ {i}) − F(S) of each row, S known by its coverage `best` (n,) float32."""
        return self.modular[rows] + self.scale * self.similarity.gains(best, self.demand, rows)

    def value(self, chosen: Rows) -> float:
        """F of a set, in any order."""
        best = np.zeros(self.similarity.n, dtype=np.float32)
        for row in chosen:
            self.similarity.cover(best, self.demand, row)
        return float(self.modular[chosen].sum() + self.scale * (self.demand * best).sum())


@dataclass(frozen=True)
class Picks:
    """S as it was built.

    indices  (K,) int64    in the order chosen
    gains    (K,) float64  F(S ∪ {i}) − F(S) of each when it was picked
    best     (n,) float32  each row's similarity to its nearest pick
    represented_by  (n,) int64  position of the pick that represents each row, -1 = none, where the solver
                 decides that (`two_rounds.py`); None = its nearest
    rest     gives the gains of now at less cost than the objective's own similarity; None: nothing does
    """

    indices: Rows
    gains: Array
    best: Array
    represented_by: Array | None = None
    rest: Similarity | None = None

    def nearest(self, similarity: Similarity) -> Array:
        """(n,) int64 position of the pick that represents each row, -1 = none."""
        return similarity.nearest(self.indices) if self.represented_by is None else self.represented_by


def coverage_worth(objective: Objective, picks: Picks, usable: Array) -> Array:
    """(n,) float64 coverage part of each row's worth: when it was picked, or now if it was not.

    0 for unusable rows. One evaluation of every row, for the audit; none for a pool that was too large for
    one round, where it is 0 for rows that were not picked.
    """
    worth = np.zeros(objective.similarity.n)
    rows = np.flatnonzero(usable)
    if picks.represented_by is None:
        source = objective.similarity if picks.rest is None else picks.rest
        worth[rows] = objective.scale * source.gains(picks.best, objective.demand, rows)
    worth[picks.indices] = picks.gains - objective.modular[picks.indices]
    return worth

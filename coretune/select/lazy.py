"""Lazy greedy: candidates by a bound of their gain, and few evaluations.

A gain only falls as S grows, so an old gain bounds the one of now, and a candidate is evaluated again only
when its bound reaches the top of a heap (Minoux, "Accelerated greedy algorithms for maximizing submodular
set functions", 1978). Between all pairs, where an evaluation reads the whole pool, three things more, none of
which changes an answer [choice]:

- Where all similarities fit the memory they are computed once, and held.
- While coverage changes a lot, many bounds are loose at once. Then all of them are lowered by what the rows
  whose coverage has changed took from them, which reads those rows only.
- After m picks about one pair in m can still add anything. As soon as these fit the memory they are gathered
  in one pass (`pairs.py`), and greedy goes on along them as along a graph. Of what is held they are gathered
  when so few are left that reading them is worth it.
"""

from __future__ import annotations

import numpy as np

from coretune.select.chosen import Chosen, winner
from coretune.select.dense import DenseSimilarity, hold
from coretune.select.heap import Heap
from coretune.select.pairs import PAIR_BYTES, pairs_left
from coretune.types import Array, Rows

#: Evaluations of one pick, as a share of what lowering all bounds would cost, after which they are lowered.
PATIENCE = 0.25
#: Part of the memory that all similarities may take; the rest is for the pairs that follow.
HELD = 0.75
#: One of so many pairs is left when they are gathered from what is held: a gathered one costs as much to read
#: as some ten of what is held, and gathering as much as reading all of it a few times.
SPARSE = 32


def lazy(chosen: Chosen, rows: Rows, by_cost: bool, memory: int) -> None:
    """Fill `chosen` from candidates `rows` (m,), rising. memory: bytes that pairs may take."""
    tie = chosen.objective.tie
    source = chosen.objective.similarity
    bounds = None
    if isinstance(source, DenseSimilarity):
        if fits(source.n, memory):
            source = hold(source)
            chosen.go_on_with(source)
        bounds = Bounds(chosen, source, rows, memory)
    if bounds is not None and bounds.narrow(chosen):
        bounds = None
    heap = Heap(rows, chosen.worth(rows, by_cost) if bounds is None else bounds.first(chosen, by_cost))
    while chosen.left > 0 and heap.size:
        fresh, worth = _evaluate_top(chosen, heap, bounds, by_cost, tie)
        if not len(fresh):
            return
        best = winner(fresh, worth, tie)
        chosen.take(fresh[best])
        heap.put(np.delete(fresh, best), np.delete(worth, best))
        if bounds is not None and bounds.narrow(chosen):
            bounds = None


def fits(n: int, memory: int) -> bool:
    """Whether all similarities of n rows are held where so many bytes may be taken."""
    return 4 * n * n <= HELD * memory


class Bounds:
    """Gains of all candidates as they were at some moment, between all pairs."""

    def __init__(self, chosen: Chosen, source: DenseSimilarity, rows: Rows, memory: int) -> None:
        self._source, self._rows = source, rows
        self._gains = np.zeros(source.n)  # of coverage alone
        self._then = chosen.best.copy()
        self._most_pairs = memory // PAIR_BYTES
        if source.held is not None:
            self._most_pairs = min((memory - source.held.nbytes) // PAIR_BYTES, source.held.size // SPARSE)
        self._look_at = 0  # picks at which pairs are counted again
        # What BLAS may make of one similarity, when it was added and again when it was taken off.
        self._slack = 4.0 * source.rounding * float(chosen.objective.demand.sum())

    def first(self, chosen: Chosen, by_cost: bool) -> Array:
        """(m,) float64 the worth of every candidate now."""
        self._gains[self._rows] = self._source.gains(chosen.best, chosen.objective.demand, self._rows)
        return self._worth(chosen, self._rows, by_cost, 0.0)

    def too_loose(self, chosen: Chosen, evaluated: int) -> bool:
        """Whether so many evaluations cost a good part of lowering all bounds."""
        if evaluated < self._source.width or self._source.held is not None:
            return False
        changed = int(np.count_nonzero(chosen.best > self._then))
        return changed > 0 and evaluated * self._source.n > PATIENCE * changed * len(self._rows)

    def lowered(self, chosen: Chosen, rows: Rows, by_cost: bool) -> Array:
        """(m,) float64 bounds of now of `rows`, which are all candidates that may still be chosen."""
        demand = chosen.objective.demand
        self._gains[rows] -= self._source.lost(self._then, chosen.best, demand, rows)
        self._rows, self._then = rows, chosen.best.copy()
        return self._worth(chosen, rows, by_cost, self._slack)

    def narrow(self, chosen: Chosen) -> bool:
        """Whether greedy goes on along the pairs that are left."""
        if len(chosen.indices) < self._look_at:
            return False
        demand = chosen.objective.demand
        asked = demand > 0.0  # for the audit, gains of all that count are asked for at the end
        asked[self._rows] = True
        many, pairs = pairs_left(self._source, chosen.best, demand, np.flatnonzero(asked), self._most_pairs)
        if pairs is not None:
            chosen.go_on_with(pairs)
            return True
        picks = len(chosen.indices)
        growth = min(2.0, many / max(1, self._most_pairs))  # pairs fall as 1 / picks
        self._look_at = max(picks + 1, int(picks * growth))
        return False

    def _worth(self, chosen: Chosen, rows: Rows, by_cost: bool, slack: float) -> Array:
        objective = chosen.objective
        worth = objective.modular[rows] + objective.scale * (self._gains[rows] + slack)
        return worth / chosen.cost[rows] if by_cost else worth


def _evaluate_top(
    chosen: Chosen, heap: Heap, bounds: Bounds | None, by_cost: bool, tie: float
) -> tuple[Rows, Array]:
    """Take rows off the heap until none that is left can win; (m,) rows and their worth now."""
    fresh: Rows = np.empty(0, dtype=np.int64)
    worth: Array = np.empty(0)
    count = chosen.objective.similarity.width
    while heap.size and not (len(fresh) and _cannot_win(heap.top, fresh, worth, tie)):
        if bounds is not None and bounds.too_loose(chosen, len(fresh)):
            rows = chosen.fitting(np.sort(np.concatenate([fresh, heap.take(heap.size)])))
            heap.refill(rows, bounds.lowered(chosen, rows, by_cost))
            fresh, worth = fresh[:0], worth[:0]
            count = chosen.objective.similarity.width
            continue
        rows = chosen.fitting(heap.take(count))  # what does not fit now never will
        fresh = np.concatenate([fresh, rows])
        worth = np.concatenate([worth, chosen.worth(rows, by_cost)])
        count *= 2
    return fresh, worth


def _cannot_win(top: tuple[float, int], fresh: Rows, worth: Array, tie: float) -> bool:
    """Whether the heap's first, and so all behind it, lose to the best fresh one."""
    bound, row = top
    best = worth.max()
    if tie == 0.0 and bound == best:
        return bool(row > fresh[worth == best].min())
    return bool(bound < best - 2.0 * tie * abs(best))  # the bound may be off as well

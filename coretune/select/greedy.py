"""Greedy maximisation of coverage plus worth, for budgets in rows or tokens: naive, lazy, stochastic.

    F(S) = Σ_{i∈S} m_i + c · Σ_v d_v · max_{j∈S} sim(v, j)

Facility location plus a modular term: submodular, and monotone when m >= 0. The engines return each pick's
gain F(S ∪ {i}) − F(S) in the order of picking. Equal gains are decided by the lowest row, so the answer
depends on nothing but the input.

Guarantees, for m >= 0:
- rows: F(S) >= (1 − 1/e) F(best) (Nemhauser, Wolsey, Fisher, Math. Programming 14, 1978, Theorem 4.2).
- tokens: the better of two runs, one by gain per token and one by gain, each taking what still fits.
  F(S) >= 0.405 F(best): the modified greedy (gain per token, or the best single row) has that factor (Tang
  et al., "Revisiting Modified Greedy Algorithm for Monotone Submodular Maximization with a Knapsack
  Constraint", arXiv:2008.05391), and the run by gain starts with the best single row. This covers the often
  quoted 1 − 1/√e ≈ 0.393, whose older proof had a gap that the same paper closes; what Leskovec et al.
  (KDD 2007) prove for the better of the two is ½(1 − 1/e).
- a dense source rounds: gains equal up to that rounding are draws (DENSE_TIE), and the factors hold up to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from coretune.select.heap import Heap
from coretune.select.similarity import Similarity
from coretune.types import Array, Budget, Rows

#: `lazy_greedy` or another engine: (objective, budget, cost (n,) int64, candidates (n,) bool) -> S
Engine = Callable[["Objective", Budget, Array, Array], "Picks"]

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
    stands_with  (n,) int64  position of the pick each row stands with, -1 = none, where the engine decides
                 that (`two_rounds.py`); None = its nearest
    """

    indices: Rows
    gains: Array
    best: Array
    stands_with: Array | None = None

    def nearest(self, similarity: Similarity) -> Array:
        """(n,) int64 position of the pick each row stands with, -1 = none."""
        return similarity.nearest(self.indices) if self.stands_with is None else self.stands_with


def coverage_worth(objective: Objective, picks: Picks, usable: Array) -> Array:
    """(n,) float64 coverage part of each row's worth: when it was picked, or now if it was not.

    0 for unusable rows. One evaluation of every row, for the audit; none for a pool that was too large for
    one round, where it is 0 for rows that were not picked.
    """
    worth = np.zeros(objective.similarity.n)
    rows = np.flatnonzero(usable)
    if picks.stands_with is None:
        worth[rows] = objective.scale * objective.similarity.gains(picks.best, objective.demand, rows)
    worth[picks.indices] = picks.gains - objective.modular[picks.indices]
    return worth


def naive_greedy(
    objective: Objective, budget: Budget, cost: Array, candidates: Array, start: Rows | None = None
) -> Picks:
    """Every candidate's gain anew for every pick. Slow and obvious: the oracle of the tests. O(K) passes.

    cost        (n,) int64  tokens of each row, read under a token budget only
    candidates  (n,) bool   rows that may be chosen
    start       (m,) int64  warm start: rows chosen beforehand, in this order, paid from the budget; the
                            guarantee then holds for what is added to them
    Raises ValueError when the candidates cannot fill a row budget, or no row fits a token budget.
    """
    return _within_budget(_naive, objective, budget, cost, candidates, start)


def lazy_greedy(
    objective: Objective, budget: Budget, cost: Array, candidates: Array, start: Rows | None = None
) -> Picks:
    """The naive engine's answer, to the last row, from few evaluations. Same arguments, guarantee and errors.

    A gain only falls as S grows, so an old gain is an upper bound: a candidate is evaluated again only when
    its bound reaches the top of the heap (Minoux, "Accelerated greedy algorithms for maximizing submodular
    set functions", 1978).
    """
    return _within_budget(_lazy, objective, budget, cost, candidates, start)


def stochastic_greedy(
    objective: Objective,
    budget: Budget,
    cost: Array,
    candidates: Array,
    start: Rows | None = None,
    *,
    rng: np.random.Generator,
    epsilon: float = 0.01,
) -> Picks:
    """The best of a random sample for every pick: n ln(1/ε) evaluations, whatever K is.

    A sample is (n/K) ln(1/ε) candidates. Rows: F(S) >= (1 − 1/e − ε) F(best) in expectation (Mirzasoleiman
    et al., "Lazier Than Lazy Greedy", AAAI 2015, Theorem 1). Tokens: K is taken as the tokens over the
    candidates' mean cost [choice]; no factor is proven. Arguments and errors as `naive_greedy`.
    """

    def run(chosen: _Chosen, rows: Rows, by_cost: bool) -> None:
        picks = max(1.0, chosen.left / chosen.cost[rows].mean())
        _stochastic(chosen, rows, by_cost, int(np.ceil(len(rows) / picks * np.log(1.0 / epsilon))), rng)

    return _within_budget(run, objective, budget, cost, candidates, start)


class _Chosen:
    """S while it grows: its picks, its coverage, and what is left of the budget."""

    def __init__(self, objective: Objective, cost: Array, amount: int) -> None:
        self.objective = objective
        self.cost = cost  # (n,) int64
        self.left = amount
        self.indices: list[int] = []
        self.gains: list[float] = []
        self.best = np.zeros(objective.similarity.n, dtype=np.float32)

    def worth(self, rows: Rows, by_cost: bool) -> Array:
        """(m,) float64 gain of each row now, per token if so asked."""
        gains = self.objective.gains(self.best, rows)
        return gains / self.cost[rows] if by_cost else gains

    def fitting(self, rows: Rows) -> Rows:
        return rows[self.cost[rows] <= self.left]

    def take(self, row: int) -> None:
        objective = self.objective
        covered = objective.similarity.cover(self.best, objective.demand, row)
        self.gains.append(float(objective.modular[row] + objective.scale * covered))
        self.indices.append(int(row))
        self.left -= int(self.cost[row])

    def picks(self) -> Picks:
        return Picks(np.array(self.indices, dtype=np.int64), np.array(self.gains), self.best)


_Run = Callable[[_Chosen, Rows, bool], None]


def _within_budget(
    run: _Run, objective: Objective, budget: Budget, cost: Array, candidates: Array, start: Rows | None
) -> Picks:
    """One run for rows; for tokens the better of a run by gain per token and a run by gain."""
    begun = np.empty(0, dtype=np.int64) if start is None else np.asarray(start, dtype=np.int64)
    check_budget(budget, cost, candidates, begun)
    if budget.unit == "rows":
        cost = np.ones(len(cost), dtype=np.int64)
        return _one_run(run, objective, cost, budget.amount, candidates, begun, False)
    by_token = _one_run(run, objective, cost, budget.amount, candidates, begun, True)
    by_gain = _one_run(run, objective, cost, budget.amount, candidates, begun, False)
    return by_token if by_token.gains.sum() >= by_gain.gains.sum() else by_gain


def _one_run(
    run: _Run, objective: Objective, cost: Array, amount: int, candidates: Array, begun: Rows, by_cost: bool
) -> Picks:
    chosen = _Chosen(objective, cost, amount)
    for row in begun:
        chosen.take(row)
    left = candidates.copy()
    left[begun] = False
    rows = chosen.fitting(np.flatnonzero(left))
    if len(rows):
        run(chosen, rows, by_cost)
    return chosen.picks()


def check_budget(
    budget: Budget, cost: Array, candidates: Array | None = None, begun: Rows | None = None
) -> None:
    """ValueError unless candidates (n,) bool, or all, can fill the budget, and begun (m,) is within it."""
    candidates = np.ones(len(cost), dtype=bool) if candidates is None else candidates
    begun = np.empty(0, dtype=np.int64) if begun is None else begun
    if budget.amount < 1:
        raise ValueError(f"a budget of {budget.amount} {budget.unit} chooses nothing; ask for at least 1")
    if len(np.unique(begun)) < len(begun) or not candidates[begun].all():
        raise ValueError("the start of a greedy run must be distinct candidates")
    if budget.unit == "rows":
        if budget.amount > candidates.sum():
            raise ValueError(
                f"a budget of {budget.amount} rows, but only {candidates.sum()} candidates; ask for fewer"
            )
        spent = len(begun)
    else:
        if cost[candidates].min(initial=1) < 1:
            raise ValueError(
                f"a row costs {cost[candidates].min()} tokens; under a token budget each must cost >= 1"
            )
        if budget.amount < cost[candidates].min(initial=budget.amount + 1):
            raise ValueError(f"no candidate fits a budget of {budget.amount} tokens; ask for more")
        spent = int(cost[begun].sum())
    if spent > budget.amount:
        raise ValueError(
            f"the start already spends {spent} of {budget.amount} {budget.unit}; start from fewer rows"
        )


def _winner(rows: Rows, worth: Array, tie: float) -> int:
    """Position of the largest worth; among those equal to it, of the lowest row."""
    best = worth.max()
    equal = np.flatnonzero(worth >= best - tie * abs(best))
    return int(equal[rows[equal].argmin()])


def _naive(chosen: _Chosen, rows: Rows, by_cost: bool) -> None:
    while len(rows):
        winner = _winner(rows, chosen.worth(rows, by_cost), chosen.objective.tie)
        chosen.take(rows[winner])
        rows = chosen.fitting(np.delete(rows, winner))


def _lazy(chosen: _Chosen, rows: Rows, by_cost: bool) -> None:
    tie = chosen.objective.tie
    heap = Heap(rows, chosen.worth(rows, by_cost))
    while chosen.left > 0 and heap.size:
        fresh, worth = _evaluate_top(chosen, heap, by_cost, tie)
        if not len(fresh):
            return
        winner = _winner(fresh, worth, tie)
        chosen.take(fresh[winner])
        heap.put(np.delete(fresh, winner), np.delete(worth, winner))


def _evaluate_top(chosen: _Chosen, heap: Heap, by_cost: bool, tie: float) -> tuple[Rows, Array]:
    """Take rows off the heap until none that is left can win; (m,) rows and their worth now."""
    fresh: Rows = np.empty(0, dtype=np.int64)
    worth: Array = np.empty(0)
    count = chosen.objective.similarity.width
    while heap.size and not (len(fresh) and _cannot_win(heap.top, fresh, worth, tie)):
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


def _stochastic(chosen: _Chosen, rows: Rows, by_cost: bool, sample: int, rng: np.random.Generator) -> None:
    left, size = rows.copy(), len(rows)
    while size:
        drawn = np.arange(size) if sample >= size else np.unique(rng.integers(size, size=sample))
        fits = drawn[chosen.cost[left[drawn]] <= chosen.left]
        if not len(fits):
            kept = chosen.fitting(left[:size])
            left, size = kept, len(kept)
            continue
        winner = fits[_winner(left[fits], chosen.worth(left[fits], by_cost), chosen.objective.tie)]
        chosen.take(left[winner])
        size -= 1
        left[winner] = left[size]
        if chosen.left <= 0:
            return

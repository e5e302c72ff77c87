"""Greedy engines for coverage plus worth, for budgets in rows or tokens: lazy, stochastic.

They return each pick's gain F(S ∪ {i}) − F(S) in the order of picking (`objective.py`). Equal gains are
decided by the lowest row, so the answer depends on nothing but the input. A budget's quota is kept
(`quota.py`).

Guarantees, for m >= 0 and without a quota:
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

import numpy as np

from coretune.progress_reports import reporter
from coretune.select.chosen import Chosen, winner
from coretune.select.lazy import lazy
from coretune.select.objective import Objective, Picks
from coretune.select.quota import check_quota
from coretune.types import Array, Budget, Rows

#: `lazy_greedy` or another engine: (objective, budget, cost (n,) int64, candidates (n,) bool) -> S
Engine = Callable[[Objective, Budget, Array, Array], Picks]

#: Bytes that pairs of a dense objective may take where nothing else is said.
MEMORY = 2 * 2**30


def lazy_greedy(
    objective: Objective, budget: Budget, cost: Array, candidates: Array, *, memory: int = MEMORY
) -> Picks:
    """The answer of evaluating every candidate for every pick, to the last row, from few evaluations.

    cost        (n,) int64  tokens of each row, read under a token budget only
    candidates  (n,) bool   rows that may be chosen
    memory      bytes that it may hold of a dense objective's pairs; the answer does not depend on it
    Raises ValueError when the candidates cannot fill a row budget, or a quota, or no row fits a token budget.
    """

    def run(chosen: Chosen, rows: Rows, by_cost: bool) -> None:
        lazy(chosen, rows, by_cost, memory)

    return _within_budget(run, objective, budget, cost, candidates)


def stochastic_greedy(
    objective: Objective,
    budget: Budget,
    cost: Array,
    candidates: Array,
    *,
    rng: np.random.Generator,
    epsilon: float = 0.01,
) -> Picks:
    """The best of a random sample for every pick: n ln(1/ε) evaluations, whatever K is.

    A sample is (n/K) ln(1/ε) candidates. Rows: F(S) >= (1 − 1/e − ε) F(best) in expectation (Mirzasoleiman
    et al., "Lazier Than Lazy Greedy", AAAI 2015, Theorem 1). Tokens: K is taken as the tokens over the
    candidates' mean cost [choice]; no factor is proven. Arguments and errors as of `lazy_greedy`.
    """

    def run(chosen: Chosen, rows: Rows, by_cost: bool) -> None:
        picks = max(1.0, chosen.left / chosen.cost[rows].mean())
        _stochastic(chosen, rows, by_cost, int(np.ceil(len(rows) / picks * np.log(1.0 / epsilon))), rng)

    return _within_budget(run, objective, budget, cost, candidates)


_Run = Callable[[Chosen, Rows, bool], None]


def _within_budget(run: _Run, objective: Objective, budget: Budget, cost: Array, candidates: Array) -> Picks:
    """One run for rows; for tokens the better of a run by gain per token and a run by gain."""
    check_budget(budget, cost, candidates)
    if budget.unit == "rows":
        return _one_run(run, objective, budget, np.ones(len(cost), dtype=np.int64), candidates, False)
    by_token = _one_run(run, objective, budget, cost, candidates, True)
    by_gain = _one_run(run, objective, budget, cost, candidates, False)
    worth = (1.0 - objective.tie) * by_gain.gains.sum()  # often both are one set in another order
    return by_token if by_token.gains.sum() >= worth else by_gain


def _one_run(
    run: _Run, objective: Objective, budget: Budget, cost: Array, candidates: Array, by_cost: bool
) -> Picks:
    chosen = Chosen(objective, budget, cost, reporter("choosing"))
    rows = chosen.fitting(np.flatnonzero(candidates))
    if len(rows):
        run(chosen, rows, by_cost)
    return chosen.picks()


def check_budget(budget: Budget, cost: Array, candidates: Array | None = None) -> None:
    """ValueError unless candidates (n,) bool, or all, can fill the budget, within its quota."""
    candidates = np.ones(len(cost), dtype=bool) if candidates is None else candidates
    if budget.amount < 1:
        raise ValueError(f"a budget of {budget.amount} {budget.unit} chooses nothing; ask for at least 1")
    if budget.unit == "rows":
        if budget.amount > candidates.sum():
            raise ValueError(
                f"a budget of {budget.amount} rows, but only {candidates.sum()} candidates; ask for fewer"
            )
    else:
        if cost[candidates].min(initial=1) < 1:
            raise ValueError(
                f"a row costs {cost[candidates].min()} tokens; under a token budget each must cost >= 1"
            )
        if budget.amount < cost[candidates].min(initial=budget.amount + 1):
            raise ValueError(f"no candidate fits a budget of {budget.amount} tokens; ask for more")
    if budget.quota is not None:
        price = np.ones_like(cost) if budget.unit == "rows" else cost
        check_quota(budget.quota, budget, price, candidates)


def _stochastic(chosen: Chosen, rows: Rows, by_cost: bool, sample: int, rng: np.random.Generator) -> None:
    left, size = rows.copy(), len(rows)
    while size:
        drawn = np.arange(size) if sample >= size else np.unique(rng.integers(size, size=sample))
        fits = drawn[np.isin(left[drawn], chosen.fitting(left[drawn]))]
        if not len(fits):
            kept = chosen.fitting(left[:size])
            left, size = kept, len(kept)
            continue
        best = fits[winner(left[fits], chosen.worth(left[fits], by_cost), chosen.objective.tie)]
        chosen.take(left[best])
        size -= 1
        left[best] = left[size]
        if chosen.left <= 0:
            return

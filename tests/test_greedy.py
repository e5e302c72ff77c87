from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from greedy_problems import graph_of
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_greedy import naive_greedy

from coretune.select.dense import distance_similarity
from coretune.select.farthest_first import farthest_first
from coretune.select.greedy import lazy_greedy, stochastic_greedy
from coretune.select.heap import Heap
from coretune.select.objective import Objective, Picks, coverage_worth
from coretune.types import Array, Budget

FEW = settings(deadline=None, max_examples=60)


@dataclass(frozen=True)
class Problem:
    """A facility location problem small enough for its similarity matrix (n, n) to be written down."""

    matrix: Array
    objective: Objective
    cost: Array
    candidates: Array

    @property
    def n(self) -> int:
        return len(self.matrix)

    def value(self, chosen: tuple[int, ...]) -> float:
        """F from its formula."""
        if not chosen:
            return 0.0
        rows = list(chosen)
        cover = (self.objective.demand * self.matrix[:, rows].max(axis=1)).sum()
        return float(self.objective.modular[rows].sum() + self.objective.scale * cover)

    def budgets(self) -> list[Budget]:
        rows, cost = int(self.candidates.sum()), self.cost[self.candidates]
        counts = [Budget(k, "rows") for k in sorted({1, (rows + 1) // 2, rows})]
        sums = [int(cost.min()), int(cost.min() + cost.sum()) // 2, int(cost.sum())]
        return counts + [Budget(tokens, "tokens") for tokens in sorted(set(sums))]


@st.composite
def problems(draw: st.DrawFn, most: int = 24, exact: bool = True) -> Problem:
    """Exact: eighths and integers only, so that every sum is exact and draws are frequent."""
    n = draw(st.integers(1, most))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    steps = rng.integers(1, 9, size=(n, n)) / 8 if exact else rng.random((n, n))
    matrix = np.where(rng.random((n, n)) < draw(st.sampled_from([0.0, 0.2, 1.0])), steps, 0.0)
    matrix = np.maximum(matrix, matrix.T).astype(np.float32)
    np.fill_diagonal(matrix, 1.0)
    modular = rng.integers(0, 5, size=n) / 4 if exact else rng.random(n)
    demand = rng.integers(0, 3, size=n).astype(np.float64)
    objective = Objective(graph_of(matrix), modular * draw(st.sampled_from([0.0, 1.0])), 0.5, demand)
    candidates = rng.random(n) < draw(st.sampled_from([0.5, 1.0]))
    candidates[rng.integers(n)] = True
    return Problem(matrix, objective, rng.choice([1, 2, 4, 8], size=n), candidates)


def slow_greedy(problem: Problem, budget: Budget, per_token: bool) -> list[int]:
    """Greedy from the formula alone, one candidate at a time."""
    chosen: list[int] = []
    price = problem.cost if budget.unit == "tokens" else np.ones_like(problem.cost)
    while True:
        left = budget.amount - int(price[chosen].sum())
        open_rows = [i for i in np.flatnonzero(problem.candidates) if i not in chosen and price[i] <= left]
        if not open_rows:
            return chosen
        before = problem.value(tuple(chosen))
        gain = [problem.value((*chosen, i)) - before for i in open_rows]
        worth = [g / price[i] if per_token else g for g, i in zip(gain, open_rows, strict=True)]
        chosen.append(int(open_rows[int(np.argmax(worth))]))  # the first of equals


def better_slow_greedy(problem: Problem, budget: Budget) -> list[int]:
    by_gain = slow_greedy(problem, budget, per_token=False)
    if budget.unit == "rows":
        return by_gain
    by_token = slow_greedy(problem, budget, per_token=True)
    return by_token if problem.value(tuple(by_token)) >= problem.value(tuple(by_gain)) else by_gain


def sampled(epsilon: float = 0.1, seed: int = 0) -> Callable[..., Picks]:
    def engine(objective: Objective, budget: Budget, cost: Array, candidates: Array) -> Picks:
        rng = np.random.default_rng(seed)
        return stochastic_greedy(objective, budget, cost, candidates, rng=rng, epsilon=epsilon)

    return engine


@given(problems())
@FEW
def test_naive_is_greedy_by_the_formula(problem: Problem) -> None:
    for budget in problem.budgets():
        picks = naive_greedy(problem.objective, budget, problem.cost, problem.candidates)
        assert picks.indices.tolist() == better_slow_greedy(problem, budget)


@given(problems())
@FEW
def test_lazy_is_naive_where_draws_are_frequent(problem: Problem) -> None:
    assert_same_picks(problem)


@given(problems(exact=False))
@FEW
def test_lazy_is_naive_for_any_numbers(problem: Problem) -> None:
    assert_same_picks(problem)


def assert_same_picks(problem: Problem) -> None:
    for budget in problem.budgets():
        lazy = lazy_greedy(problem.objective, budget, problem.cost, problem.candidates)
        naive = naive_greedy(problem.objective, budget, problem.cost, problem.candidates)
        assert lazy.indices.tolist() == naive.indices.tolist()
        assert lazy.gains.tolist() == naive.gains.tolist()
        assert lazy.best.tolist() == naive.best.tolist()


@pytest.mark.parametrize("engine", [naive_greedy, lazy_greedy, sampled()])
@given(problem=problems())
@FEW
def test_picks_are_distinct_candidates_within_the_budget(
    engine: Callable[..., Picks], problem: Problem
) -> None:
    for budget in problem.budgets():
        picks = engine(problem.objective, budget, problem.cost, problem.candidates)
        assert len(np.unique(picks.indices)) == len(picks.indices)
        assert problem.candidates[picks.indices].all()
        left = problem.candidates.copy()
        left[picks.indices] = False
        if budget.unit == "rows":
            assert len(picks.indices) == budget.amount
        else:
            tokens = problem.cost[picks.indices].sum()
            assert tokens <= budget.amount
            assert (problem.cost[left] > budget.amount - tokens).all()  # nothing that would still fit is left


@pytest.mark.parametrize("engine", [naive_greedy, lazy_greedy, sampled()])
@given(problem=problems())
@FEW
def test_gains_add_up_to_the_value(engine: Callable[..., Picks], problem: Problem) -> None:
    for budget in problem.budgets():
        picks = engine(problem.objective, budget, problem.cost, problem.candidates)
        for count in (1, len(picks.indices)):
            value = problem.value(tuple(picks.indices[:count]))
            assert picks.gains[:count].sum() == pytest.approx(value)
            assert problem.objective.value(picks.indices[:count]) == pytest.approx(value)
        assert picks.best.tolist() == problem.matrix[:, picks.indices].max(axis=1).tolist()


@given(problems(exact=False))
@FEW
def test_gains_never_increase_under_a_row_budget(problem: Problem) -> None:
    budget = Budget(int(problem.candidates.sum()))
    gains = lazy_greedy(problem.objective, budget, problem.cost, problem.candidates).gains
    assert (np.diff(gains) <= 0).all()


@given(problems(exact=False), st.integers(0, 2**32 - 1))
@FEW
def test_the_objective_is_monotone_and_submodular(problem: Problem, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(problem.n)
    best = np.zeros(problem.n, dtype=np.float32)
    everything = np.arange(problem.n)
    before = problem.objective.gains(best, everything)
    for row in order:  # along a chain of growing sets no gain ever rises
        problem.objective.similarity.cover(best, problem.objective.demand, row)
        after = problem.objective.gains(best, everything)
        assert (after <= before).all()
        assert (after >= 0).all()
        before = after


@given(problems(most=9, exact=False))
@FEW
def test_the_guarantees_hold_against_the_best_set(problem: Problem) -> None:
    rows = np.flatnonzero(problem.candidates).tolist()
    for budget in problem.budgets():
        price = problem.cost if budget.unit == "tokens" else np.ones_like(problem.cost)
        sets = itertools.chain.from_iterable(itertools.combinations(rows, k) for k in range(1, len(rows) + 1))
        best = max(problem.value(s) for s in sets if price[list(s)].sum() <= budget.amount)
        picks = lazy_greedy(problem.objective, budget, problem.cost, problem.candidates)
        factor = 1 - 1 / np.e if budget.unit == "rows" else 0.405
        assert picks.gains.sum() >= factor * best - 1e-9


def test_the_run_by_gain_wins_where_one_long_row_is_worth_all() -> None:
    modular = np.array([1.0, 0.2, 50.0])  # row 0 is best per token, and then row 2 no longer fits
    objective = Objective(graph_of(np.eye(3, dtype=np.float32)), modular, 0.0, np.ones(3))
    picks = lazy_greedy(objective, Budget(100, "tokens"), np.array([1, 1, 100]), np.ones(3, dtype=bool))
    assert picks.indices.tolist() == [2]


def test_stochastic_with_a_full_sample_is_naive() -> None:
    problem = large_problem(60)
    for budget in problem.budgets():
        naive = naive_greedy(problem.objective, budget, problem.cost, problem.candidates)
        drawn = sampled(epsilon=1e-300)(problem.objective, budget, problem.cost, problem.candidates)
        assert drawn.indices.tolist() == naive.indices.tolist()


def test_stochastic_is_near_greedy_on_average() -> None:
    problem = large_problem(300)
    budget = Budget(30)
    arguments = (problem.objective, budget, problem.cost, problem.candidates)
    greedy = lazy_greedy(*arguments).gains.sum()
    drawn = [sampled(epsilon=0.1, seed=seed)(*arguments).gains.sum() for seed in range(10)]
    assert np.mean(drawn) >= 0.95 * greedy
    assert len(set(drawn)) > 1


def large_problem(n: int) -> Problem:
    rng = np.random.default_rng(3)
    matrix = np.where(rng.random((n, n)) < 0.05, rng.random((n, n)), 0.0)
    matrix = np.maximum(matrix, matrix.T).astype(np.float32)
    np.fill_diagonal(matrix, 1.0)
    objective = Objective(graph_of(matrix), 0.1 * rng.random(n), 1.0, np.ones(n))
    return Problem(matrix, objective, rng.integers(1, 20, size=n), np.ones(n, dtype=bool))


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget(0), "0 rows chooses nothing"),
        (Budget(4), "4 rows, but only 3 candidates"),
        (Budget(1, "tokens"), "no candidate fits a budget of 1 tokens"),
    ],
)
def test_a_budget_that_cannot_be_met_is_an_error(budget: Budget, message: str) -> None:
    objective = Objective(graph_of(np.eye(4, dtype=np.float32)), np.zeros(4), 1.0, np.ones(4))
    candidates = np.array([True, True, True, False])
    for engine in (naive_greedy, lazy_greedy, sampled()):
        with pytest.raises(ValueError, match=message):
            engine(objective, budget, np.array([2, 3, 4, 1]), candidates)


def test_coverage_worth_is_the_gain_when_picked_and_the_gain_now_otherwise() -> None:
    problem = large_problem(40)
    usable = np.arange(40) < 35
    picks = lazy_greedy(problem.objective, Budget(6), problem.cost, usable)
    worth = coverage_worth(problem.objective, picks, usable)
    now = problem.objective.gains(picks.best, np.arange(40)) - problem.objective.modular
    others = np.setdiff1d(np.arange(35), picks.indices)
    assert worth[others] == pytest.approx(now[others])
    assert worth[picks.indices] + problem.objective.modular[picks.indices] == pytest.approx(picks.gains)
    assert not worth[35:].any()


# dense sources


@given(problems(), st.data())
@FEW
def test_nearest_of_a_graph_is_the_most_similar_pick(problem: Problem, data: st.DataObject) -> None:
    chosen = np.array(data.draw(st.lists(st.integers(0, problem.n - 1), unique=True, min_size=1)))
    nearest = problem.objective.similarity.nearest(chosen)
    similar = problem.matrix[:, chosen]
    for row in range(problem.n):
        if row in chosen:
            assert chosen[nearest[row]] == row
        else:
            assert nearest[row] == (similar[row].argmax() if similar[row].max() > 0 else -1)


# farthest first


@given(st.integers(2, 9), st.integers(0, 2**32 - 1), st.data())
@FEW
def test_farthest_first_is_within_twice_the_best_radius(n: int, seed: int, data: st.DataObject) -> None:
    rows = np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)
    far = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    count = data.draw(st.integers(1, n - 1))
    everything = np.ones(n, dtype=bool)
    source = distance_similarity(rows, everything)
    picks = farthest_first(source, Budget(count), np.ones(n, dtype=np.int64), everything, first=0)
    radius = far[:, picks.indices].min(axis=1).max()
    best = min(far[:, list(s)].min(axis=1).max() for s in itertools.combinations(range(n), count))
    assert radius <= 2 * best + 1e-4
    assert (np.diff(picks.gains) <= 1e-4).all()
    for position in range(1, count):  # each pick is the farthest there was, and its gain that distance
        before = far[:, picks.indices[:position]].min(axis=1)
        assert picks.gains[position] == pytest.approx(before.max(), abs=1e-3)


def test_farthest_first_takes_what_still_fits() -> None:
    rows = np.array([[0.0], [1.0], [10.0], [20.0]], dtype=np.float32)
    everything = np.ones(4, dtype=bool)
    source = distance_similarity(rows, everything)
    picks = farthest_first(source, Budget(10, "tokens"), np.array([5, 2, 4, 6]), everything, first=0)
    assert picks.indices.tolist() == [0, 2]
    with pytest.raises(ValueError, match="5 rows, but only 4"):
        farthest_first(source, Budget(5), np.ones(4, dtype=np.int64), everything, first=0)
    with pytest.raises(ValueError, match="row 3 costs 6 tokens, more than the budget of 5"):
        farthest_first(source, Budget(5, "tokens"), np.array([5, 2, 4, 6]), everything, first=3)


# heap


@given(st.lists(st.integers(0, 6), max_size=40), st.integers(0, 2**32 - 1))
@FEW
def test_heap_is_a_sorted_list(worth: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(worth))
    heap = Heap(rows, np.array(worth, dtype=np.float64))
    listed = sorted((-value, row) for value, row in zip(worth, rows.tolist(), strict=True))
    while listed:
        assert heap.size == len(listed)
        assert heap.top == (-listed[0][0], listed[0][1])
        count = int(rng.integers(1, 6))
        taken, listed = listed[:count], listed[count:]
        assert heap.take(count).tolist() == [row for _, row in taken]
        back = [(value + int(rng.integers(0, 3)), row) for value, row in taken if rng.random() < 0.4]
        heap.put(np.array([row for _, row in back], dtype=np.int64), np.array([-float(v) for v, _ in back]))
        listed = sorted(listed + back)
    assert heap.size == 0

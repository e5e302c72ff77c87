"""Two-round greedy: the slow version's answer, near one round's, whoever does the parts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_greedy import naive_greedy

from coretune.select.craig import Craig
from coretune.select.dense import cosine_similarity, distance_similarity
from coretune.select.facility_location import FacilityLocation
from coretune.select.greedy import lazy_greedy
from coretune.select.objective import Objective
from coretune.select.similarity import GraphSimilarity
from coretune.select.two_rounds import _parts, _share, two_rounds
from coretune.types import Budget, Pool


def clustered(n: int, d: int, clusters: int, seed: int) -> np.ndarray:
    """(n, d) float32 unit rows around a few centres."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((clusters, d))[rng.integers(clusters, size=n)]
    rows = rows + 0.3 * rng.standard_normal((n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def problem(n: int, seed: int, distance: bool = False, modular: float = 0.0):
    """An objective, costs, and candidates; some rows unusable, with features that are not finite."""
    rng = np.random.default_rng([seed, 1])
    features = clustered(n, 8, 6, seed)
    usable = rng.random(n) < 0.9
    usable[:4] = True
    features[~usable] = np.nan
    source = distance_similarity(features, usable) if distance else cosine_similarity(features)
    objective = Objective(source, modular * rng.random(n), 1.0 / n, usable.astype(float))
    return objective, rng.integers(1, 30, n), usable & (rng.random(n) < 0.8) | (np.arange(n) < 4)


@given(
    seed=st.integers(0, 999),
    n=st.integers(40, 120),
    tokens=st.booleans(),
    distance=st.booleans(),
    modular=st.sampled_from([0.0, 0.05]),
)
@settings(deadline=None, max_examples=25)
def test_it_is_the_slow_version(seed, n, tokens, distance, modular):
    """Naive greedy in every part, then among the picks with the demand of who is nearest to each."""
    objective, cost, candidates = problem(n, seed, distance, modular)
    budget = Budget(int(cost[candidates].sum()) // 4 + 30, "tokens") if tokens else Budget(4)
    found = two_rounds(objective, budget, cost, candidates, seed=seed, part_rows=16)
    assert sorted(set(found.indices)) == sorted(found.indices)
    assert candidates[found.indices].all()
    spent = int(cost[found.indices].sum()) if tokens else len(found.indices)
    assert spent <= budget.amount if tokens else spent == budget.amount

    union, demand, stands = [], [], np.full(n, -1)
    rows = np.flatnonzero((objective.demand > 0) | candidates)
    for part in _parts(rows, candidates, seed, 16):
        inside = Objective(
            objective.similarity.at(part), objective.modular[part], 1 / n, objective.demand[part]
        )
        share = _share(budget, cost, candidates, part)
        picks = naive_greedy(inside, share, cost[part], candidates[part]).indices
        nearest = inside.similarity.nearest(picks)
        for position, row in enumerate(part):
            stands[row] = -1 if nearest[position] < 0 else part[picks[nearest[position]]]
        union += part[picks].tolist()
    demand = np.array([objective.demand[stands == row].sum() for row in union])
    second = Objective(objective.similarity.at(np.array(union)), objective.modular[union], 1 / n, demand)
    expected = naive_greedy(second, budget, cost[union], np.ones(len(union), bool))
    np.testing.assert_array_equal(found.indices, np.array(union)[expected.indices])
    np.testing.assert_allclose(found.gains, expected.gains, rtol=1e-5, atol=1e-7)  # float32 products


@pytest.mark.parametrize("distance", [False, True])
def test_it_comes_near_one_round_and_says_no_more_than_is_true(distance):
    objective, cost, candidates = problem(1500, seed=3, distance=distance)
    budget = Budget(30)
    one = lazy_greedy(objective, budget, cost, candidates)
    two = two_rounds(objective, budget, cost, candidates, seed=0, part_rows=200)
    assert objective.value(two.indices) > 0.97 * objective.value(one.indices)
    true = np.zeros(1500, np.float32)
    for row in two.indices:
        objective.similarity.cover(true, objective.demand, row)
    counted = objective.demand > 0
    assert (two.best[counted] <= true[counted] + 1e-5).all()
    assert two.best[counted].sum() > 0.9 * true[counted].sum()
    assert (two.represented_by[two.indices] == np.arange(30)).all()
    assert (two.represented_by[~counted & ~candidates] == -1).all()


def test_one_part_is_one_round():
    objective, cost, candidates = problem(100, seed=5)
    one = lazy_greedy(objective, Budget(9), cost, candidates)
    found = two_rounds(objective, Budget(9), cost, candidates, seed=0)
    np.testing.assert_array_equal(found.indices, one.indices)
    assert found.represented_by is None


def test_the_answer_does_not_depend_on_the_order_in_which_parts_are_done():
    objective, cost, candidates = problem(300, seed=5)

    def backwards(parts):
        return [part.pick() for part in list(parts)[::-1]][::-1]

    found, again = (
        two_rounds(objective, Budget(9), cost, candidates, seed=2, part_rows=50, **how)
        for how in ({}, {"each": backwards})
    )
    np.testing.assert_array_equal(found.indices, again.indices)
    np.testing.assert_array_equal(found.represented_by, again.represented_by)


@pytest.mark.parametrize("selector", [Craig(), FacilityLocation(similarity="dense")])
def test_selectors_take_the_engine(selector):
    features = clustered(400, 8, 6, seed=1)
    pool = Pool(
        features=dict.fromkeys(selector.needs, features),
        cost=np.ones(400, np.int64),
        measured_at=np.zeros(400, np.int32),
        usable=np.arange(400) != 3,
    )

    def engine(*problem_):
        return two_rounds(*problem_, seed=0, part_rows=100)

    found, one = selector.choose(pool, Budget(12), engine), selector.select(pool, Budget(12), None)
    assert len(set(found.indices)) == 12
    assert 3 not in found.indices
    np.testing.assert_allclose(found.weights.mean(), 1.0)
    if isinstance(selector, Craig):
        assert found.reasons["represents"].sum() == one.reasons["represents"].sum() == 399
    unpicked = np.setdiff1d(np.arange(400), found.indices)
    assert not found.reasons["coverage"][unpicked].any()  # not evaluated


def test_a_graph_is_refused_with_both_ways_out():
    graph = GraphSimilarity(np.zeros(41, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))
    objective = Objective(graph, np.zeros(40), 1.0, np.ones(40))
    with pytest.raises(ValueError, match=r"similarity is graph.*set similarity to dense, or engine to local"):
        two_rounds(objective, Budget(3), np.ones(40, int), np.ones(40, bool), seed=0)

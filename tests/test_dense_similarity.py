"""Similarities between all pairs: the same picks as along the complete graph, whatever may be held."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from greedy_problems import graph_of
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_greedy import naive_greedy

from coretune.engines.torch_greedy import torch_products
from coretune.select import dense
from coretune.select import lazy as lazy_module
from coretune.select.craig import Craig
from coretune.select.dense import cosine_similarity, distance_similarity, hold
from coretune.select.facility_location import FacilityLocation
from coretune.select.grace import Grace
from coretune.select.greedy import lazy_greedy
from coretune.select.objective import Objective, coverage_worth
from coretune.select.pairs import Pairs, pairs_left
from coretune.select.similarity import Similarity
from coretune.testing import synthetic_pool
from coretune.types import Array, Budget

SAME = settings(deadline=None, max_examples=40, derandomize=True)  # where rounding may decide a draw


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "DENSE_ROWS", 7)
    monkeypatch.setattr(dense, "DENSE_COLUMNS", 3)
    monkeypatch.setattr(dense, "HELD_ROWS", 11)


def unit_rows(n: int, d: int, seed: int, copies: int = 0) -> Array:
    """(n, d) float32 unit rows of non-negative entries; the last `copies` repeat the first ones."""
    rows = np.abs(np.random.default_rng(seed).normal(size=(n, d)))
    rows[n - copies :] = rows[:copies]
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@given(st.integers(1, 25), st.integers(2, 6), st.integers(0, 2**32 - 1))
@SAME
def test_dense_is_sparse_on_the_complete_graph(n: int, d: int, seed: int) -> None:
    rows = unit_rows(n, d, seed)
    cost = np.random.default_rng(seed).integers(1, 9, size=n)
    modular = 0.1 * np.random.default_rng(seed).random(n)
    for budget in (Budget((n + 1) // 2), Budget(int(cost.max() + cost.sum()) // 2, "tokens")):
        picks = [
            lazy_greedy(Objective(source, modular, 1.0, np.ones(n)), budget, cost, np.ones(n, dtype=bool))
            for source in (cosine_similarity(rows), graph_of(rows @ rows.T))
        ]
        assert picks[0].indices.tolist() == picks[1].indices.tolist()
        assert picks[0].gains == pytest.approx(picks[1].gains, abs=1e-5)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("copies", [0, 15])
@pytest.mark.parametrize("kind", ["cosine", "distance"])
def test_dense_lazy_is_naive_over_many_blocks(kind: str, copies: int) -> None:
    for seed in range(5):
        rows = unit_rows(40, 5, seed, copies)
        everything = np.ones(40, dtype=bool)
        source = cosine_similarity(rows) if kind == "cosine" else distance_similarity(rows, everything)
        objective = Objective(source, np.zeros(40), 1.0, np.ones(40))
        for budget in (Budget(30), Budget(200, "tokens")):
            cost = np.random.default_rng(seed).integers(1, 30, size=40)
            lazy = lazy_greedy(objective, budget, cost, everything)
            naive = naive_greedy(objective, budget, cost, everything)
            assert lazy.indices.tolist() == naive.indices.tolist()
            assert lazy.gains == pytest.approx(naive.gains, abs=1e-5)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("kind", ["cosine", "distance"])
@pytest.mark.parametrize("memory", [0, 2_000, 12_000, 30_000, 10**6])
def test_what_dense_lazy_may_hold_does_not_change_its_answer(
    kind: str, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing held, pairs from some pick on, all and then pairs; bounds lowered at the first occasion."""
    monkeypatch.setattr(lazy_module, "PATIENCE", 0.01)
    monkeypatch.setattr(lazy_module, "SPARSE", 4)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        rows, usable = unit_rows(70, 6, seed, copies=10), rng.random(70) < 0.9
        rows[~usable] = np.nan
        source = cosine_similarity(rows) if kind == "cosine" else distance_similarity(rows, usable)
        objective = Objective(source, 0.2 * rng.random(70), 1.0, usable * rng.integers(1, 3, size=70))
        candidates, cost = usable & (rng.random(70) < 0.8), rng.integers(1, 30, size=70)
        for budget in (Budget(25), Budget(200, "tokens")):
            held = lazy_greedy(objective, budget, cost, candidates, memory=memory)
            naive = naive_greedy(objective, budget, cost, candidates)
            assert held.indices.tolist() == naive.indices.tolist()
            assert held.gains == pytest.approx(naive.gains, abs=1e-4)
            assert held.best == pytest.approx(naive.best, abs=1e-5)
            worth = [coverage_worth(objective, picks, usable) for picks in (held, naive)]
            assert worth[0] == pytest.approx(worth[1], abs=1e-4)
            assert isinstance(held.rest, Pairs) or memory < 30_000


@pytest.mark.usefixtures("small_blocks")
def test_what_is_held_says_what_the_blocks_say() -> None:
    """Gains, coverage, losses, nearest picks and pairs that are left, to rounding."""
    rng = np.random.default_rng(0)
    source = cosine_similarity(unit_rows(50, 4, 0, copies=5))
    held, best, demand = hold(source), rng.random(50).astype(np.float32), rng.random(50)
    assert held.held is not None
    assert held.held == pytest.approx(source.block(slice(50), slice(50)), abs=1e-6)
    before, asked, chosen = 0.5 * best, rng.permutation(50)[:11], np.array([3, 30, 8])
    assert held.gains(best, demand, asked) == pytest.approx(source.gains(best, demand, asked), abs=1e-6)
    assert held.lost(before, best, demand, asked) == pytest.approx(
        source.lost(before, best, demand, asked), abs=1e-6
    )
    assert held.nearest(chosen).tolist() == source.nearest(chosen).tolist()
    covered = [best.copy(), best.copy()]
    assert held.cover(covered[0], demand, 7) == pytest.approx(source.cover(covered[1], demand, 7), abs=1e-6)
    assert covered[0] == pytest.approx(covered[1], abs=1e-6)


@pytest.mark.usefixtures("small_blocks")
def test_pairs_are_those_that_can_add() -> None:
    rows, best = unit_rows(50, 4, 0), np.random.default_rng(0).random(50).astype(np.float32)
    demand, columns = (np.arange(50) % 5 > 0).astype(np.float64), np.arange(0, 50, 2)
    source = cosine_similarity(rows)
    matrix = rows @ rows.T
    expected = (matrix > best[:, None]) & (demand > 0)[:, None] & np.isin(np.arange(50), columns)
    many, pairs = pairs_left(source, best, demand, columns, 10**6)
    assert pairs is not None
    assert many == expected.sum()
    for j in range(50):
        found = pairs.rows[pairs.indptr[j] : pairs.indptr[j + 1]]
        assert found.tolist() == np.flatnonzero(expected[:, j]).tolist()
        assert pairs.similarity[pairs.indptr[j] : pairs.indptr[j + 1]] == pytest.approx(matrix[found, j])
    assert pairs_left(source, best, demand, columns, int(many / 2))[1] is None


def test_the_number_of_threads_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "DENSE_ROWS", 16)
    objective = Objective(cosine_similarity(unit_rows(90, 5, 0)), np.zeros(90), 1.0, np.ones(90))
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(numba, "get_num_threads", lambda threads=threads: threads)
        found.append(lazy_greedy(objective, Budget(40), np.ones(90, int), np.ones(90, bool), memory=4_000))
    assert found[0].indices.tolist() == found[1].indices.tolist()
    assert found[0].gains.tolist() == found[1].gains.tolist()


def test_of_dense_copies_the_lowest_row_is_chosen() -> None:
    for seed in range(3):  # 1000 long: BLAS sums the products of copies in other orders
        rows = unit_rows(301, 1000, seed, copies=150)
        objective = Objective(cosine_similarity(rows), np.zeros(301), 1 / 301, np.ones(301))
        picks = lazy_greedy(objective, Budget(301), np.ones(301, dtype=np.int64), np.ones(301, dtype=bool))
        assert sorted(picks.indices[:151].tolist()) == list(range(151))
        assert picks.indices[151:].tolist() == list(range(151, 301))  # copies of picks add nothing: by row
        assert not picks.gains[151:].any()


@pytest.mark.usefixtures("small_blocks")
def test_dense_sources_give_their_formula() -> None:
    rng = np.random.default_rng(0)
    rows = (rng.gamma(2.0, 3.0, size=(30, 1)) * rng.normal(size=(30, 6))).astype(np.float32)
    rows[20:] = rows[:10]
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    far = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    bound = 2 * np.linalg.norm(rows, axis=1).max()
    sources: list[tuple[Similarity, Array]] = [
        (cosine_similarity(unit), np.maximum(0, unit @ unit.T)),
        (distance_similarity(rows, np.ones(30, dtype=bool)), bound - far),
    ]
    best, demand = rng.random(30).astype(np.float32), rng.random(30)
    asked = rng.permutation(30)[:11]
    for source, matrix in sources:
        assert (matrix >= 0).all()
        gains = (demand[:, None] * np.maximum(0, matrix - best[:, None])).sum(axis=0)
        assert source.gains(best, demand, asked) == pytest.approx(gains[asked], rel=1e-4)
        covered = best.copy()
        assert source.cover(covered, demand, 4) == pytest.approx(gains[4], rel=1e-4)
        assert covered == pytest.approx(np.maximum(best, matrix[:, 4]), abs=1e-4)
        chosen = np.array([3, 17, 9, 5, 11])
        top = matrix[:, chosen].max(axis=1)
        assert matrix[np.arange(30), chosen[source.nearest(chosen)]] == pytest.approx(top, abs=1e-4)
    assert distance_similarity(rows, np.ones(30, dtype=bool)).block(
        slice(20, 30), np.arange(10)
    ).diagonal() == (pytest.approx(bound, abs=0))


def test_rows_without_demand_may_hold_nan() -> None:
    rows = unit_rows(20, 4, 0)
    usable = np.arange(20) % 3 > 0
    demand = usable.astype(np.float64)
    spoilt = np.where(usable[:, None], rows, np.nan).astype(np.float32)
    for make in (cosine_similarity, lambda features: distance_similarity(features, usable)):
        picks = [
            lazy_greedy(
                Objective(make(f), np.zeros(20), 1.0, demand), Budget(6), np.ones(20, dtype=np.int64), usable
            )
            for f in (rows, spoilt)
        ]
        assert picks[0].indices.tolist() == picks[1].indices.tolist()
        assert np.isfinite(picks[1].best).all()
        assert (make(spoilt).nearest(picks[1].indices)[usable] >= 0).all()


@pytest.mark.parametrize("method", [Craig(), FacilityLocation(similarity="dense"), Grace(similarity="dense")])
def test_products_by_torch_choose_the_same_rows(method: Craig | FacilityLocation | Grace) -> None:
    pool = synthetic_pool(120, 16, 0, copies=0.1, unusable=0.1)
    asked: list[tuple[int, ...]] = []

    def counted(features: Array) -> dense.Products:
        asked.append(features.shape)
        return torch_products("cpu")(features)

    here, there = method.choose(pool, Budget(30)), method.choose(pool, Budget(30), products=counted)
    assert asked
    assert here.indices.tolist() == there.indices.tolist()
    assert here.gains == pytest.approx(there.gains, rel=1e-5, abs=1e-6)

"""The lower level of BRIEF: distances, the dense, sparse and parted forms of one objective."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_greedy import naive_greedy
from scipy.spatial.distance import cdist

from coretune.select import composite_graph as graph_module
from coretune.select import engines, spaces
from coretune.select.composite import composite_blocks, held_composite, hold
from coretune.select.composite_graph import CompositeGraph, composite_graph, nearest_lists, recall
from coretune.select.engines import plan
from coretune.select.greedy import lazy_greedy
from coretune.select.lower_level import Task, build
from coretune.select.objective import Objective
from coretune.select.partitions import parted_level
from coretune.select.similarity import Similarity
from coretune.select.spaces import Space, listed, nearest_picks, paired, reduced
from coretune.types import Array, Budget

FEW = settings(deadline=None, max_examples=40)
SAME = settings(deadline=None, max_examples=25, derandomize=True)  # where rounding may decide a draw
EACH = np.eye(2)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spaces, "BLOCK_ROWS", 7)


def gradients(n: int, d: int, seed: int, copies: float = 0.0) -> Array:
    """(n, d) float32 around a few directions, of very different lengths."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(max(1, n // 8), d))
    rows = rng.gamma(2.0, 1.0, (n, 1)) * (
        centers[rng.integers(len(centers), size=n)] + rng.normal(size=(n, d))
    )
    copied = rng.choice(n, size=int(copies * n), replace=False)
    rows[copied] = rows[rng.integers(n, size=len(copied))]
    return rows.astype(np.float32)


def two_spaces(n: int, d: int, seed: int, copies: float = 0.0) -> tuple[Space, Space]:
    return space(gradients(n, d, seed, copies)), space(gradients(n, d, seed + 1, copies))


def space(*parts: Array) -> Space:
    return Space(parts, np.arange(len(parts[0])))


def matrix(one: Space) -> Array:
    """(n, n) float64 distances from their formula."""
    rows = sum(part[one.rows].astype(np.float64) for part in one.parts)
    return cdist(rows, rows)


def mixed(pair: Sequence[Space], mix: Array) -> Array:
    return sum(m * matrix(one) for m, one in zip(mix, pair, strict=True))


def task(n: int, budget: Budget, greedy: str = "lazy", cost: Array | None = None) -> Task:
    return Task(budget, np.ones(n, dtype=np.int64) if cost is None else cost, np.ones(n), greedy, seed=0)


# distances


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("count", [1, 2])
def test_every_way_to_a_distance_gives_the_formula(dtype: type, count: int) -> None:
    rng = np.random.default_rng(0)
    parts = tuple(rng.normal(size=(40, 19)).astype(dtype) for _ in range(count))
    one = Space(parts, rng.permutation(40)[:30])  # of a pool some rows of which are not used
    truth = matrix(one)
    others = rng.permutation(30)
    assert paired(one, others) == pytest.approx(truth[np.arange(30), others], rel=1e-6)
    columns = np.concatenate([rng.integers(30, size=4) for _ in range(30)])
    found = listed(one, np.arange(0, 121, 4), columns)
    assert found == pytest.approx(truth[np.repeat(np.arange(30), 4), columns], rel=1e-5)
    swept = np.full((30, 30), np.nan)
    for rows, columns_, block in spaces.sweep(one):
        swept[rows, columns_], swept[columns_, rows] = block, block.T
    assert swept == pytest.approx(truth, abs=2e-3)
    assert one.diameter >= truth.max()


@given(st.integers(1, 30), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.5]), st.data())
@FEW
def test_nearest_picks_are_the_nearest(n: int, seed: int, copies: float, data: st.DataObject) -> None:
    pair = two_spaces(n, 5, seed, copies)
    chosen = np.array(data.draw(st.lists(st.integers(0, n - 1), unique=True, min_size=1)))
    mixes = np.array([[1.0, 0.0], [0.0, 1.0], [0.3, 0.7]])
    position, best = nearest_picks(pair, mixes, chosen)
    for q, mix in enumerate(mixes):
        truth = mixed(pair, mix)[:, chosen]
        assert best[q] == pytest.approx(truth.min(axis=1), abs=2e-2)
        assert truth[np.arange(n), position[q]] == pytest.approx(truth.min(axis=1), abs=2e-2)
        assert position[q][chosen].tolist() == list(range(len(chosen)))  # a pick is its own nearest


def test_a_projection_keeps_distances() -> None:
    one = space(gradients(60, 400, 0))
    small = reduced(one, 256, np.random.default_rng(0))
    ratio = (matrix(small) / np.where(np.eye(60), np.nan, matrix(one)))[~np.eye(60, dtype=bool)]
    assert ratio.mean() == pytest.approx(1.0, abs=0.02)
    assert ratio.std() == pytest.approx(1 / np.sqrt(2 * 256), rel=0.5)


# dense


@pytest.mark.usefixtures("small_blocks")
def test_held_distances_are_the_formula_and_16_bits_round_by_half_a_unit() -> None:
    pair = two_spaces(25, 6, 0, copies=0.3)
    exact, rounded = hold(pair, np.float32), hold(pair, np.uint16)
    for s, one in enumerate(pair):
        truth = matrix(one)
        assert exact.far[s] == pytest.approx(truth, abs=5e-3)
        assert np.abs(rounded.far[s] * rounded.unit[s] - exact.far[s]).max() <= 0.51 * rounded.unit[s]
        assert rounded.unit[s] <= 1.6e-5 * one.diameter
        assert (exact.far[s] == exact.far[s].T).all()
        assert not exact.far[s].diagonal().any()


def sources(pair: tuple[Space, Space], mix: Array) -> dict[str, Similarity]:
    held, short = hold(pair, np.float32), hold(pair, np.uint16)
    return {
        "held": held_composite(held, pair, mix),
        "16 bits": held_composite(short, pair, mix),
        "blocks": composite_blocks(pair, mix),
        "graph": composite_graph(pair, 6).mixed(mix),
    }


@pytest.mark.usefixtures("small_blocks")
@given(st.integers(2, 40), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.5]), st.floats(0.0, 1.0))
@SAME
def test_lazy_is_naive_and_gains_never_increase(n: int, seed: int, copies: float, alpha: float) -> None:
    mix = np.array([1 - alpha, alpha])
    everyone, cost = np.ones(n, dtype=bool), np.random.default_rng(seed).integers(1, 9, size=n)
    for name, source in sources(two_spaces(n, 4, seed, copies), mix).items():
        objective = Objective(source, np.zeros(n), 1.0, np.ones(n))
        for budget in (Budget((n + 1) // 2), Budget(int(cost.max() + cost.sum()) // 2, "tokens")):
            lazy = lazy_greedy(objective, budget, cost, everyone)
            naive = naive_greedy(objective, budget, cost, everyone)
            assert lazy.indices.tolist() == naive.indices.tolist(), name
            assert lazy.gains == pytest.approx(naive.gains, abs=1e-4)
            if budget.unit == "rows":
                assert (np.diff(lazy.gains) <= 1e-4 * lazy.gains[0]).all(), name


@given(st.integers(2, 30), st.integers(0, 2**32 - 1))
@FEW
def test_every_source_is_monotone_submodular_and_covers_as_it_says(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    everyone, demand = np.arange(n), rng.random(n)
    for name, source in sources(two_spaces(n, 4, seed), np.array([0.4, 0.6])).items():
        if name == "blocks":
            continue  # DenseSimilarity, tested with the other blocks
        best = np.zeros(n, dtype=np.float32)
        before = source.gains(best, demand, everyone)
        for row in rng.permutation(n):
            assert source.cover(best, demand, row) == before[row]
            after = source.gains(best, demand, everyone)
            assert (after <= before).all()
            assert (after >= 0).all()
            assert after[row] == 0
            before = after


@given(st.integers(1, 30), st.integers(0, 2**32 - 1), st.floats(0.0, 1.0), st.data())
@FEW
def test_nearest_of_every_source_is_the_nearest_pick(
    n: int, seed: int, alpha: float, data: st.DataObject
) -> None:
    pair, mix = two_spaces(n, 4, seed), np.array([1 - alpha, alpha])
    chosen = np.array(data.draw(st.lists(st.integers(0, n - 1), unique=True, min_size=1)))
    truth = mixed(pair, mix)[:, chosen]
    found = sources(pair, mix)
    for name in ("held", "16 bits", "blocks"):
        nearest = found[name].nearest(chosen)
        assert truth[np.arange(n), nearest] == pytest.approx(truth.min(axis=1), abs=2e-2), name
    assert (found["graph"].nearest(chosen)[chosen] == np.arange(len(chosen))).all()


# the graph


@pytest.mark.usefixtures("small_blocks")
@given(st.integers(2, 40), st.integers(1, 9), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.5]))
@FEW
def test_lists_hold_the_nearest_and_the_mean_is_of_all(n: int, k: int, seed: int, copies: float) -> None:
    one = space(gradients(n, 4, seed, copies))
    k = min(k, n - 1)
    neighbors, mean = nearest_lists(one, k)
    truth = matrix(one)
    assert mean == pytest.approx(truth.mean(axis=1), abs=5e-3)
    np.fill_diagonal(truth, np.inf)
    for row in range(n):
        assert len(set(neighbors[row].tolist())) == k
        assert row not in neighbors[row]
        assert np.sort(truth[row, neighbors[row]]) == pytest.approx(np.sort(truth[row])[:k], abs=2e-2)
    assert recall(one, neighbors, np.arange(n)) >= 0.9  # products and differences round differently


def made(pair: tuple[Space, Space], k: int) -> CompositeGraph:
    return composite_graph(pair, k)


@given(st.integers(2, 40), st.integers(1, 6), st.integers(0, 2**32 - 1))
@FEW
def test_nothing_unlisted_is_nearer_than_reach_in_any_space(n: int, k: int, seed: int) -> None:
    pair = two_spaces(n, 4, seed)
    graph = made(pair, k)
    assert (np.diff(graph.indptr) >= 1).all()  # a row covers itself
    known = np.zeros((n, n), dtype=bool)
    candidate = np.repeat(np.arange(n), np.diff(graph.indptr))
    known[graph.rows, candidate] = True
    assert known.sum() == len(graph.rows)  # each pair once
    assert known.diagonal().all()
    for s, one in enumerate(pair):
        truth = matrix(one)
        assert graph.far[s] == pytest.approx(truth[graph.rows, candidate], rel=1e-4, abs=1e-5)
        assert (truth >= graph.reach[s][:, None] - 2e-2)[~known].all()


@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 2**32 - 1), st.data())
@FEW
def test_nearest_of_the_graph_is_exact_wherever_the_picks_are(
    n: int, k: int, seed: int, data: st.DataObject
) -> None:
    pair = two_spaces(n, 4, seed)
    chosen = np.array(data.draw(st.lists(st.integers(0, n - 1), unique=True, min_size=1)))
    mixes = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.4]])
    position, best = made(pair, k).nearest(mixes, chosen)
    for q, mix in enumerate(mixes):
        truth = mixed(pair, mix)[:, chosen]
        assert truth[np.arange(n), position[q]] == pytest.approx(truth.min(axis=1), abs=2e-2)
        assert best[q] == pytest.approx(truth.min(axis=1), abs=2e-2)


@pytest.mark.parametrize("reduce", [False, True])
def test_greedy_on_the_graph_comes_close_to_greedy_on_all_pairs(
    reduce: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "SEARCH_WORK", 0.0 if reduce else np.inf)
    monkeypatch.setattr(engines, "SEARCH_DIMENSIONS", 128)
    pair, mix, n = two_spaces(600, 200, 0, copies=0.2), np.array([0.5, 0.5]), 600
    error = {}
    for lower in ("dense", "graph"):
        planned = plan(pair, lower, 2**32, 64, 1)
        assert planned.reduced == (reduce and lower == "graph")
        level = build(pair, planned, 64, np.random.default_rng(0))
        picked = level.pick(mix, task(n, Budget(30)))
        assert 0.5 < level.recall < 1.0 if planned.reduced else level.recall == 1.0
        error[lower] = mixed(pair, mix)[:, picked.rows].min(axis=1).sum()
    drawn = np.random.default_rng(0).choice(n, 30, replace=False)
    random = mixed(pair, mix)[:, drawn].min(axis=1).sum()
    assert error["graph"] <= error["dense"] + 0.1 * (random - error["dense"])


# partitions


def test_parts_cover_the_pool_and_the_distances_are_those_of_the_assignment() -> None:
    pair, n = two_spaces(300, 8, 0, copies=0.2), 300
    level = parted_level(pair, k=16, seed=0, part_rows=60)
    assert len(level.parts) == 5
    assert np.sort(np.concatenate(level.parts)).tolist() == list(range(n))
    cost = np.random.default_rng(1).integers(1, 9, size=n)
    for budget in (
        Budget(1),
        Budget(20),
        Budget(n),
        Budget(200, "tokens"),
        Budget(int(cost.min()), "tokens"),
    ):
        mix = np.array([0.3, 0.7])
        picked = level.pick(mix, task(n, budget, cost=cost))
        assert len(np.unique(picked.rows)) == len(picked.rows)
        assert len(picked.rows) == budget.amount or budget.unit == "tokens"
        assert cost[picked.rows].sum() <= budget.amount or budget.unit == "rows"
        position, best = picked.nearest(np.stack([*EACH, mix]))
        for q, one in enumerate((*EACH, mix)):
            truth = mixed(pair, one)
            assert best[q] == pytest.approx(truth[np.arange(n), picked.rows[position[q]]], rel=1e-4, abs=1e-4)
            assert position[q][picked.rows].tolist() == list(range(len(picked.rows)))


def test_two_rounds_come_close_to_one() -> None:
    pair, mix, n = two_spaces(600, 30, 0), np.array([0.5, 0.5]), 600
    truth = mixed(pair, mix)
    whole = build(pair, plan(pair, "dense", 2**32, 16, 1), 16, np.random.default_rng(0))
    error = [
        truth[:, level.pick(mix, task(n, Budget(30))).rows].min(axis=1).sum()
        for level in (whole, parted_level(pair, k=16, seed=0, part_rows=150))
    ]
    random = truth[:, np.random.default_rng(0).choice(n, 30, replace=False)].min(axis=1).sum()
    assert error[1] <= error[0] + 0.3 * (random - error[0])


# the choice


def wide(n: int, d: int) -> tuple[Space, Space]:
    """Spaces of any size that take no memory."""
    rows = np.broadcast_to(np.zeros((1, 1), np.float16), (n, d))
    return Space((rows,), np.arange(n)), Space((rows,), np.arange(n))


@pytest.mark.parametrize(
    ("n", "d", "memory", "kind"),
    [
        (2_000, 8192, "4", "held"),
        (30_000, 8192, "4", "held"),  # in 16 bits
        (60_000, 8192, "4", "graph"),
        (40_000, 8192, "10", "held"),
        (40_000, 32, "4", "blocks"),  # so few dimensions that all pairs are cheap
        (74_000, 8192, "4", "graph"),
        (74_000, 512, "4", "graph"),
        (240_000, 8192, "4", "graph"),
        (900_000, 8192, "8", "partitions"),
    ],
)
def test_the_level_goes_by_rows_dimensions_and_memory(n: int, d: int, memory: str, kind: str) -> None:
    planned = plan(wide(n, d), "auto", int(memory) * 2**30, 128, 15)
    assert planned.kind == kind
    assert planned.memory <= int(memory) * 2**30
    assert planned.reduced == (kind == "graph" and d == 8192)  # neighbours searched in projections
    assert (planned.dtype is np.uint16) == (n == 30_000 or memory == "10")
    said = planned.line(n)
    assert f"{n:,} rows, {kind}" in said
    assert planned.guarantee in said


def test_what_does_not_fit_the_memory_is_an_error_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"takes \d+ MiB, memory_limit is 128 MiB.*fewer neighbors"):
        plan(wide(74_000, 64), "graph", 2**27, 128, 15)
    with pytest.raises(ValueError, match=r"parts of 900,000 rows .* \d\.\d GiB, memory_limit is 128 MiB"):
        plan(wide(900_000, 64), "partitions", 2**27, 128, 15)


def test_a_reduced_search_is_the_same_for_the_same_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_module, "RECALL_ROWS", 5)
    pair = two_spaces(80, 40, 0)
    made_twice = [
        composite_graph(
            pair, 5, lambda one: reduced(one, 8, np.random.default_rng(3)), np.random.default_rng(3)
        )
        for _ in range(2)
    ]
    assert np.array_equal(made_twice[0].rows, made_twice[1].rows)
    assert made_twice[0].recall == made_twice[1].recall < 1.0

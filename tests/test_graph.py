"""The graph against brute force: exact lists, honest repair, copies that never list themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coretune.neighbors import cells
from coretune.neighbors import graph as graph_module
from coretune.neighbors.graph import TIE, build, check_k, drifted, near_copies, recall, repair, symmetric_csr
from coretune.types import Array, NeighborGraph

few = settings(deadline=None, max_examples=30)


def unit(x: Array) -> Array:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def cloud(seed: int, n: int, d: int = 8, clusters: int = 6) -> Array:
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=(clusters, d))
    return unit(centre[rng.integers(clusters, size=n)] + 0.4 * rng.normal(size=(n, d)))


def brute(embedding: Array) -> Array:
    """(n, n) cosines in float64; −inf on the diagonal and beside a row of zeros."""
    z = embedding.astype(np.float64)
    cosine = z @ z.T
    zero = ~z.any(axis=1)
    cosine[zero], cosine[:, zero] = -np.inf, -np.inf
    np.fill_diagonal(cosine, -np.inf)
    return cosine


def assert_lists_are_nearest(graph: NeighborGraph, embedding: Array, rows: Array) -> None:
    """Each list is the k nearest up to ties, nearest first, with true cosines, nobody twice, never itself."""
    cosine = brute(embedding)
    for i in rows:
        best = np.sort(cosine[i])[::-1][: graph.k]
        best = best[np.isfinite(best)]
        listed = graph.neighbors[i][graph.neighbors[i] >= 0]
        assert len(listed) == len(best) == len(set(listed.tolist()))
        assert i not in listed
        np.testing.assert_allclose(cosine[i][listed], best, atol=TIE)
        np.testing.assert_allclose(graph.similarity[i][: len(best)], best, atol=TIE)
        assert (graph.neighbors[i][len(best) :] == -1).all()
        assert (graph.similarity[i][len(best) :] == 0).all()


@few
@given(seed=st.integers(0, 10**6), n=st.integers(3, 60), k=st.integers(1, 12), zeros=st.integers(0, 3))
def test_build_is_brute_force(seed: int, n: int, k: int, zeros: int) -> None:
    k = min(k, n - 1)
    embedding = cloud(seed, n)
    embedding[:zeros] = 0
    graph = build(embedding, k, seed=0)
    assert graph.neighbors.dtype == np.int32
    assert graph.similarity.dtype == np.float32
    assert_lists_are_nearest(graph, embedding, np.arange(n))
    assert graph.built_from is embedding or np.shares_memory(graph.built_from, embedding)


@pytest.mark.parametrize("copies", [2, 12, 30])
def test_copies_never_list_themselves(copies: int) -> None:
    embedding = cloud(0, 200)
    embedding[50 : 50 + copies] = embedding[50]
    graph = build(embedding, 10, seed=0)
    assert_lists_are_nearest(graph, embedding, np.arange(200))
    assert (graph.neighbors != np.arange(200)[:, None]).all()
    again = build(embedding.copy(), 10, seed=0)
    np.testing.assert_array_equal(graph.neighbors, again.neighbors)
    groups = near_copies(graph)
    assert (groups[50 : 50 + copies] == 50).all()
    alone = np.delete(np.arange(200), np.s_[50 : 50 + copies])
    np.testing.assert_array_equal(groups[alone], alone)


def test_ties_are_listed_lowest_row_first() -> None:
    embedding = np.repeat(np.eye(2, dtype=np.float32), [4, 3], axis=0)
    graph = build(embedding, 6, seed=0)
    assert graph.neighbors[1].tolist() == [0, 2, 3, 4, 5, 6]
    assert graph.neighbors[5].tolist() == [4, 6, 0, 1, 2, 3]


def test_k_not_below_n_names_both_numbers_and_the_remedy() -> None:
    with pytest.raises(ValueError, match="k = 10 neighbours, but the pool has 7 rows: set k to at most 6"):
        build(cloud(0, 7), 10, seed=0)
    with pytest.raises(ValueError, match="at least 1"):
        check_k(0, 7)
    check_k(6, 7)


@pytest.mark.parametrize("bad", [np.nan, 3.0, np.inf])
def test_rows_that_are_not_unit_are_refused_by_number(bad: float) -> None:
    embedding = cloud(0, 20)
    embedding[7] *= bad
    with pytest.raises(ValueError, match="row 7 has length"):
        build(embedding, 3, seed=0)


@few
@given(seed=st.integers(0, 10**6), n=st.integers(5, 40), k=st.integers(1, 5))
def test_symmetric_csr_is_the_union_with_the_larger_cosine(seed: int, n: int, k: int) -> None:
    graph = build(cloud(seed, n), min(k, n - 1), seed=0)
    dense = np.zeros((n, n), np.float32)
    for i in range(n):
        for j, s in zip(graph.neighbors[i], graph.similarity[i], strict=True):
            dense[i, j] = max(dense[i, j], s)
            dense[j, i] = max(dense[j, i], s)
    indptr, indices, similarity = symmetric_csr(graph)
    assert (indptr.dtype, indices.dtype, similarity.dtype) == (np.int64, np.int32, np.float32)
    found = np.zeros((n, n), np.float32)
    for i in range(n):
        row = indices[indptr[i] : indptr[i + 1]]
        assert (np.diff(row) > 0).all()
        found[i, row] = similarity[indptr[i] : indptr[i + 1]]
    np.testing.assert_array_equal(found, dense)
    assert (similarity > 0).all()


def test_symmetric_csr_takes_the_larger_of_two_cosines_and_drops_negative_ones() -> None:
    graph = NeighborGraph(
        np.array([[1, 2], [0, -1], [0, -1]], np.int32),
        np.array([[0.5, -0.2], [0.75, 0], [-0.2, 0]], np.float32),
        np.zeros((3, 2), np.float32),
    )
    indptr, indices, similarity = symmetric_csr(graph)
    assert (indptr.tolist(), indices.tolist(), similarity.tolist()) == ([0, 1, 2, 2], [1, 0], [0.75, 0.75])


def test_drifted_is_one_minus_cosine_above_delta() -> None:
    embedding = cloud(1, 50)
    embedding[4] = 0
    graph = build(embedding, 4, seed=0)
    later = embedding.copy()
    later[[3, 9]] = -later[[3, 9]]
    later[5] = 0
    assert drifted(graph, embedding, 0.05).tolist() == []
    assert drifted(graph, later, 0.05).tolist() == [3, 5, 9]
    assert drifted(graph, later, 1.5).tolist() == [3, 9]


def moved_cloud(seed: int, n: int, share: float, step: float, d: int = 8) -> tuple[Array, Array, Array]:
    """Before, after, and the rows that moved (under half of them, at least one)."""
    rng = np.random.default_rng(seed)
    before = cloud(seed, n, d)
    rows = np.sort(rng.choice(n, min(max(1, int(share * n)), (n - 1) // 2), replace=False))
    after = before.copy()
    after[rows] = unit(before[rows] + step * rng.normal(size=(len(rows), before.shape[1])))
    return before, after, rows


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(12, 150),
    k=st.integers(1, 8),
    share=st.floats(0.01, 0.4),
    step=st.floats(0.05, 2),
    d=st.sampled_from([2, 8, 40]),  # in 40 dimensions many neighbours are on the far side, cosine < 0
    zeros=st.integers(0, 3),
)
def test_mended_again_and_again_every_list_is_what_a_query_gives(
    seed: int, n: int, k: int, share: float, step: float, d: int, zeros: int
) -> None:
    rng = np.random.default_rng(seed)
    now = cloud(seed, n, d)
    now[:zeros] = 0
    graph = build(now, k, seed=0)
    for _ in range(4):
        before, rows = now, np.flatnonzero(rng.random(n) < share)
        now = before.copy()
        now[rows] = unit(before[rows] + step * rng.normal(size=(len(rows), d)))
        now[rows[rng.random(len(rows)) < 0.1]] = 0
        built_from = graph.built_from
        graph = repair(graph, now, rows)
        assert_lists_are_nearest(graph, now, np.arange(n))
        assert (np.diff(graph.similarity, axis=1)[graph.neighbors[:, 1:] >= 0] <= 0).all()
        if 2 * len(rows) < n:
            np.testing.assert_array_equal(
                np.delete(graph.built_from, rows, 0),
                np.delete(built_from, rows, 0).astype(graph.built_from.dtype),
            )
        np.testing.assert_allclose(graph.built_from[rows], now[rows], atol=5e-4)


def test_a_row_that_loses_its_whole_reserve_is_searched_for(monkeypatch: pytest.MonkeyPatch) -> None:
    before = cloud(0, 400)
    old = build(before, 5, seed=0)
    assert old.reserve is not None
    lost = np.concatenate([old.neighbors[0], old.reserve.neighbors[0]])
    after = before.copy()
    after[lost] = -before[0]
    asked: list[Array] = []
    search = graph_module._Lists.search
    monkeypatch.setattr(
        graph_module._Lists,
        "search",
        lambda self, z, rows, *rest, **named: (asked.append(rows), search(self, z, rows, *rest, **named)),
    )
    mended = repair(old, after, np.sort(lost))
    assert 0 in asked[1]
    assert len(asked[1]) < 40
    assert_lists_are_nearest(mended, after, np.arange(400))


def test_a_graph_without_reserve_is_made_anew() -> None:
    before, after, rows = moved_cloud(0, 200, 0.05, 1.0)
    bare = replace(build(before, 5, seed=0), reserve=None)
    mended = repair(bare, after, rows)
    np.testing.assert_array_equal(mended.neighbors, build(after, 5, seed=0).neighbors)
    assert mended.reserve is not None


def test_only_the_rows_that_are_asked_for_are_read_for_drift() -> None:
    before, after, rows = moved_cloud(1, 200, 0.2, 1.0)
    graph = build(before, 5, seed=0)
    whole = drifted(graph, after, 0.05)
    np.testing.assert_array_equal(drifted(graph, after, 0.05, rows), whole)
    after[np.setdiff1d(np.arange(200), rows)] = np.nan
    np.testing.assert_array_equal(drifted(graph, after, 0.05, rows), whole)
    assert len(drifted(graph, after, 0.05, rows[:0])) == 0


def test_progress_is_reported_to_the_end() -> None:
    told: list[tuple[int, int]] = []
    embedding = cloud(0, 300)
    graph = build(embedding, 5, seed=0, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (300, 300)
    repair(graph, embedding, np.arange(3), progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (3, 3)


def test_repair_leaves_its_input_and_untouched_lists_alone() -> None:
    before, after, rows = moved_cloud(5, 300, 0.01, 1.0)
    old = build(before, 5, seed=0)
    for array in (old.neighbors, old.similarity, before, after):
        array.setflags(write=False)
    mended = repair(old, after, rows)
    far = ~np.isin(old.neighbors, rows).any(axis=1) & ~np.isin(mended.neighbors, rows).any(axis=1)
    far[rows] = False
    assert far.sum() > 200
    np.testing.assert_array_equal(mended.neighbors[far], old.neighbors[far])
    np.testing.assert_array_equal(mended.similarity[far], old.similarity[far])
    assert repair(old, after, rows[:0]) is old


def test_repair_of_half_the_pool_is_a_rebuild() -> None:
    before, after, _ = moved_cloud(2, 100, 0.4, 1.0)
    everyone = np.arange(100)
    mended, rebuilt = repair(build(before, 5, seed=0), after, everyone[:50]), build(after, 5, seed=0)
    np.testing.assert_array_equal(mended.neighbors, rebuilt.neighbors)
    np.testing.assert_array_equal(mended.built_from, rebuilt.built_from)


def test_a_row_that_loses_its_direction_leaves_every_list_and_one_that_gains_it_enters() -> None:
    before = cloud(3, 60)
    before[7] = 0
    old = build(before, 4, seed=0)
    after = before.copy()
    after[7], after[8] = before[20], 0
    mended = repair(old, after, drifted(old, after, 0.05))
    assert (mended.neighbors[8] == -1).all()
    assert not (mended.neighbors == 8).any()
    assert mended.neighbors[7, 0] == 20
    assert mended.neighbors[20, 0] == 7


def test_cells_reach_the_recall_they_aim_at_and_mended_they_keep_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "EXACT_ROWS", 100)
    embedding = cloud(0, 6000, d=16, clusters=100)
    embedding[17] = 0
    graph = build(embedding, 10, seed=0)
    assert graph.reserve is not None
    assert len(graph.reserve.centroids) == 256
    rng = np.random.default_rng(1)
    for mends in range(3):
        measured = recall(graph, embedding, np.random.default_rng(0), sample=500)
        assert 0.95 <= measured <= 1, mends
        assert (graph.neighbors[17] == -1).all()
        assert not (graph.neighbors == 17).any()
        assert (graph.neighbors != np.arange(6000)[:, None]).all()
        assert (np.diff(graph.similarity, axis=1) <= 0).all() or mends
        rows = np.sort(rng.choice(np.arange(18, 6000), 500, replace=False))
        embedding = embedding.copy()
        embedding[rows] = unit(embedding[rows] + 0.1 * rng.normal(size=(500, 16)))
        graph = repair(graph, embedding, rows)


def test_cells_are_the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "EXACT_ROWS", 100)
    embedding = cloud(1, 3000)
    embedding[100:140] = embedding[100]
    one, two = build(embedding, 10, seed=3), build(embedding, 10, seed=3)
    np.testing.assert_array_equal(one.neighbors, two.neighbors)
    np.testing.assert_array_equal(one.similarity, two.similarity)
    assert (one.neighbors != np.arange(3000)[:, None]).all()


def test_recall_counts_what_is_missing_and_forgives_ties() -> None:
    embedding = cloud(0, 500)
    embedding[:40] = embedding[0]
    graph = build(embedding, 10, seed=0)
    rng = np.random.default_rng(0)
    assert recall(graph, embedding, rng) == 1
    half = NeighborGraph(np.where(np.arange(10) < 5, graph.neighbors, -1), graph.similarity, graph.built_from)
    assert recall(half, embedding, rng) == pytest.approx(0.5, abs=1e-6)
    wrong = NeighborGraph(np.roll(graph.neighbors, 250, axis=0), graph.similarity, graph.built_from)
    assert recall(wrong, embedding, rng) < 0.2


def test_a_memory_mapped_pool_is_read_where_it_lies(tmp_path: Path) -> None:
    before, after, _ = moved_cloud(4, 300, 0.1, 0.5)
    np.save(tmp_path / "before.npy", before)
    np.save(tmp_path / "after.npy", after)
    mapped, later = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("before", "after"))
    graph = build(mapped, 5, seed=0)
    assert np.shares_memory(graph.built_from, mapped)
    np.testing.assert_array_equal(graph.neighbors, build(before, 5, seed=0).neighbors)
    mended = repair(graph, later, drifted(graph, later, 0))
    np.testing.assert_array_equal(mended.neighbors, repair(graph, after, drifted(graph, after, 0)).neighbors)


def test_near_copies_chains_through_edges_above_the_threshold() -> None:
    angle = np.array([0.0, 0.04, 0.08, 1.0, 2.0])  # cos 0.04 = 0.9992, cos 0.08 = 0.9968
    embedding = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    graph = build(embedding, 2, seed=0)
    assert near_copies(graph).tolist() == [0, 0, 0, 3, 4]
    assert near_copies(graph).dtype == np.int32
    assert near_copies(graph, threshold=0.9999).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("k", [1, 10])
def test_a_pool_of_one_row_is_refused_with_the_reason(k: int) -> None:
    with pytest.raises(
        ValueError, match=r"the pool has 1 row, and this method compares rows .* give it 2 or more"
    ):
        check_k(k, 1)

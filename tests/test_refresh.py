"""The refresh against its formulas: Eq. 21 as an argmin, anchors that spread, NaN that stays where it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.optimize import minimize

from coretune.filters.noise import Noise
from coretune.neighbors.graph import build, symmetric_csr
from coretune.policies.anchors import Planned, pick_spread_anchors, planned
from coretune.policies.paper import average, eq21_step, priority, propagation_weights
from coretune.policies.propagation import rows_beside, spread
from coretune.policies.update import update
from coretune.rounds.refresh_settings import AnchorRefresh
from coretune.types import Array, Budget, Pool, RefreshPolicy, Rows

few = settings(deadline=None, max_examples=25)
N, K = 80, 5
NOBODY = np.zeros(0, np.int64)


def unit(x: Array) -> Array:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def signals(seed: int, n: int = N) -> dict[str, Array]:
    """What a model might say of n rows in clusters: embedding, loss, gradient."""
    rng = np.random.default_rng(seed)
    centre = np.random.default_rng(0).normal(size=(8, 6))
    embedding = unit(centre[np.arange(n) % 8] + 0.5 * rng.normal(size=(n, 6)))
    return {
        "response_embedding": embedding,
        "loss": (2 + embedding[:, 0] + 0.3 * rng.normal(size=n)).astype(np.float32),
        "gradient": rng.normal(size=(n, 3)).astype(np.float32),
    }


def at(fresh: Mapping[str, Array], rows: Rows) -> dict[str, Array]:
    return {name: value[rows] for name, value in fresh.items()}


def unmeasured(n: int = N) -> Pool:
    return Pool({}, np.ones(n, np.int64), np.full(n, -1, np.int32), np.ones(n, bool))


def paper(**settings: object) -> AnchorRefresh:
    """The refresh as the paper has it, on the embedding that these tests make."""
    defaults = {"anchors": "priority", "propagate": "average", "embedding": "response_embedding"}
    return AnchorRefresh(**{**defaults, **settings})  # type: ignore[arg-type]


def measured(refresh: AnchorRefresh, seed: int = 1, n: int = N) -> Pool:
    return update(refresh, unmeasured(n), np.arange(n), signals(seed, n), 0)


def assert_same_pool(one: Pool, two: Pool, but: tuple[str, ...] = ()) -> None:
    for name in (set(one.features) | set(two.features)) - set(but):
        np.testing.assert_array_equal(one.features[name], two.features[name], err_msg=name)
    for name in {"measured_at", "usable", "cost"} - set(but):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)
    assert one.graph is not None
    assert two.graph is not None
    for name in ("neighbors", "similarity", "built_from"):
        np.testing.assert_array_equal(getattr(one.graph, name), getattr(two.graph, name), err_msg=name)


def read_only(pool: Pool) -> Pool:
    assert pool.graph is not None
    graph = pool.graph
    for array in (*pool.features.values(), pool.measured_at, pool.usable, pool.cost):
        array.setflags(write=False)
    for array in (graph.neighbors, graph.similarity, graph.built_from):
        array.setflags(write=False)
    return pool


def random_edges(seed: int, n: int) -> tuple[Array, Array, Array]:
    """A symmetric weighted graph with some empty rows."""
    rng = np.random.default_rng(seed)
    dense = np.triu(rng.uniform(0.05, 1, size=(n, n)) * (rng.random((n, n)) < 0.25), 1)
    dense[: n // 5] = 0
    dense = (dense + dense.T) * (np.arange(n) >= n // 5) * (np.arange(n) >= n // 5)[:, None]
    csr = sparse.csr_matrix(dense.astype(np.float32))
    return csr.indptr.astype(np.int64), csr.indices.astype(np.int32), csr.data


# ------------------------------------------------------------------------------------------ pure functions


def energy(z: Array, old: Array, weights: Array, neighbours: Array) -> float:
    """E(z) of Eq. 21 for one row; neighbours (k, d), weights (k,)."""
    return 0.5 * np.sum((z - old) ** 2) + 0.5 * np.sum(weights * np.sum((z - neighbours) ** 2, axis=1))


@few
@given(seed=st.integers(0, 10**6), normalised=st.booleans())
def test_eq21_is_the_argmin_of_its_energy(seed: int, normalised: bool) -> None:
    rng = np.random.default_rng(seed)
    n, d = 9, 3
    values = rng.normal(size=(n, d))
    w = rng.uniform(0, 2, size=(n, n)) * (rng.random((n, n)) < 0.5)
    np.fill_diagonal(w, 0)
    if normalised:
        w /= np.maximum(w.sum(axis=1, keepdims=True), 1e-12)
    moved = eq21_step(values, sparse.csr_matrix(w), np.arange(n))
    for i in range(n):
        best = minimize(energy, np.zeros(d), args=(values[i], w[i], values), tol=1e-12).x
        np.testing.assert_allclose(moved[i], best, atol=1e-4)
        if normalised and w[i].any():  # the form the paper states
            np.testing.assert_allclose(moved[i], 0.5 * values[i] + 0.5 * w[i] @ values, atol=1e-6)


@few
@given(seed=st.integers(0, 10**6))
def test_weights_are_the_clipped_cosines_over_usable_neighbours_made_to_sum_to_one(seed: int) -> None:
    n = 20
    edges = random_edges(seed, n)
    usable = np.random.default_rng(seed).random(n) < 0.8
    rows = np.random.default_rng(seed + 1).permutation(n)[:11]
    dense = sparse.csr_matrix((edges[2], edges[1], edges[0]), shape=(n, n)).toarray() * usable
    total = dense.sum(axis=1, keepdims=True)
    expected = np.divide(dense, total, out=np.zeros_like(dense), where=total > 0)
    np.testing.assert_allclose(propagation_weights(edges, rows, usable).toarray(), expected[rows], atol=1e-6)


@few
@given(seed=st.integers(0, 10**6), width=st.sampled_from([(), (3,)]), unit_length=st.booleans())
def test_spread_by_a_plain_loop(seed: int, width: tuple[int, ...], unit_length: bool) -> None:
    rng, n = np.random.default_rng(seed), 15
    unit_length &= bool(width)
    edges = random_edges(seed, n)
    values = rng.normal(size=(n, *width)).astype(np.float32)
    change = rng.normal(size=(4, *width)).astype(np.float32)
    usable = rng.random(n) < 0.8
    anchors = rng.choice(n, 4, replace=False)
    rows = rows_beside(edges, anchors, usable)
    alpha = propagation_weights(edges, np.arange(n), usable)
    expected = values.copy()
    for i in rows:
        expected[i] = values[i] + sum(alpha[i, j] * change[a] for a, j in enumerate(anchors))
        if unit_length:
            expected[i] /= np.linalg.norm(expected[i])
    spread(values, edges, usable, rows, anchors, change, unit_length)
    np.testing.assert_allclose(values, expected, atol=1e-5)


def test_a_row_that_comes_to_nothing_stays_where_it_was() -> None:
    edges = (np.array([0, 1, 2]), np.array([1, 0], np.int32), np.ones(2, np.float32))
    values = np.array([[1, 0], [0, 1]], np.float32)
    spread(values, edges, np.ones(2, bool), np.array([1]), np.array([0]), -values[1:], True)
    assert values.tolist() == [[1, 0], [0, 1]]
    opposite = np.array([[1, 0], [-1, 0]], np.float32)
    average(opposite, edges, np.ones(2, bool), np.array([1]), True)
    assert opposite.tolist() == [[1, 0], [-1, 0]]


def relabelled(edges: tuple[Array, Array, Array], order: Array) -> tuple[Array, Array, Array]:
    n = len(order)
    csr = sparse.csr_matrix((edges[2], edges[1], edges[0]), shape=(n, n))[order][:, order].tocsr()
    csr.sort_indices()
    return csr.indptr.astype(np.int64), csr.indices.astype(np.int32), csr.data


@few
@given(seed=st.integers(0, 10**6))
def test_the_order_of_the_rows_does_not_matter(seed: int) -> None:
    rng, n = np.random.default_rng(seed), 30
    edges, order = random_edges(seed, n), np.random.default_rng(seed).permutation(30)
    usable = rng.random(n) < 0.9
    usable[0] = True
    score, vectors, staleness = rng.normal(size=n), rng.normal(size=(n, 4)), rng.integers(0, 6, n)
    everyone = np.arange(n)

    alpha = propagation_weights(edges, everyone, usable)
    worth = priority(score, staleness, alpha, usable, 0.4)
    moved = eq21_step(vectors, alpha, everyone)
    picks = pick_spread_anchors(worth, edges, np.flatnonzero(usable), 5)

    edges2, usable2 = relabelled(edges, order), usable[order]
    alpha2 = propagation_weights(edges2, everyone, usable2)
    worth2 = priority(score[order], staleness[order], alpha2, usable2, 0.4)
    np.testing.assert_allclose(worth2, worth[order], atol=1e-6)
    np.testing.assert_allclose(eq21_step(vectors[order], alpha2, everyone), moved[order], atol=1e-5)
    picks2 = pick_spread_anchors(worth[order], edges2, np.flatnonzero(usable2), 5)
    np.testing.assert_allclose(np.sort(worth[order[picks2]]), np.sort(worth[picks]), atol=1e-6)


def test_priority_by_hand() -> None:
    # 0–1 and 1–2 with equal cosine; 3 has no neighbour, 4 is unusable.
    dense = np.zeros((5, 5), np.float32)
    dense[0, 1] = dense[1, 0] = dense[1, 2] = dense[2, 1] = 0.5
    csr = sparse.csr_matrix(dense)
    usable = np.array([True, True, True, True, False])
    alpha = propagation_weights((csr.indptr, csr.indices, csr.data), np.arange(5), usable)
    score = np.array([1.0, 4.0, 1.5, 9.0, np.nan])  # discrepancies 3, 2.75, 2.5, 0 -> ranks 1, 2/3, 1/3, 0
    staleness = np.array([1, 2, 4, 4, 100])
    expected = 0.25 * staleness[:4] / 4 + 0.75 * np.array([1, 2 / 3, 1 / 3, 0])
    found = priority(score, staleness, alpha, usable, 0.25)
    np.testing.assert_allclose(found, [*expected, 0], atol=1e-9)


def slow_spread(worth: Array, edges: tuple[Array, Array, Array], candidates: Rows, count: int) -> list[int]:
    now, left, picked = worth.copy(), sorted(candidates.tolist()), []
    for _ in range(count):
        row = max(left, key=lambda i: (now[i], -i))
        left.remove(row)
        picked.append(row)
        for e in range(edges[0][row], edges[0][row + 1]):
            now[edges[1][e]] *= 1 - edges[2][e]
    return sorted(picked)


@few
@given(seed=st.integers(0, 10**6), count=st.integers(0, 15), ties=st.booleans())
def test_anchors_spread_as_the_slow_greedy_spreads_them(seed: int, count: int, ties: bool) -> None:
    rng, n = np.random.default_rng(seed), 25
    edges = random_edges(seed, n)
    worth = rng.integers(0, 3, n).astype(float) if ties else rng.random(n)
    candidates = np.sort(rng.choice(n, 18, replace=False))
    found = pick_spread_anchors(worth, edges, candidates, count)
    assert found.dtype == np.int64
    assert found.tolist() == slow_spread(worth, edges, candidates, count)


def test_copies_of_an_anchor_wait_until_the_rest_is_taken() -> None:
    embedding = unit(np.random.default_rng(0).normal(size=(30, 4)))
    embedding[:6] = embedding[0]
    edges = symmetric_csr(build(embedding, 8, seed=0))
    worth = np.where(np.arange(30) < 6, 1.0, 0.5)
    picks = pick_spread_anchors(worth, edges, np.arange(30), 10)
    assert np.sum(picks < 6) == 1


def test_rows_beside_are_the_usable_neighbours_that_are_no_anchors() -> None:
    csr = sparse.csr_matrix(np.array([[0, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]], np.float32))
    edges = (csr.indptr, csr.indices, csr.data)
    usable = np.array([True, True, False, True])
    assert rows_beside(edges, np.array([0]), usable).tolist() == [1]
    assert rows_beside(edges, np.array([0, 1]), usable).tolist() == []
    assert rows_beside(edges, NOBODY, usable).tolist() == []


# ------------------------------------------------------------------------------------------ plan


def test_it_makes_a_policy_and_names_its_needs() -> None:
    refresh = paper(scores=("gradient_norm", "loss"), priority_score="gradient_norm")
    assert isinstance(Planned(refresh, 0, np.random.default_rng(0)), RefreshPolicy)
    assert refresh.needs == ("response_embedding", "gradient_norm", "loss")
    assert AnchorRefresh().needs == ("prompt_embedding", "loss")


@pytest.mark.parametrize("anchors", ["priority", "random", "all", "trained"])
def test_the_first_plan_is_everybody(anchors: str) -> None:
    plan = planned(paper(anchors=anchors), unmeasured(), 0, np.random.default_rng(0))  # type: ignore[arg-type]
    assert plan.tolist() == list(range(N))


@pytest.mark.parametrize("anchors", ["priority", "random"])
def test_plans_hold_the_share_of_usable_rows(anchors: str) -> None:
    refresh = paper(anchors=anchors, anchor_share=0.11, k=K)  # type: ignore[arg-type]
    pool = measured(refresh)
    usable = np.arange(N) % 4 > 0
    pool = replace(pool, usable=usable)
    plan = planned(refresh, pool, 3, np.random.default_rng(5))
    assert len(plan) == len(set(plan.tolist())) == 7  # ⌈0.11 · 60⌉
    assert usable[plan].all()
    assert (np.diff(plan) > 0).all()
    np.testing.assert_array_equal(plan, planned(refresh, pool, 3, np.random.default_rng(5)))
    assert (
        planned(paper(anchors="all"), pool, 3, np.random.default_rng(0)).tolist()
        == np.flatnonzero(usable).tolist()
    )


def test_stale_rows_come_first_when_only_staleness_counts() -> None:
    refresh = paper(beta=1, anchor_share=0.1, k=K)
    pool = measured(refresh)
    stale = np.arange(0, N, 10)
    pool = replace(pool, measured_at=np.where(np.isin(np.arange(N), stale), 0, 4).astype(np.int32))
    spread = planned(refresh, pool, 5, np.random.default_rng(0))
    assert len(set(spread) & set(stale.tolist())) >= 6  # not all 8: a neighbour of an anchor is damped


def test_a_row_that_contradicts_its_neighbourhood_is_an_anchor() -> None:
    refresh = paper(beta=0, anchor_share=1 / N, k=K)
    pool = measured(refresh)
    loss = np.zeros(N, np.float32)
    loss[37] = 5
    plan = planned(
        refresh, replace(pool, features={**pool.features, "loss": loss}), 1, np.random.default_rng(0)
    )
    assert plan.tolist() == [37]


def test_trained_takes_the_rows_of_the_last_round_trained() -> None:
    refresh = paper(anchors="trained", k=K)
    pool = measured(refresh)
    rng = np.random.default_rng(0)
    with pytest.raises(KeyError, match="trained_at"):
        planned(refresh, pool, 1, rng)
    trained_at = np.full(N, -1, np.int32)
    pool = replace(pool, features={**pool.features, "trained_at": trained_at})
    with pytest.raises(ValueError, match="no row was trained on yet"):
        planned(refresh, pool, 1, rng)
    trained_at[[4, 9]], trained_at[[2, 7, 70]] = 1, 2
    pool = replace(pool, usable=np.arange(N) != 70)
    assert planned(refresh, pool, 3, rng).tolist() == [2, 7]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"anchors": "some"}, "priority, random, all, trained"),
        ({"propagate": "avg"}, "average, delta, fit, none"),
        ({"repair": "all"}, "local, rebuild, none"),
        ({"anchor_share": 0}, "anchor_share is 0"),
        ({"anchor_share": 1.5}, "at most 1"),
        ({"beta": 2}, "beta is 2"),
        ({"delta": -1}, "delta is -1"),
        ({"k": 0}, "k is 0"),
        ({"look_again": 0.5}, "look_again is 0.5"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnchorRefresh(**settings)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------ update


@pytest.mark.parametrize("propagate", ["average", "delta", "fit", "none"])
def test_all_anchors_and_a_rebuild_are_a_fresh_measurement(propagate: str) -> None:
    refresh = paper(anchors="all", repair="rebuild", propagate=propagate, k=K)  # type: ignore[arg-type]
    pool = read_only(measured(refresh))
    fresh = signals(2)
    plan = planned(refresh, pool, 1, np.random.default_rng(0))
    again = update(refresh, pool, plan, at(fresh, plan), 1)
    anew = update(refresh, unmeasured(), np.arange(N), fresh, 1)
    assert_same_pool(again, anew, but=("previous_loss",))
    np.testing.assert_array_equal(again.features["previous_loss"], pool.features["loss"])
    assert np.isnan(anew.features["previous_loss"]).all()


@pytest.mark.parametrize("repair", ["local", "rebuild", "none"])
@pytest.mark.parametrize("propagate", ["average", "delta", "none"])
def test_anchors_keep_fresh_values_and_only_neighbours_move(propagate: str, repair: str) -> None:
    refresh = paper(propagate=propagate, repair=repair, k=K)  # type: ignore[arg-type]
    pool = read_only(measured(refresh))
    assert pool.graph is not None
    fresh, anchors = signals(2), np.array([3, 11, 40])
    after = update(refresh, pool, anchors, at(fresh, anchors), 4)

    edges = symmetric_csr(pool.graph)
    beside = rows_beside(edges, anchors, pool.usable) if propagate != "none" else NOBODY
    still = np.setdiff1d(np.arange(N), np.concatenate([anchors, beside]))
    assert len(still) > 20
    assert set(after.features) == {*fresh, "previous_loss"}
    for name, value in fresh.items():
        np.testing.assert_array_equal(after.features[name][anchors], value[anchors])
        np.testing.assert_array_equal(after.features[name][still], pool.features[name][still])
        changed = after.features[name][beside] != pool.features[name][beside]
        assert changed.any(axis=tuple(range(1, value.ndim))).all()
        assert after.features[name].dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(after.features["response_embedding"], axis=1), 1, atol=1e-5)
    assert (after.measured_at == np.where(np.isin(np.arange(N), anchors), 4, 0)).all()
    previous = after.features["previous_loss"]
    np.testing.assert_array_equal(previous[anchors], pool.features["loss"][anchors])
    assert np.isnan(np.delete(previous, anchors)).all()
    assert (after.graph is pool.graph) == (repair == "none")


@pytest.mark.parametrize("propagate", ["average", "delta"])
def test_propagation_is_one_synchronous_step_of_the_formula(propagate: str) -> None:
    refresh = paper(propagate=propagate, repair="none", k=K)  # type: ignore[arg-type]
    pool = measured(refresh)
    assert pool.graph is not None
    fresh, anchors = signals(2), np.array([0, 17, 18, 63])
    after = update(refresh, pool, anchors, at(fresh, anchors), 1)

    indptr, indices, cosine = symmetric_csr(pool.graph)
    for name in fresh:
        old = pool.features[name].astype(float)
        now = old.copy()
        now[anchors] = fresh[name][anchors]
        for i in np.setdiff1d(np.arange(N), anchors):
            j, alpha = indices[indptr[i] : indptr[i + 1]], cosine[indptr[i] : indptr[i + 1]].astype(float)
            alpha = (alpha / alpha.sum()).reshape(-1, *[1] * (old.ndim - 1))
            expected = old[i]
            if np.isin(j, anchors).any() and propagate == "average":
                expected = 0.5 * old[i] + 0.5 * (alpha * now[j]).sum(0)
            elif np.isin(j, anchors).any():
                expected = old[i] + (alpha * (now[j] - old[j])).sum(0)
            if name.endswith("_embedding"):
                expected = expected / np.linalg.norm(expected)
            np.testing.assert_allclose(after.features[name][i], expected, atol=1e-5)


def test_local_repair_gives_drifted_rows_the_lists_of_a_rebuild() -> None:
    refresh = paper(delta=0.05, k=K)
    pool = measured(refresh, n=400)
    fresh = signals(2, 400)
    anchors = np.arange(0, 400, 25)
    local = update(refresh, pool, anchors, at(fresh, anchors), 1)
    rebuilt = update(replace(refresh, repair="rebuild"), pool, anchors, at(fresh, anchors), 1)
    assert pool.graph is not None
    assert local.graph is not None
    assert rebuilt.graph is not None
    embedding = local.features["response_embedding"]
    moved = 1 - (embedding * pool.graph.built_from).sum(1) > 0.05
    assert 10 <= moved.sum() < 200
    for i in np.flatnonzero(moved):
        assert set(local.graph.neighbors[i]) == set(rebuilt.graph.neighbors[i])
    built_from = np.where(moved[:, None], embedding, pool.graph.built_from)
    np.testing.assert_allclose(local.graph.built_from, built_from, atol=5e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["response_embedding", "loss", "gradient"])
def test_a_row_that_was_never_finite_is_zero_unusable_and_without_edges(name: str, bad: float) -> None:
    refresh, fresh = paper(k=K), signals(1)
    fresh[name][9] = bad
    pool = update(refresh, unmeasured(), np.arange(N), fresh, 0)
    assert pool.graph is not None
    assert np.flatnonzero(~pool.usable).tolist() == [9]
    assert pool.measured_at[9] == -1
    assert (np.delete(pool.measured_at, 9) == 0).all()
    for feature in fresh:
        assert (pool.features[feature][9] == 0).all()
    assert (pool.graph.neighbors[9] == -1).all()
    assert not (pool.graph.neighbors == 9).any()
    assert 9 not in planned(refresh, pool, 1, np.random.default_rng(0))


@pytest.mark.parametrize("repair", ["local", "rebuild"])
@pytest.mark.parametrize("propagate", ["average", "delta", "fit", "none"])
def test_a_row_that_turns_bad_keeps_its_old_values_and_poisons_nobody(propagate: str, repair: str) -> None:
    refresh = paper(propagate=propagate, repair=repair, k=K)  # type: ignore[arg-type]
    pool = read_only(measured(refresh))
    assert pool.graph is not None
    fresh, anchors = signals(2), np.array([3, 11, 40])
    fresh["gradient"][11, 0] = np.nan
    after = update(refresh, pool, anchors, at(fresh, anchors), 4)
    assert np.flatnonzero(~after.usable).tolist() == [11]
    assert after.measured_at[[3, 11, 40]].tolist() == [4, 0, 4]
    for name in fresh:
        assert np.isfinite(after.features[name]).all()
        np.testing.assert_array_equal(after.features[name][11], pool.features[name][11])
    # As if it had not been there: neither its old nor its new values reach anybody.
    without = update(
        refresh, replace(pool, usable=after.usable), np.array([3, 40]), at(fresh, np.array([3, 40])), 4
    )
    assert_same_pool(after, without)
    later = update(refresh, after, np.array([8]), at(signals(3), np.array([8])), 5)
    assert not later.usable[11]


def test_unusable_rows_that_came_with_nan_do_not_poison_either() -> None:
    refresh = paper(repair="rebuild", k=K)
    fresh = signals(1)
    pool = measured(refresh)
    spoilt = {
        name: np.where((np.arange(N) == 5).reshape(-1, *[1] * (v.ndim - 1)), np.nan, v)
        for name, v in fresh.items()
    }
    pool = replace(pool, features=spoilt, usable=np.arange(N) != 5)
    anchors = np.array([3, 4, 6])
    after = update(refresh, pool, anchors, at(signals(2), anchors), 1)
    assert all(np.isfinite(after.features[name]).all() for name in fresh)


def test_nothing_left_to_use_is_an_error() -> None:
    fresh = signals(1)
    fresh["loss"][:] = np.nan
    with pytest.raises(ValueError, match="none of the 80 rows has finite signals"):
        update(paper(k=K), unmeasured(), np.arange(N), fresh, 0)


def test_wrong_shapes_and_late_signals_are_errors_with_both_numbers() -> None:
    refresh = paper(k=K)
    pool = measured(refresh)
    rows = np.array([1, 2, 3])
    with pytest.raises(ValueError, match="3 rows were measured, loss has 80"):
        update(refresh, pool, rows, {**at(signals(2), rows), "loss": signals(2)["loss"]}, 1)
    late = {**at(signals(2), rows), "alignment": np.zeros(3, np.float32)}
    with pytest.raises(ValueError, match="alignment is new, and 77 of 80 usable rows have none"):
        update(refresh, pool, rows, late, 1)
    with pytest.raises(ValueError, match="k = 10 neighbours, but the pool has 8 rows"):
        update(paper(), unmeasured(8), np.arange(8), signals(1, 8), 0)
    with pytest.raises(ValueError, match="no graph"):
        planned(refresh, replace(pool, graph=None), 1, np.random.default_rng(0))


def test_previous_loss_is_the_loss_held_before_the_look() -> None:
    refresh = paper(k=K)
    pool = measured(refresh)
    rows = np.array([5, 6])
    one = update(refresh, pool, rows, at(signals(2), rows), 1)
    two = update(refresh, one, rows, at(signals(3), rows), 2)
    np.testing.assert_array_equal(one.features["previous_loss"][rows], signals(1)["loss"][rows])
    np.testing.assert_array_equal(two.features["previous_loss"][rows], signals(2)["loss"][rows])
    assert np.isnan(np.delete(two.features["previous_loss"], rows)).all()


@pytest.mark.parametrize("propagate", ["average", "delta", "fit", "none"])
def test_what_a_prompt_is_worth_to_its_response_no_other_row_tells(propagate: str) -> None:
    """A noise filter holds the measured loss against the one without a prompt: rows beside those that
    training passed through have a lower loss after it, and are as noisy as they were."""
    refresh = paper(propagate=propagate, k=K)

    def told(seed: int) -> dict[str, Array]:
        return {**signals(seed), "empty_prompt_loss": signals(seed + 10)["loss"]}

    pool, anchors = update(refresh, unmeasured(), np.arange(N), told(1), 0), np.array([3, 11, 40])
    after = update(refresh, pool, anchors, at(told(2), anchors), 1)
    moved = after.features["loss"] != pool.features["loss"]
    assert moved.sum() > len(anchors) or propagate == "none"
    for name, measured_as in (("exact_loss", "loss"), ("empty_prompt_loss", "empty_prompt_loss")):
        expected = told(1)[measured_as].copy()
        expected[anchors] = told(2)[measured_as][anchors]
        np.testing.assert_array_equal(after.features[name], expected)
    flagged = Noise(least_told=0.0)
    pairs = {
        "matched_loss": np.ones(9),
        "mismatched_loss": np.full(9, 4.0),
        "unprompted_loss": np.full(9, 4.0),
    }
    known = {**pairs, "pair_tokens": np.full(9, 10)}
    tokens = {"response_tokens": np.full(N, 10)}
    scored = replace(after, features={**after.features, **tokens}, references=known)
    score = flagged.judge(scored, Budget(1)).score
    ratio = (scored.features["exact_loss"] + 0.02) / (scored.features["empty_prompt_loss"] + 0.02)
    np.testing.assert_allclose(score, np.sqrt(10) * np.log(ratio), atol=1e-5)


def test_nothing_measured_changes_nothing() -> None:
    refresh = paper(k=K)
    pool = measured(refresh)
    after = update(refresh, pool, NOBODY, at(signals(2), NOBODY), 1)
    assert after is pool


@few
@given(seed=st.integers(0, 10**6), delta=st.booleans())
def test_many_rounds_stay_finite_unit_and_within_the_range_of_what_was_seen(seed: int, delta: bool) -> None:
    refresh = paper(propagate="delta" if delta else "average", k=K, anchor_share=0.1)
    rng, pool = np.random.default_rng(seed), measured(refresh)
    low, high = pool.features["loss"].min(), pool.features["loss"].max()
    for round in range(1, 5):
        rows = planned(refresh, pool, round, rng)
        fresh = at(signals(int(rng.integers(10**6))), rows)
        fresh["loss"][rng.random(len(rows)) < 0.1] = np.nan
        pool = update(refresh, pool, rows, fresh, round)
        finite = fresh["loss"][np.isfinite(fresh["loss"])]
        low, high = min([low, *finite]), max([high, *finite])
    assert all(np.isfinite(pool.features[name]).all() for name in signals(0))
    np.testing.assert_allclose(np.linalg.norm(pool.features["response_embedding"], axis=1), 1, atol=1e-4)
    if not delta:
        assert pool.features["loss"].min() >= low - 1e-5
        assert pool.features["loss"].max() <= high + 1e-5


# -------------------------------------------------------------------------------------- nothing along a graph


def graphless(**settings: object) -> AnchorRefresh:
    return AnchorRefresh(anchors="all", propagate="none", repair="none", **settings)  # type: ignore[arg-type]


def test_without_spreading_nothing_is_measured_for_a_graph_and_none_is_made() -> None:
    refresh = graphless(embedding="response_embedding")
    assert refresh.needs == ()
    fresh = {name: value for name, value in signals(1).items() if name == "gradient"}
    pool = update(refresh, unmeasured(), np.arange(N), fresh, 0)
    assert pool.graph is None
    assert set(pool.features) == {"gradient"}
    again = update(refresh, pool, planned(refresh, pool, 1, np.random.default_rng(0)), fresh, 1)
    assert np.array_equal(again.measured_at, np.full(N, 1))


def test_a_selector_that_asks_for_the_embedding_still_gets_its_graph() -> None:
    pool = update(graphless(k=K, embedding="response_embedding"), unmeasured(), np.arange(N), signals(1), 0)
    assert pool.graph is not None


def test_a_signal_may_become_narrower_when_all_rows_are_measured() -> None:
    refresh = graphless()
    wide, narrow = np.ones((N, 6), np.float32), np.full((N, 2), 7, np.float32)
    narrow[3] = np.nan
    pool = update(refresh, unmeasured(), np.arange(N), {"trajectory": wide}, 0)
    pool = update(refresh, pool, np.arange(N), {"trajectory": narrow}, 1)
    assert pool.feature("trajectory").shape == (N, 2)
    assert not pool.usable[3]
    assert np.array_equal(np.delete(pool.feature("trajectory"), 3, 0), np.delete(narrow, 3, 0))
    with pytest.raises(ValueError, match=f"trajectory is new, and {N - 2} of {N - 1} usable rows have none"):
        update(refresh, pool, np.array([5]), {"trajectory": wide[:1]}, 2)


def test_a_memory_map_stays_one_also_with_unusable_rows(tmp_path: Path) -> None:
    truth = np.ones((N, 6), np.float32)
    truth[4, 2] = np.inf
    np.save(tmp_path / "wide.npy", truth)
    mapped = np.load(tmp_path / "wide.npy", mmap_mode="c")
    pool = update(graphless(), unmeasured(), np.arange(N), {"wide": mapped}, 0)
    assert np.shares_memory(pool.feature("wide"), mapped)
    assert np.array_equal(np.flatnonzero(~pool.usable), [4])
    assert not pool.feature("wide")[4].any()
    assert np.array_equal(np.load(tmp_path / "wide.npy"), truth)

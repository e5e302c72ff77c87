"""What measured rows tell: who moves, who stays, and NaN that stays where it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clustered_rows import NO_ROWS, K, N, at, measured, paper, signals, unmeasured
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtri

from coretune.filters.noise import Noise
from coretune.neighbors.graph import build, symmetric_csr
from coretune.policies.anchors import planned
from coretune.policies.paper import rows_beside
from coretune.policies.update import update
from coretune.rounds.refresh_settings import AnchorRefresh
from coretune.types import Array, Budget, Pool

ALWAYS = Noise(min_auc=0.0)
few = settings(deadline=None, max_examples=25)


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


@pytest.mark.parametrize("propagate", ["average", "none"])
def test_all_anchors_are_a_fresh_measurement(propagate: str) -> None:
    refresh = paper(anchors="all", repair="none", propagate=propagate, k=K)  # type: ignore[arg-type]
    pool = read_only(measured(refresh))
    fresh = signals(2)
    plan = planned(refresh, pool, 1)
    again = update(refresh, pool, plan, at(fresh, plan), 1)
    anew = update(refresh, unmeasured(), np.arange(N), fresh, 1)
    assert_same_pool(again, anew, but=("previous_loss",))
    np.testing.assert_array_equal(again.features["previous_loss"], pool.features["loss"])
    assert np.isnan(anew.features["previous_loss"]).all()


@pytest.mark.parametrize("repair", ["local", "none"])
@pytest.mark.parametrize("propagate", ["average", "none"])
def test_anchors_keep_fresh_values_and_only_neighbours_move(propagate: str, repair: str) -> None:
    refresh = paper(propagate=propagate, repair=repair, k=K)  # type: ignore[arg-type]
    pool = read_only(measured(refresh))
    assert pool.graph is not None
    fresh, anchors = signals(2), np.array([3, 11, 40])
    after = update(refresh, pool, anchors, at(fresh, anchors), 4)

    edges = symmetric_csr(pool.graph)
    beside = rows_beside(edges, anchors, pool.usable) if propagate != "none" else NO_ROWS
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


def test_propagation_is_one_synchronous_step_of_the_formula() -> None:
    refresh = paper(repair="none", k=K)
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
            if np.isin(j, anchors).any():
                expected = 0.5 * old[i] + 0.5 * (alpha * now[j]).sum(0)
            if name.endswith("_embedding"):
                expected = expected / np.linalg.norm(expected)
            np.testing.assert_allclose(after.features[name][i], expected, atol=1e-5)


def test_local_repair_gives_drifted_rows_the_lists_of_a_rebuild() -> None:
    refresh = paper(repair="local", delta=0.05, k=K)
    pool = measured(refresh, n=400)
    fresh = signals(2, 400)
    anchors = np.arange(0, 400, 25)
    local = update(refresh, pool, anchors, at(fresh, anchors), 1)
    assert pool.graph is not None
    assert local.graph is not None
    embedding = local.features["response_embedding"]
    rebuilt = build(embedding, K, seed=1)
    moved = 1 - (embedding * pool.graph.built_from).sum(1) > 0.05
    assert 10 <= moved.sum() < 200
    for i in np.flatnonzero(moved):
        assert set(local.graph.neighbors[i]) == set(rebuilt.neighbors[i])
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
    assert 9 not in planned(refresh, pool, 1)


@pytest.mark.parametrize("repair", ["local", "none"])
@pytest.mark.parametrize("propagate", ["average", "none"])
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
    refresh = paper(k=K)
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
    late = {**at(signals(2), rows), "head_gradient": np.zeros(3, np.float32)}
    with pytest.raises(ValueError, match="head_gradient is new, and 77 of 80 usable rows have none"):
        update(refresh, pool, rows, late, 1)
    with pytest.raises(ValueError, match="k = 10 neighbours, but the pool has 8 rows"):
        update(paper(), unmeasured(8), np.arange(8), signals(1, 8), 0)
    with pytest.raises(ValueError, match="no graph"):
        planned(refresh, replace(pool, graph=None), 1)


def test_previous_loss_is_the_loss_before_the_measurement() -> None:
    refresh = paper(k=K)
    pool = measured(refresh)
    rows = np.array([5, 6])
    one = update(refresh, pool, rows, at(signals(2), rows), 1)
    two = update(refresh, one, rows, at(signals(3), rows), 2)
    np.testing.assert_array_equal(one.features["previous_loss"][rows], signals(1)["loss"][rows])
    np.testing.assert_array_equal(two.features["previous_loss"][rows], signals(2)["loss"][rows])
    assert np.isnan(np.delete(two.features["previous_loss"], rows)).all()


def with_pairs(pool: Pool, other: float) -> Pool:
    """The pool with pairs measured: `other` is the loss of half of the responses after other prompts."""
    losses = {"matched_loss": np.ones(9), "mismatched_loss": other * np.linspace(0.9, 1.1, 9)}
    known = {**losses, "unprompted_loss": np.full(9, 4.0), "pair_tokens": np.full(9, 10)}
    tokens = {"response_tokens": np.full(N, 10)}
    return replace(pool, references=known, features={**pool.features, **tokens})


def prompted(seed: int) -> dict[str, Array]:
    return {**signals(seed), "empty_prompt_loss": signals(seed + 10)["loss"]}


@pytest.mark.parametrize("propagate", ["average", "none"])
def test_what_a_prompt_is_worth_to_its_response_does_not_follow_from_other_rows(propagate: str) -> None:
    """A noise filter holds the measured loss against the one without a prompt: rows beside those that
    training passed through have a lower loss after it, and are as noisy as they were."""
    refresh, anchors = paper(propagate=propagate, k=K), np.array([3, 11, 40])
    pool = update(refresh, with_pairs(unmeasured(), 4.0), np.arange(N), prompted(1), 0, ALWAYS)
    after = update(refresh, pool, anchors, at(prompted(2), anchors), 1, ALWAYS)
    moved = after.features["loss"] != pool.features["loss"]
    assert moved.sum() > len(anchors) or propagate == "none"
    score = ALWAYS.judge(after, Budget(1)).score
    wrong = np.log((4.0 * np.linspace(0.9, 1.1, 9) + 0.02) / 4.02)
    for rows, signal in ((np.delete(np.arange(N), anchors), prompted(1)), (anchors, prompted(2))):
        ratio = np.log((signal["loss"] + 0.02) / (signal["empty_prompt_loss"] + 0.02))[rows]
        low, middle = np.quantile(wrong, [0.1, 0.5])
        np.testing.assert_allclose(score[rows], (ratio - middle) / (middle - low) * -ndtri(0.1), rtol=1e-4)


def test_a_row_measured_earlier_is_held_against_the_pairs_of_that_time() -> None:
    """While a model is trained, what wrong responses score moves by more than their spread."""
    refresh, anchors = paper(k=K), np.array([3, 11, 40])
    first = update(refresh, with_pairs(unmeasured(), 4.0), np.arange(N), prompted(1), 0, ALWAYS)
    after = update(refresh, with_pairs(first, 9.0), anchors, at(prompted(2), anchors), 1, ALWAYS)
    others = np.delete(np.arange(N), anchors)
    before = ALWAYS.judge(first, Budget(1)).score
    np.testing.assert_array_equal(ALWAYS.judge(after, Budget(1)).score[others], before[others])
    fresh = update(refresh, with_pairs(unmeasured(), 9.0), np.arange(N), prompted(2), 0, ALWAYS)
    np.testing.assert_array_equal(
        after.features["noise_score"][anchors], fresh.features["noise_score"][anchors]
    )


def test_a_loss_that_training_shows_changes_no_noise_score() -> None:
    """Training lowers the loss of wrong rows too; no step measures it after an empty prompt."""
    refresh, anchors = paper(k=K), np.array([3, 11, 40])
    pool = update(refresh, with_pairs(unmeasured(), 4.0), np.arange(N), prompted(1), 0, ALWAYS)
    after = update(refresh, pool, anchors, {"loss": np.full(3, 0.1, np.float32)}, 1, ALWAYS)
    np.testing.assert_array_equal(after.features["loss"][anchors], np.float32(0.1))
    np.testing.assert_array_equal(after.features["noise_score"], pool.features["noise_score"])


def test_rows_measured_while_noise_detection_was_off_have_no_noise_score() -> None:
    """They are not flagged once a model that has learnt more can tell, nor do they say how many are wrong."""
    noise, refresh, anchors = Noise(), paper(k=K), np.array([3, 11, 40])
    young = update(refresh, with_pairs(unmeasured(), 1.0), np.arange(N), prompted(1), 0, noise)
    assert np.isnan(young.features["noise_score"]).all()
    assert not noise.on(young)
    older = with_pairs(young, 9.0)
    assert noise.on(older)
    after = update(refresh, older, anchors, at(prompted(2), anchors), 1, noise)
    assert np.flatnonzero(np.isfinite(after.features["noise_score"])).tolist() == anchors.tolist()
    assert noise.judge(after, Budget(1)).keep[np.delete(np.arange(N), anchors)].all()


@pytest.mark.parametrize("propagate", ["average", "none"])
def test_a_pool_of_before_scores_were_kept_goes_on_with_what_is_believed(propagate: str) -> None:
    """As of a checkpoint that an earlier version wrote: no row is without a score."""
    refresh, anchors = paper(propagate=propagate, k=K), np.array([3, 11, 40])
    pool = update(refresh, with_pairs(unmeasured(), 4.0), np.arange(N), prompted(1), 0, ALWAYS)
    before = {name: value for name, value in pool.features.items() if name != "noise_score"}
    after = update(refresh, replace(pool, features=before), anchors, at(prompted(2), anchors), 1, ALWAYS)
    known = update(refresh, pool, anchors, at(prompted(2), anchors), 1, ALWAYS)
    assert np.isfinite(after.features["noise_score"]).all()
    np.testing.assert_array_equal(
        after.features["noise_score"][anchors], known.features["noise_score"][anchors]
    )


def test_nothing_measured_changes_nothing() -> None:
    refresh = paper(k=K)
    pool = measured(refresh)
    after = update(refresh, pool, NO_ROWS, at(signals(2), NO_ROWS), 1)
    assert after is pool


@few
@given(seed=st.integers(0, 10**6))
def test_many_rounds_stay_finite_unit_and_within_the_range_of_what_was_seen(seed: int) -> None:
    refresh = paper(repair="local", k=K, anchor_share=0.1)
    rng, pool = np.random.default_rng(seed), measured(refresh)
    low, high = pool.features["loss"].min(), pool.features["loss"].max()
    for round in range(1, 5):
        rows = planned(refresh, pool, round)
        fresh = at(signals(int(rng.integers(10**6))), rows)
        fresh["loss"][rng.random(len(rows)) < 0.1] = np.nan
        pool = update(refresh, pool, rows, fresh, round)
        finite = fresh["loss"][np.isfinite(fresh["loss"])]
        low, high = min([low, *finite]), max([high, *finite])
    assert all(np.isfinite(pool.features[name]).all() for name in signals(0))
    np.testing.assert_allclose(np.linalg.norm(pool.features["response_embedding"], axis=1), 1, atol=1e-4)
    assert pool.features["loss"].min() >= low - 1e-5
    assert pool.features["loss"].max() <= high + 1e-5


def graphless(**settings: object) -> AnchorRefresh:
    return AnchorRefresh(anchors="all", propagate="none", repair="none", **settings)  # type: ignore[arg-type]


def test_without_spreading_nothing_is_measured_for_a_graph_and_none_is_made() -> None:
    refresh = graphless(embedding="response_embedding")
    assert refresh.needs == ()
    fresh = {name: value for name, value in signals(1).items() if name == "gradient"}
    pool = update(refresh, unmeasured(), np.arange(N), fresh, 0)
    assert pool.graph is None
    assert set(pool.features) == {"gradient"}
    again = update(refresh, pool, planned(refresh, pool, 1), fresh, 1)
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

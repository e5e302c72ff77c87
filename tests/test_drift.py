"""What anchors tell of all others: the ridge against its formula, and what may never move."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coretune.policies import drift as room
from coretune.policies.drift import STRENGTHS, Ridge, drift
from coretune.policies.update import update
from coretune.rounds.refresh_settings import AnchorRefresh
from coretune.types import Array, Pool

few = settings(deadline=None, max_examples=20)
N = 90


def unit(x: Array) -> Array:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def signals(seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    place = unit(rng.normal(size=(8, 5))[np.arange(N) % 8] + 0.3 * rng.normal(size=(N, 5)))
    loss = np.exp(rng.normal(size=N)).astype(np.float32)
    return {
        "prompt_embedding": place,
        "loss": loss,
        "gradient": rng.normal(size=(N, 3)).astype(np.float32),
        "alignment": rng.normal(size=N).astype(np.float32),
    }


def moved(seed: int) -> dict[str, Array]:
    """The same rows later: each skill has moved in its own way."""
    before, way = signals(seed), np.random.default_rng(seed + 1).normal(size=(5, 3)).astype(np.float32)
    place = before["prompt_embedding"]
    factor = np.exp(place @ way[:, 0] - 1)
    return {
        "prompt_embedding": unit(place + 0.3 * np.roll(place, 1, axis=1)),
        "loss": before["loss"] * factor,
        "gradient": before["gradient"] + place @ way,
        "alignment": before["alignment"] + 1,
    }


def told(before: dict[str, Array], after: dict[str, Array], anchors: Array) -> dict[str, Array]:
    written = {name: value.copy() for name, value in before.items()}
    for name in written:
        written[name][anchors] = after[name][anchors]
    others = np.setdiff1d(np.arange(N), anchors)
    drift(before, written, np.ones(N, bool), anchors, others)
    return written


def by_hand(x: Array, change: Array, strength: float) -> tuple[float, Array]:
    """Error of the anchors left out one by one, by fitting anew without each, and the coefficients of all."""
    distance = np.linalg.norm(x[:, None] - x[None], axis=2)
    kernel = np.exp(-distance / np.median(distance[~np.eye(len(x), dtype=bool)]))
    full = kernel + strength * np.linalg.eigvalsh(kernel).mean() * np.eye(len(x))
    apart, error = change - change.mean(axis=0), 0.0
    for i in range(len(x)):
        rest = np.arange(len(x)) != i
        guess = kernel[i, rest] @ np.linalg.solve(full[np.ix_(rest, rest)], apart[rest])
        error += float(((apart[i] - guess) ** 2).sum())
    return error, np.linalg.solve(full, apart)


@few
@given(st.integers(0, 10_000))
def test_the_ridge_is_that_which_estimates_left_out_anchors_best(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(12, 3)).astype(np.float32)
    change = np.stack([5 + np.sin(2 * x[:, 0]), 9 + x[:, 1] ** 2], axis=1).astype(np.float32)
    mean, coefficients = Ridge.of(x).solve(change)
    error, wanted = min((by_hand(x, change, s) for s in STRENGTHS), key=lambda found: found[0])
    flat = ((change - change.mean(axis=0)) ** 2).sum() * (12 / 11) ** 2
    np.testing.assert_allclose(mean, change.mean(axis=0), rtol=1e-5)
    expected = wanted if error < flat else np.zeros_like(change)
    np.testing.assert_allclose(coefficients, expected, rtol=2e-3, atol=2e-3)


def fitted(seed: int) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array], Array]:
    """Before, after, estimated from 30 anchors, and the anchors."""
    before, after = signals(seed), moved(seed)
    anchors = np.sort(np.random.default_rng(seed).choice(N, 30, replace=False))
    return before, after, told(before, after, anchors), anchors


def test_rows_move_as_rows_like_them_did() -> None:
    """Of ten draws of rows and anchors: one unlucky draw of anchors may tell little."""
    left: dict[str, list[float]] = {}
    for seed in range(10):
        before, after, written, anchors = fitted(seed)
        others = np.setdiff1d(np.arange(N), anchors)
        for name in before:
            stale = np.linalg.norm(before[name][others] - after[name][others])
            error = np.linalg.norm(written[name][others] - after[name][others])
            left.setdefault(name, []).append(float(error / stale))
    assert all(np.median(errors) < 0.7 for errors in left.values()), left


@few
@given(st.integers(0, 10_000))
def test_anchors_stay_as_measured_losses_above_0_and_embeddings_of_length_1(seed: int) -> None:
    before, after, written, anchors = fitted(seed)
    for name in before:
        np.testing.assert_array_equal(written[name][anchors], after[name][anchors])
    assert (written["loss"] >= 0).all()
    np.testing.assert_allclose(np.linalg.norm(written["prompt_embedding"], axis=1), 1, atol=1e-5)


def test_copies_among_the_anchors_have_one_voice() -> None:
    before, after = signals(3), moved(3)
    for told_of in (before, after):
        for value in told_of.values():
            value[[10, 20, 30]] = value[0]
    many, one = np.r_[0:40], np.setdiff1d(np.r_[0:40], [10, 20, 30])
    first, second = told(before, after, many), told(before, after, one)
    for name in first:
        np.testing.assert_allclose(first[name][40:], second[name][40:], rtol=1e-4, atol=1e-5)


def test_a_score_moves_by_a_factor_and_any_other_number_by_a_sum() -> None:
    before = signals(4)
    after = {**before, "loss": 3 * before["loss"], "alignment": before["alignment"] - 2}
    written = told(before, after, np.arange(20))
    high = before["loss"] > before["loss"].mean()
    np.testing.assert_allclose(written["loss"][high], after["loss"][high], rtol=0.05)
    np.testing.assert_allclose(written["alignment"], after["alignment"], atol=1e-4)


def test_what_no_anchor_explains_stays() -> None:
    before, after = signals(5), moved(5)
    for anchors in ([7], []):
        written = told(before, after, np.array(anchors, np.int64))
        others = np.setdiff1d(np.arange(N), anchors)
        for name in before:
            np.testing.assert_array_equal(written[name][others], before[name][others])


def test_blocks_and_a_bound_on_the_anchors_change_little(monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = signals(6), moved(6)
    anchors = np.arange(0, N, 2)
    whole = told(before, after, anchors)
    monkeypatch.setattr(room, "BLOCK", 7)
    for name, value in told(before, after, anchors).items():
        np.testing.assert_allclose(value, whole[name], rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(room, "FIT_ROWS", 25)
    fewer = told(before, after, anchors)
    others = np.arange(1, N, 2)
    error = np.abs(fewer["gradient"][others] - after["gradient"][others]).mean()
    assert error < np.abs(before["gradient"][others] - after["gradient"][others]).mean()


@pytest.mark.parametrize("repair", ["local", "rebuild", "none"])
def test_in_a_refresh_all_usable_rows_move_and_no_others(repair: str) -> None:
    refresh = AnchorRefresh(anchors="random", propagate="fit", repair=repair, k=5)  # type: ignore[arg-type]
    before, after = signals(7), moved(7)
    pool = Pool({}, np.ones(N, np.int64), np.full(N, -1, np.int32), np.ones(N, bool))
    bad = {name: value.copy() for name, value in before.items()}
    bad["loss"][5] = np.nan
    pool = update(refresh, pool, np.arange(N), bad, 0)
    anchors = np.arange(10, 40)
    fresh = {name: value[anchors].copy() for name, value in after.items()}
    fresh["gradient"][3] = np.inf
    later = update(refresh, pool, anchors, fresh, 1)
    assert np.flatnonzero(~later.usable).tolist() == [5, 13]
    for name in before:
        change = np.abs(later.features[name] - pool.features[name]).reshape(N, -1).max(axis=1)
        np.testing.assert_array_equal(change[[5, 13]], 0)
        others = np.setdiff1d(np.arange(N), [*anchors, 5])
        assert (change[others] > 0).all(), name
    assert np.isfinite(later.features["loss"]).all()

"""The pursuit against a slow one with scipy's NNLS; its pass over the columns; copies; the budget filled."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nnls_conditions import kkt_residual
from scipy.optimize import nnls

from coretune.select import pursuit
from coretune.select.column_copies import copy_ranks
from coretune.select.columns import Candidates, Columns, largest, mean_column, merge
from coretune.select.deflation import Filled, announce, fill
from coretune.select.pursuit import FINE, HALVED, ROUGH, SMALLEST, Pursuit, Stage, TokenLimit, pursue
from coretune.types import Array, Budget

RIDGE = 0.01


def clustered(rng: np.random.Generator, n: int, d: int, copies: float = 0.0) -> Array:
    """(n, d) float32 around a few directions, lengths differing; a share of the rows are exact copies."""
    centers = rng.normal(size=(max(1, n // 40), d))
    rows = centers[rng.integers(len(centers), size=n)] + rng.normal(size=(n, d))
    source = np.arange(n)
    copied = rng.choice(n, size=int(copies * n), replace=False)
    source[copied] = rng.choice(np.setdiff1d(source, copied), size=len(copied))
    found: Array = (rows * rng.lognormal(0.0, 0.5, size=(n, 1))).astype(np.float32)[source]
    return found


def everyone(n: int) -> Array:
    return np.ones(n, dtype=bool)


# the pass over the columns


@given(
    n=st.integers(1, 60),
    d=st.integers(1, 40),
    block=st.integers(1, 70),
    shards=st.integers(1, 5),
    count=st.integers(1, 70),
    kind=st.sampled_from([np.float16, np.float32, np.float64]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=40)
def test_blocks_and_shards_give_the_same_candidates_to_the_last_bit(
    n: int, d: int, block: int, shards: int, count: int, kind: type, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, d)).astype(kind)
    features[rng.integers(n, size=n // 3)] = features[0]  # equal correlations: the lower row comes first
    features[rng.random(n) < 0.1] = 0.0
    residual, open_rows = rng.normal(size=d), rng.random(n) < 0.8
    whole = Columns.of(features)
    assert np.array_equal(Columns.of(features, block=block).norms, whole.norms)
    assert np.array_equal(whole.correlate(residual, block=block), whole.correlate(residual))
    found = whole.top(residual, count, open_rows)
    parts = [
        Columns.of(features[rows], first=int(rows[0])).top(residual, count, open_rows[rows])
        for rows in np.array_split(np.arange(n), min(shards, n))
    ]
    same(merge(parts, count), found)

    wide = features.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1)
    expected = np.where(open_rows & (norms > 0), wide @ residual / np.where(norms > 0, norms, 1.0), 0.0)
    assert whole.correlate(residual)[open_rows] == pytest.approx(expected[open_rows], abs=1e-10)
    order = sorted(np.flatnonzero(expected > 0), key=lambda row: (-whole.correlate(residual)[row], row))
    assert found.rows.tolist() == order[:count]
    assert np.array_equal(found.columns, features[found.rows].astype(np.float32))
    assert np.array_equal(found.norms, whole.norms[found.rows])


def same(one: Candidates, other: Candidates) -> None:
    for field in dataclasses.fields(Candidates):
        assert np.array_equal(getattr(one, field.name), getattr(other, field.name)), field.name


def test_largest_takes_the_lower_of_equals_and_nothing_that_is_not_positive() -> None:
    assert largest(np.array([0.5, 2.0, 2.0, 0.5, 0.0, -1.0, 2.0]), 4).tolist() == [1, 2, 6, 0]
    assert largest(np.array([-1.0, 0.0]), 3).tolist() == []


def test_rows_that_are_zero_or_not_finite_are_never_candidates() -> None:
    features = np.array([[1, 0], [np.nan, 1], [0, 0], [np.inf, 0], [0.5, 0.5]], dtype=np.float32)
    assert Columns.of(features).top(np.ones(2), 5, everyone(5)).rows.tolist() == [4, 0]


def test_the_mean_is_of_the_rows_asked_for_whatever_else_is_not_finite() -> None:
    features = np.random.default_rng(0).normal(size=(20000, 3)).astype(np.float16)
    features[7] = np.nan
    rows = np.arange(20000) % 3 == 0
    expected = features[rows].astype(np.float64).mean(axis=0)
    assert mean_column(features, rows) == pytest.approx(expected, abs=1e-9)


# the pursuit


def slow_pursuit(features: Array, target: Array, size: int, iterations: int) -> tuple[list[int], float]:
    """The docstring, line by line; rows of the best iterate and its objective for a target of norm 1."""
    columns = features.astype(np.float64)
    columns = (columns / np.linalg.norm(columns, axis=1, keepdims=True)).astype(np.float32).astype(np.float64)
    target = target / np.linalg.norm(target)

    def solved(rows: list[int], solver: Callable[..., tuple[Array, ...]] = nnls) -> dict[int, float]:
        augmented = np.concatenate([columns[rows].T, np.sqrt(RIDGE) * np.eye(len(rows))])
        x = solver(augmented, np.concatenate([target, np.zeros(len(rows))]))[0]
        return {row: value for row, value in zip(rows, x, strict=True) if value > 1e-12}

    chosen: dict[int, float] = {}
    best: tuple[float, list[int]] = (1.0, [])
    stage = ROUGH
    for _ in range(iterations):
        remainder = target - sum((x * columns[row] for row, x in chosen.items()), np.zeros(len(target)))
        correlation = columns @ remainder
        top = sorted(np.flatnonzero(correlation > 0), key=lambda row: (-correlation[row], row))
        top = top[: math.ceil(stage.candidates * size)]
        kept = [*chosen, *(row for row in top if row not in chosen)]
        chosen = solved(kept)
        while len(chosen) > size:
            order = sorted(chosen, key=lambda row: (-chosen[row], row))
            kept = order[: max(size, int(stage.cut * len(order)))]
            chosen = solved(kept, np.linalg.lstsq)
        chosen = solved(kept)
        remainder = target - sum((x * columns[row] for row, x in chosen.items()), np.zeros(len(target)))
        objective = remainder @ remainder + RIDGE * sum(x * x for x in chosen.values())
        last, gain = best[0], best[0] - objective
        if gain > 0:
            best = (objective, sorted(chosen))
        if stage is ROUGH and objective > HALVED * last:
            stage = FINE
        elif gain < max(1e-3 * best[0], SMALLEST):
            break
    return best[1], best[0]


@pytest.mark.parametrize(("n", "d", "size"), [(80, 20, 5), (120, 30, 12), (60, 6, 25), (40, 50, 1)])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_pursuit_is_the_slow_one(n: int, d: int, size: int, seed: int) -> None:
    features = clustered(np.random.default_rng(seed), n, d)
    target = features.mean(axis=0)
    found = pursue(Columns.of(features).top, target, size, RIDGE, everyone(n))
    rows, objective = slow_pursuit(features, target, size, iterations=20)
    assert sorted(found.rows.tolist()) == rows
    assert min(found.objectives) == pytest.approx(objective, rel=1e-6)


@given(
    n=st.integers(1, 80),
    d=st.integers(1, 30),
    size=st.integers(1, 30),
    copies=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=40)
def test_what_a_pursuit_returns_is_true_of_it(n: int, d: int, size: int, copies: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    features, target, open_rows = clustered(rng, n, d, copies), rng.normal(size=d), rng.random(n) < 0.8
    found = pursue(Columns.of(features).top, target, size, RIDGE, open_rows)
    assert len(found.rows) <= size
    assert len(np.unique(found.rows)) == len(found.rows)
    assert open_rows[found.rows].all()
    assert (found.weights > 0).all()
    if not len(found.rows):
        assert (features[open_rows] @ target <= 1e-5).all()
        assert found.residual == pytest.approx(1.0)
        return
    chosen = features[found.rows].astype(np.float64)
    remainder = target - found.weights @ chosen
    scale, norms = np.linalg.norm(target), np.linalg.norm(chosen, axis=1)
    assert found.remainder == pytest.approx(remainder, abs=1e-5 * scale)
    assert found.residual == pytest.approx(np.linalg.norm(remainder) / scale, abs=1e-5)
    x = found.weights * norms / scale
    assert (np.diff(x) <= 1e-9).all()
    objective = found.residual**2 + RIDGE * x @ x
    assert objective == pytest.approx(min(found.objectives), abs=1e-6)  # never worse than the best iterate
    assert kkt_residual(chosen / norms[:, None], target / scale, RIDGE, x) < 1e-5  # optimal on its rows
    assert found.gains.sum() == pytest.approx(1 - objective, abs=1e-5)  # bᵀAx = ‖Ax‖² + ρ‖x‖² there
    assert set(found.entered) <= set(range(1, len(found.objectives) + 1))


@pytest.mark.parametrize("seed", range(5))
def test_a_planted_mixture_is_recovered(seed: int) -> None:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(3000, 96)).astype(np.float32) * rng.lognormal(size=(3000, 1)).astype(
        np.float32
    )
    planted = rng.choice(3000, size=12, replace=False)
    weights = rng.uniform(0.5, 1.5, size=12) / np.linalg.norm(features[planted], axis=1)
    found = pursue(Columns.of(features).top, weights @ features[planted], 12, 1e-6, everyone(3000))
    assert sorted(found.rows) == sorted(planted)
    order = np.argsort(planted)
    assert found.weights[np.argsort(found.rows)] == pytest.approx(weights[order], rel=1e-3)
    assert found.residual < 1e-4


def test_shards_and_blocks_of_any_size_lead_to_the_same_pursuit() -> None:
    features = clustered(np.random.default_rng(0), 500, 32, copies=0.3).astype(np.float16)
    target = mean_column(features, everyone(500))
    whole = pursue(Columns.of(features).top, target, 40, RIDGE, everyone(500))
    for count in (2, 3, 7):
        shards = [Columns.of(features[r], first=int(r[0])) for r in np.array_split(np.arange(500), count)]

        def top(residual: Array, count: int, open_rows: Array, shards: list[Columns] = shards) -> Candidates:
            parts = [
                shard.top(residual, count, open_rows[shard.first : shard.first + len(shard.norms)])
                for shard in shards
            ]
            return merge(parts, count)

        other = pursue(top, target, 40, RIDGE, everyone(500))
        assert np.array_equal(other.rows, whole.rows)
        assert np.array_equal(other.weights, whole.weights)


def test_cutting_in_steps_is_better_than_cutting_once(monkeypatch: pytest.MonkeyPatch) -> None:
    features = clustered(np.random.default_rng(1), 1500, 128)
    arguments = (Columns.of(features).top, features.mean(axis=0), 40, RIDGE, everyone(1500))
    in_steps = min(pursue(*arguments).objectives)
    for stage in ("ROUGH", "FINE"):
        once = Stage(getattr(pursuit, stage).candidates, 1e-9)
        monkeypatch.setattr(pursuit, stage, once)
    assert in_steps < 0.9 * min(pursue(*arguments).objectives)


def test_tokens_are_kept_to_and_what_no_longer_fits_is_passed_over() -> None:
    assert TokenLimit(np.array([5, 9, 3, 4, 1]), 10).fitting(np.array([0, 1, 2, 4])).tolist() == [0, 2, 3]
    assert TokenLimit(np.array([5, 9, 3]), 10).beside(np.array([0])).tolist() == [True, False, True]
    rng = np.random.default_rng(2)
    features, cost = clustered(rng, 200, 16), rng.integers(5, 50, size=200)
    found = pursue(
        Columns.of(features).top,
        features.mean(axis=0),
        10,
        RIDGE,
        everyone(200),
        tokens=TokenLimit(cost, 250),
    )
    assert 150 < cost[found.rows].sum() <= 250


@pytest.mark.parametrize("target", [np.zeros(3), np.array([1.0, np.nan, 0.0])])
def test_a_target_that_is_zero_or_not_finite_is_an_error(target: Array) -> None:
    with pytest.raises(ValueError, match="needs a finite target other than zero"):
        pursue(Columns.of(np.eye(3, dtype=np.float32)).top, target, 1, RIDGE, everyone(3))


def test_a_pursuit_of_no_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match="a pursuit of 0 rows chooses nothing"):
        pursue(Columns.of(np.eye(3, dtype=np.float32)).top, np.ones(3), 0, RIDGE, everyone(3))


# copies


@given(n=st.integers(1, 80), d=st.integers(8, 30), noise=st.booleans(), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=30)
def test_copies_are_found_whatever_their_length_and_rounding(n: int, d: int, noise: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    source = rng.integers(max(1, n // 2), size=n)
    rows = rng.normal(size=(n, d))[source] * rng.choice([1.0, 2.0], size=(n, 1))
    rows = (rows * (1 + 1e-5 * noise * rng.normal(size=rows.shape))).astype(np.float32)
    rows[rng.random(n) < 0.1] = 0.0
    norms = Columns.of(rows).norms
    units = rows.astype(np.float64) / np.where(norms > 0, norms, 1.0)[:, None]
    alike = (units @ units.T >= 0.9999) & (norms > 0) & (norms > 0)[:, None]
    expected = [int(alike[row, :row].sum()) for row in range(n)]
    assert copy_ranks(rows, norms, 0.9999).tolist() == expected


def test_many_distinct_rows_of_one_direction_are_no_copies() -> None:
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=64) + 0.1 * rng.normal(size=(400, 64))).astype(np.float32)
    assert copy_ranks(rows, Columns.of(rows).norms, 0.9999).max() == 0
    assert (
        copy_ranks(np.repeat(rows, 3, axis=0), Columns.of(np.repeat(rows, 3, axis=0)).norms, 1 - 1e-6).sum()
        == 1200
    )


# the budget filled


def filled_by_pursuits(features: Array, target: Array, budget: Budget, cost: Array | None = None) -> Filled:
    columns = Columns.of(features)

    def engine(target: Array, size: int, open_rows: Array, tokens: TokenLimit | None) -> Pursuit:
        return pursue(columns.top, target, size, RIDGE, open_rows, tokens=tokens)

    ranks = copy_ranks(features, columns.norms, 0.9999)
    cost = np.ones(len(features), dtype=np.int64) if cost is None else cost
    return fill(engine, target, budget, cost, columns.norms > 0, ranks)


@given(n=st.integers(2, 60), d=st.integers(1, 8), share=st.floats(0.05, 1.0), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=25)
def test_no_second_copy_while_a_distinct_row_points_towards_the_target(
    n: int, d: int, share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    features, target = clustered(rng, n, d, copies=0.3), rng.normal(size=d)
    columns = Columns.of(features)
    useful = columns.correlate(target / np.linalg.norm(target)) > 1e-9
    budget = max(1, int(share * n))
    found = filled_by_pursuits(features, target, Budget(budget))
    assert len(np.unique(found.rows)) == len(found.rows) <= budget
    assert len(found.rows) == budget or set(np.flatnonzero(useful)) <= set(found.rows.tolist())
    ranks = copy_ranks(features, columns.norms, 0.9999)
    if (ranks[found.rows] > 0).any():
        assert set(np.flatnonzero(useful & (ranks == 0))) <= set(found.rows.tolist())


def test_deflation_mixes_rounds_by_their_rows_and_gives_the_residual() -> None:
    features = clustered(np.random.default_rng(5), 300, 6)
    target = features.mean(axis=0).astype(np.float64)
    found = filled_by_pursuits(features, target, Budget(240))
    assert len(found.rows) == 240
    assert found.rounds > 1
    remainder = target - found.weights @ features[found.rows]
    assert found.remainder == pytest.approx(remainder, abs=1e-6)
    assert found.residual == pytest.approx(np.linalg.norm(remainder) / np.linalg.norm(target), abs=1e-5)
    assert found.residual < 0.2


def test_a_token_budget_goes_on_with_what_still_fits() -> None:
    rng = np.random.default_rng(6)
    features, cost = clustered(rng, 200, 8), rng.integers(5, 50, size=200)
    target = features.mean(axis=0).astype(np.float64)
    found = filled_by_pursuits(features, target, Budget(1000, "tokens"), cost)
    spent = int(cost[found.rows].sum())
    unused = np.setdiff1d(np.flatnonzero(Columns.of(features).correlate(target) > 0), found.rows)
    assert spent <= 1000 < spent + cost[unused].min()


def test_what_was_left_unfilled_and_what_deflation_added_is_announced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    features = np.array([[1, 0], [1, 0.1], [-1, 0], [1, 0]], dtype=np.float32)
    found = filled_by_pursuits(features, np.array([1.0, 0.0]), Budget(4))
    assert sorted(found.rows.tolist()) == [0, 1, 3]
    assert found.rows.tolist()[-1] == 3  # the copy comes last
    with caplog.at_level(logging.WARNING, logger="coretune"):
        figures = announce(
            "gtp", [found], Budget(4), copy_ranks(features, Columns.of(features).norms, 0.9999)
        )
    assert "3 of the 4 rows asked for; no other usable row points towards the target" in caplog.text
    assert "gave weight to 2 rows, the other 1 are from 1 more" in caplog.text
    assert figures["distinct"] == 2
    assert figures["pursuits"] == 2

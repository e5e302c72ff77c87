"""OMP and GradMatch against their formulas, a Gram matrix and scipy's NNLS at every step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nnls_conditions import kkt_residual
from scipy.optimize import nnls

from coretune.select.columns import Columns
from coretune.select.gradmatch import GradMatch
from coretune.select.omp import omp
from coretune.select.pursuit import TokenLimit
from coretune.testing import synthetic_pool
from coretune.types import Array, Budget


def slow_omp(columns: Array, target: Array, size: int, ridge: float) -> dict[int, float]:
    """Columns as they are, float64: row -> weight."""
    chosen: dict[int, float] = {}
    last = np.inf
    while len(chosen) < size:
        remainder = target - sum((x * columns[row] for row, x in chosen.items()), np.zeros(len(target)))
        objective = remainder @ remainder + ridge * sum(x * x for x in chosen.values())
        if last - objective < 1e-8 * last:
            break
        last = objective
        correlation = columns @ remainder
        correlation[list(chosen)] = 0.0
        row = int(correlation.argmax())
        if correlation[row] <= 1e-12:
            break
        rows = [*chosen, row]
        augmented = np.concatenate([columns[rows].T, np.sqrt(ridge) * np.eye(len(rows))])
        x = nnls(augmented, np.concatenate([target, np.zeros(len(rows))]))[0]
        chosen = {row: value for row, value in zip(rows, x, strict=True) if value > 1e-12}
    return chosen


@given(
    n=st.integers(1, 50),
    d=st.integers(2, 30),  # in one dimension all columns are equal but for rounding
    size=st.integers(1, 25),
    ridge=st.sampled_from([0.3, 1e-2]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=40)
def test_omp_is_the_slow_one(n: int, d: int, size: int, ridge: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    features = (rng.normal(size=(n, d)) * rng.lognormal(size=(n, 1))).astype(np.float32)
    target = rng.normal(size=d) + features.mean(axis=0)
    columns = Columns.of(features)
    found = omp(columns.top, target, size, ridge, np.ones(n, dtype=bool))
    units = (features / columns.norms[:, None].astype(np.float32)).astype(np.float64)
    scale = np.linalg.norm(target)
    expected = slow_omp(units, target / scale, size, ridge)
    assert sorted(found.rows.tolist()) == sorted(expected)
    x = found.weights * columns.norms[found.rows] / scale
    assert x == pytest.approx([expected[row] for row in found.rows.tolist()], abs=1e-5)
    if len(found.rows):
        assert found.objectives[-1] == pytest.approx(found.residual**2 + ridge * x @ x, abs=1e-6)
        assert (np.diff(found.objectives) <= 0).all()
        assert found.gains.sum() == pytest.approx(1 - found.objectives[-1], abs=1e-5)


def test_columns_that_turn_negative_leave_and_their_slots_are_used_again() -> None:
    rng = np.random.default_rng(1)
    features = (rng.normal(size=(400, 10)) + 2.0 * rng.normal(size=10)).astype(np.float32)
    target = features[:12].mean(axis=0) + 0.1 * rng.normal(size=10)
    columns = Columns.of(features)
    found = omp(columns.top, target, 400, 1e-3, np.ones(400, dtype=bool), tolerance=0.0)
    assert len(found.objectives) > len(found.rows)  # some came and went
    x = np.zeros(400)
    x[found.rows] = found.weights * columns.norms[found.rows] / np.linalg.norm(target)
    units = features / columns.norms[:, None]
    assert kkt_residual(units, target / np.linalg.norm(target), 1e-3, x) < 1e-5  # run to its end it is NNLS


def test_tokens_are_kept_to() -> None:
    rng = np.random.default_rng(2)
    features, cost = rng.normal(size=(300, 40)).astype(np.float32), rng.integers(5, 50, size=300)
    found = omp(
        Columns.of(features).top,
        features.mean(axis=0),
        300,
        0.01,
        np.ones(300, dtype=bool),
        tokens=TokenLimit(cost, 400),
    )
    assert 300 < cost[found.rows].sum() <= 400


# GradMatch


def test_gradmatch_is_omp_of_the_mean_gradient_unnormalised() -> None:
    pool = synthetic_pool(60, 8, 4, unusable=0.2)
    usable = np.flatnonzero(pool.usable)
    gradient = pool.features["gradient"][usable].astype(np.float64)
    ridge = 0.5 * (gradient**2).sum(axis=1).mean()
    expected = slow_omp(gradient, gradient.mean(axis=0), 10, ridge)
    chosen = GradMatch().select(pool, Budget(10), np.random.default_rng(0))
    assert sorted(chosen.indices.tolist()) == sorted(usable[list(expected)].tolist())
    weights = np.array([expected[int(np.flatnonzero(usable == row)[0])] for row in chosen.indices])
    assert chosen.weights == pytest.approx(weights / weights.mean(), rel=1e-4)
    first = usable[(gradient @ gradient.mean(axis=0)).argmax()]
    assert chosen.reasons["step"][first] == 1


def test_gradmatch_can_read_the_last_layer() -> None:
    pool = synthetic_pool(40, 8, 5)
    assert GradMatch(signal="head_gradient").needs == ("head_gradient",)
    one, other = (
        GradMatch(signal=name).select(pool, Budget(8), np.random.default_rng(0))
        for name in ("gradient", "head_gradient")
    )
    assert sorted(one.indices) != sorted(other.indices)


def test_gradmatch_wants_a_positive_lambda() -> None:
    with pytest.raises(ValueError, match=r"lambda is 0.0: give a number above 0"):
        GradMatch(lambda_=0.0)

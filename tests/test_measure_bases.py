"""Bases: orthonormal, of the directions that matter, and refused where too few exist."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coretune.measure.bases import path_directions, principal, sampled, seeded
from coretune.measure.settings import MeasureSettings
from coretune.measure.snapshots import Snapshot


@given(seed=st.integers(0, 999), m=st.integers(4, 30), w=st.integers(4, 30), dim=st.integers(1, 4))
@settings(deadline=None, max_examples=40)
def test_principal_directions_hold_no_less_than_any_other_orthonormal_ones(seed, m, w, dim):
    rng = np.random.default_rng(seed)
    sample = rng.standard_normal((m, w)).astype(np.float32) + 2 * rng.standard_normal(w).astype(np.float32)
    found = principal(sample, dim)
    assert found.shape == (w, dim)
    np.testing.assert_allclose(found.T @ found, np.eye(dim), atol=1e-5)
    held = np.square(sample @ found).sum()
    for _ in range(5):
        other, _ = np.linalg.qr(rng.standard_normal((w, dim)))
        assert held >= np.square(sample @ other).sum() * (1 - 1e-5)


def test_the_mean_gradient_stays_in_the_span():
    """Not centred: a pool of nearly one gradient has it for its first direction."""
    rng = np.random.default_rng(0)
    mean = rng.standard_normal(20).astype(np.float32)
    sample = mean + 0.01 * rng.standard_normal((50, 20)).astype(np.float32)
    first = principal(sample, 1)[:, 0]
    assert abs(first @ mean) / np.linalg.norm(mean) > 0.999


def test_rows_that_are_not_finite_are_left_out_and_too_few_directions_are_refused():
    rng = np.random.default_rng(0)
    sample = rng.standard_normal((9, 20)).astype(np.float32)
    spoilt = np.concatenate([sample, np.full((2, 20), np.nan, np.float32)])
    np.testing.assert_array_equal(principal(spoilt, 3), principal(sample, 3))
    copies = np.repeat(sample[:2], 5, axis=0)
    with pytest.raises(
        ValueError, match="to 3 dimensions, but the 10 sampled rows with a finite gradient span 2"
    ):
        principal(copies, 3)
    with pytest.raises(ValueError, match="the 0 sampled rows"):
        principal(np.full((4, 20), np.nan), 1)


def test_seeds_differ_between_snapshots_and_the_last_has_the_runs():
    given_ = MeasureSettings(seed=7, projection_dim=5)
    found = [seeded(given_, behind) for behind in range(4)]
    assert found[0] == given_
    assert len({settings_.seed for settings_ in found}) == 4
    assert found == [seeded(given_, behind) for behind in range(4)]
    assert {settings_.projection_dim for settings_ in found} == {5}


def test_the_sample_is_of_distinct_rows_of_the_pool():
    given_ = MeasureSettings(seed=7, projection_dim=5)
    rows = sampled(1000, given_)
    assert len(np.unique(rows)) == 10
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(sampled(4, given_), np.arange(4))


def states(seed: int, count: int, scale: float = 1.0) -> list[Snapshot]:
    draw = torch.Generator().manual_seed(seed)
    start = {"a": torch.randn(3, 4, generator=draw), "b": torch.randn(5, generator=draw)}
    return [
        Snapshot(str(t), {n: p + scale * torch.randn(p.shape, generator=draw) for n, p in start.items()}, 0.1)
        for t in range(count)
    ]


@given(seed=st.integers(0, 99), count=st.integers(2, 6), dim=st.integers(1, 8))
@settings(deadline=None, max_examples=30)
def test_the_path_is_the_thin_svd_of_the_centred_states(seed, count, dim):
    snapshots = states(seed, count)
    found = path_directions(snapshots, ["a", "frozen", "b"], dim)
    assert len(found) == min(dim, count - 1)
    flat = np.stack([torch.cat([u["a"].flatten(), u["b"]]).numpy() for u in found])
    np.testing.assert_allclose(flat @ flat.T, np.eye(len(flat)), atol=1e-4)
    rows = np.stack([torch.cat([s.weights["a"].flatten(), s.weights["b"]]).numpy() for s in snapshots])
    _, _, expected = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs((flat * expected[: len(flat)]).sum(1)), 1.0, atol=1e-3)


def test_a_path_of_equal_or_too_few_states_is_refused():
    one = states(0, 1)
    with pytest.raises(ValueError, match="needs 2 snapshots at least and there is 1"):
        path_directions(one, ["a"], 3)
    with pytest.raises(ValueError, match="the snapshots do not differ in the parameters that count"):
        path_directions([one[0], one[0]], ["a", "b"], 3)
    with pytest.raises(ValueError, match="do not differ in the parameters that count"):
        path_directions(states(0, 3), ["frozen"], 3)

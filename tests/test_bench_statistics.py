"""Figures that benchmarks print: intervals of few values, and where a plan missed."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@pytest.fixture(autouse=True)
def _bench(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(st.floats(-5, 5), min_size=2, max_size=4))
def test_the_bootstrap_interval_is_that_of_all_resamples(values: list[float]) -> None:
    """Against every resample there is: the interval's ends are quantiles of their means."""
    from bootstrap import bootstrap

    means = np.array([np.mean(some) for some in itertools.product(values, repeat=len(values))])
    low, high = bootstrap(values)
    assert (means < low - 1e-9).mean() <= 0.025 + 0.01
    assert (means <= low + 1e-9).mean() >= 0.025 - 0.01
    assert (means > high + 1e-9).mean() <= 0.025 + 0.01
    assert (means >= high - 1e-9).mean() >= 0.025 - 0.01


def test_a_miss_is_named_with_both_figures() -> None:
    from plan import missed

    said = {"total": {"seconds": 130.0, "flops": 1.0, "rows": 10, "tokens": None}}
    was = {"total": {"seconds": 100.0, "flops": 1.2, "rows": 10, "tokens": 5}}
    assert missed(said, was, 0.25) == ["seconds: 130 was predicted, it was 100 (+30%)"]
    assert missed(said, was, 0.4) == []

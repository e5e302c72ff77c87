"""Means, errors, paired tests and tables of a comparison."""

from __future__ import annotations

import numpy as np
import pytest
from compare_results import result
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from coretune.comparing import compare

# ------------------------------------------------------------------------------------------- statistics

VALUES = st.lists(st.floats(-5, 5), min_size=2, max_size=8)


@settings(deadline=None, max_examples=50)
@given(values=VALUES, shift=st.floats(-2, 2), seed=st.integers(0, 99))
def test_the_paired_test_is_students(values: list[float], shift: float, seed: int) -> None:
    noise = np.random.default_rng(seed).standard_normal(len(values))
    ours = {i: value + shift + noise[i] for i, value in enumerate(values)}
    theirs = dict(enumerate(values)) | {99: 1e9}  # a seed that only one has counts for nothing
    difference, p = compare.paired(ours, theirs)
    expected = stats.ttest_rel([ours[i] for i in ours], values)
    assert difference == pytest.approx(np.mean([ours[i] - theirs[i] for i in ours]))
    assert p == pytest.approx(expected.pvalue, rel=1e-6)


def test_statistics_of_too_little_are_not_a_number() -> None:
    assert compare.mean_se([3.0])[0] == 3.0
    assert np.isnan(compare.mean_se([3.0])[1])
    assert compare.mean_se([1.0, 3.0]) == (2.0, 1.0)
    assert np.isnan(compare.paired({0: 1.0}, {0: 2.0})[1])
    assert compare.paired({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0})[0] == 0.0


def test_every_arm_gets_the_compute_of_the_most_expensive_one() -> None:
    results = [result("random", 0, 100.0), result("grace", 0, 300.0, 50.0), result("loss", 0, 150.0, 50.0)]
    results += [result("near", 0, 290.0)]
    # A step of `loss` costs 10 beside the 50 that are paid once: 250 buy 25.
    assert compare.afforded(results) == {"random": 30, "grace": 10, "loss": 25, "near": 10}


def test_refreshes_are_paid_for_when_they_come() -> None:
    """Once in the warm-up's two steps, then a selection every four: in ten steps one later, at the sixth."""
    some = {"step": 10.0, "refresh": 40.0, "warm": 2, "every": 4}
    cheap = result("cheap", 0, 50.0 + 80.0 + 40.0, 50.0, **some)
    # 3 more steps at 10, the next refresh at the 11th step, 40: 50 + 110 + 2 · 40 = 240 for 13.
    assert compare.afforded([cheap, result("dear", 0, 245.0)])["cheap"] == 13


PRICES = st.builds(
    compare.Prices,
    once=st.floats(0, 100),
    step=st.floats(0.5, 20),
    refresh=st.floats(0, 50),
    warm=st.integers(0, 5),
    every=st.integers(0, 6),
)


@settings(deadline=None, max_examples=100)
@given(prices=PRICES, steps=st.integers(1, 20), more=st.floats(0, 500))
def test_no_step_more_would_be_afforded(prices: compare.Prices, steps: int, more: float) -> None:
    flops = prices.of(steps) + more
    found = prices.steps_for(flops, steps)
    assert found >= steps
    assert prices.of(found) <= flops
    assert prices.of(found + 1) > flops


@settings(deadline=None, max_examples=60)
@given(prices=PRICES, steps=st.integers(1, 40))
def test_later_selections_are_those_of_the_clock(prices: compare.Prices, steps: int) -> None:
    made = sum(
        step == prices.warm
        or (prices.every > 0 and step > prices.warm and (step - prices.warm) % prices.every == 0)
        for step in range(steps)
    )
    assert prices.refreshes(steps) == max(0, made - 1)


def test_the_table_has_means_errors_and_the_paired_test() -> None:
    results = [result("random", seed, 1e3, loss=1.0 + seed / 10) for seed in range(3)]
    results += [result("grace", seed, 2e3, loss=0.5 + seed / 5) for seed in range(3)]
    header, lines = compare.table(results, "random")
    assert header[:5] == ["arm", "seeds", "steps", "loss", "exact match"]
    assert lines[0][3] == "1.100 ± 0.058"
    grace = dict(zip(header, lines[1], strict=True))
    assert grace["loss − random"] == "-0.400"
    assert float(grace["p"]) == pytest.approx(stats.ttest_1samp([-0.5, -0.4, -0.3], 0).pvalue, abs=1e-3)
    assert grace["FLOPs"] == "2.00e+03"


def test_curves_are_of_the_longest_runs() -> None:
    found = compare.curves([result("full", 0, 100.0), result("full", 0, 300.0, steps=30)])
    assert found[0]["flops"] == [150.0, 300.0]


def test_curves_are_means_over_seeds() -> None:
    found = compare.curves([result("grace", seed, 100.0 + seed, loss=1.0 + seed) for seed in range(2)])
    assert found[0]["flops"] == [50.25, 100.5]
    assert found[0]["loss"] == [2.5, 1.5]
    assert found[0]["error"] == [0.5, 0.5]

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coretune.select.line_search import minimise

FEW = settings(deadline=None, max_examples=80)


@given(lowest=st.floats(0.0, 1.0), slope=st.floats(0.1, 10.0))
@FEW
def test_golden_section_ends_within_the_tolerance_of_a_unimodal_minimum(lowest: float, slope: float) -> None:
    curve = minimise(lambda x: slope * abs(x - lowest), "golden", 0, 0.005, 15)
    assert len(curve) <= 13  # 0.618 ** 12 < 0.005
    assert min(abs(x - lowest) for x, _ in curve) <= 0.005


@given(lowest=st.floats(0.0, 1.0))
@FEW
def test_ternary_search_ends_within_the_tolerance_when_it_may(lowest: float) -> None:
    curve = minimise(lambda x: (x - lowest) ** 2, "ternary", 0, 0.005, 100)
    assert min(abs(x - lowest) for x, _ in curve) <= 0.005


@given(
    search=st.sampled_from(["golden", "ternary"]),
    grid=st.sampled_from([0, 3, 5, 8]),
    evaluations=st.integers(8, 20),
    seed=st.integers(0, 2**32 - 1),
)
@FEW
def test_no_point_is_evaluated_twice_and_never_more_than_allowed(
    search: str, grid: int, evaluations: int, seed: int
) -> None:
    rng, asked = np.random.default_rng(seed), []

    def noise(x: float) -> float:
        asked.append(x)
        return float(rng.random())

    curve = minimise(noise, search, grid, 0.005, evaluations)
    assert [x for x, _ in curve] == asked
    assert len(set(asked)) == len(asked) <= evaluations
    assert all(0.0 <= x <= 1.0 for x in asked)


@pytest.mark.parametrize("search", ["golden", "ternary"])
def test_a_grid_finds_the_lower_of_two_valleys_where_the_search_alone_does_not(search: str) -> None:
    def two_valleys(x: float) -> float:
        return min(abs(x - 0.4), abs(x - 0.875) - 0.1 if abs(x - 0.875) < 0.12 else 1.0)

    alone = minimise(two_valleys, search, 0, 0.005, 15)
    after_a_grid = minimise(two_valleys, search, 9, 0.005, 15)
    assert min(value for _, value in alone) >= 0.0
    assert min(value for _, value in after_a_grid) == pytest.approx(-0.1, abs=0.01)


def test_the_grid_holds_the_endpoints_and_the_search_goes_on_around_its_best() -> None:
    curve = minimise(lambda x: abs(x - 0.3), "golden", 5, 0.005, 15)
    assert [x for x, _ in curve[:5]] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert all(0.0 < x < 0.5 for x, _ in curve[5:])

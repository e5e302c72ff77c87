from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coretune.rounds.budget import parse_budget
from coretune.testing import synthetic_pool
from coretune.types import Budget, Pool


def pool_of(cost: list[int], unusable: int = 0) -> Pool:
    """Rows of these costs, the last `unusable` of them unusable."""
    n = len(cost)
    usable = np.arange(n) < n - unusable
    return dataclasses.replace(synthetic_pool(n, 2, 0), cost=np.array(cost), usable=usable)


@pytest.mark.parametrize(
    ("written", "amount", "unit"),
    [
        (600, 600, "rows"),
        ("600", 600, "rows"),
        (" 600 rows ", 600, "rows"),
        ("1 row", 1, "rows"),
        (1, 1, "rows"),
        (600.0, 600, "rows"),
        (1e6, 1_000_000, "rows"),
        ("50k rows", 50_000, "rows"),
        ("50k tokens", 50_000, "tokens"),
        ("2M tokens", 2_000_000, "tokens"),
        ("2m Tokens", 2_000_000, "tokens"),
        ("1.5M tokens", 1_500_000, "tokens"),
        ("700 tokens", 700, "tokens"),
    ],
)
def test_counts(written: str | float, amount: int, unit: str) -> None:
    request = parse_budget(written)
    assert (request.amount, request.unit) == (amount, unit)


@pytest.mark.parametrize("written", ["10%", "10 %", 0.1, "0.1", ".1", "10.0%"])
def test_shares(written: str | float) -> None:
    assert parse_budget(written).resolve(pool_of([5] * 30)) == Budget(3, "rows")  # 0.1 · 30 > 3 in floats


@given(st.integers(1, 1000), st.integers(1, 400))
@settings(deadline=None, max_examples=100)
def test_a_share_is_rounded_up(per_mille: int, n: int) -> None:
    budget = parse_budget(f"{per_mille / 10}%").resolve(pool_of([5] * n))
    assert budget.amount * 1000 >= per_mille * n > (budget.amount - 1) * 1000


def test_a_tiny_float_is_a_share() -> None:
    assert parse_budget(1e-5).resolve(pool_of([5] * 30)).amount == 1


def test_the_whole_pool() -> None:
    assert parse_budget("100%").resolve(pool_of([5] * 7)).amount == 7


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (1.0, ["1 row", "100%"]),
        ("1.0", ["1 row", "100%"]),
        (0, ["nothing"]),
        ("0%", ["nothing"]),
        ("0 tokens", ["nothing"]),
        ("50k", ["50k rows", "50k tokens"]),
        ("2M%", ["100%"]),
        ("101%", ["100%"]),
        (1.5, ["whole number"]),
        ("0.5 rows", ["whole number"]),
        ("1.0001k tokens", ["whole number"]),
        (-3, ["not understood", "600", "10%", "2M tokens"]),
        ("many", ["not understood"]),
        ("", ["not understood"]),
        ("10 percent", ["not understood"]),
        (True, ["not understood"]),
        (float("nan"), ["not understood"]),
        (float("inf"), ["not understood"]),
    ],
)
def test_what_cannot_be_read_says_how_to_write_it(written: str | float, words: list[str]) -> None:
    with pytest.raises(ValueError, match="budget") as error:
        parse_budget(written)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("written", "cost", "unusable", "numbers"),
    [
        (11, [5] * 10, 0, ["11", "10"]),
        (10, [5] * 10, 3, ["10", "7"]),
        ("100%", [5] * 10, 3, ["10", "7"]),
        ("60 tokens", [5] * 10, 0, ["60", "50"]),
        ("50 tokens", [5] * 10, 1, ["50", "45"]),
        ("4 tokens", [9, 5, 7], 0, ["4", "5"]),
        ("4 tokens", [9, 5, 2], 1, ["4", "5"]),
        ("4 tokens", [9, 5], 2, ["4", "0 rows"]),
    ],
)
def test_what_the_pool_cannot_give_names_both_numbers(
    written: str | int, cost: list[int], unusable: int, numbers: list[str]
) -> None:
    with pytest.raises(ValueError, match="budget of") as error:
        parse_budget(written).resolve(pool_of(cost, unusable))
    for number in numbers:
        assert number in str(error.value)
    assert "\n" not in str(error.value)


def test_the_largest_and_smallest_that_fit() -> None:
    pool = pool_of([9, 5, 7, 1], unusable=1)
    assert parse_budget(3).resolve(pool) == Budget(3, "rows")
    assert parse_budget("21 tokens").resolve(pool) == Budget(21, "tokens")
    assert parse_budget("5 tokens").resolve(pool) == Budget(5, "tokens")

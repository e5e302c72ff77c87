"""Exact duplicates are measured once, and all of them get the signals."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coretune.rounds.exact_duplicates import ExactDuplicates
from coretune.types import Array, Rows

Text = tuple[list[int], list[int]]  # tokens, and those that count


def twins_of(texts: list[Text]) -> ExactDuplicates:
    def tokens(rows: Rows) -> list[Array]:
        return [np.array(texts[row][0]) for row in rows]

    def labels(rows: Rows) -> list[Array]:
        return [np.where(np.isin(np.arange(len(texts[row][0])), texts[row][1]), 7, -100) for row in rows]

    return ExactDuplicates.of(len(texts), tokens, labels)


@st.composite
def text(draw: st.DrawFn) -> Text:
    tokens = draw(st.lists(st.integers(0, 2), max_size=3))
    return tokens, [place for place in range(len(tokens)) if draw(st.booleans())]


@given(st.lists(text(), min_size=1))
def test_the_lowest_equal_row(texts: list[Text]) -> None:
    assert twins_of(texts).first.tolist() == [texts.index(one) for one in texts]


@pytest.mark.parametrize(
    "other", [([3, 4, 5], [1, 2]), ([3, 4, 5], [0, 2]), ([3, 4], [1]), ([3, 4, 0], [2]), ([0, 3, 4], [2])]
)
def test_another_prompt_or_a_token_more_is_another_row(other: Text) -> None:
    twins = twins_of([([3, 4, 5], [2]), other, ([3, 4, 5], [2])])
    assert twins.first.tolist() == [0, 1, 0]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.randoms(use_true_random=False))
def test_each_group_is_measured_once_and_all_get_its_values(kinds: list[int], draw: object) -> None:
    first = np.array([kinds.index(kind) for kind in kinds])
    twins, asked = ExactDuplicates(first), np.random.default_rng(len(kinds)).permutation(len(kinds))
    seen: list[int] = []

    def measure(rows: Rows) -> Mapping[str, Array]:
        seen.extend(rows.tolist())
        return {"kind": np.array(kinds)[rows], "pair": np.array(kinds)[rows][:, None] * [1, 2]}

    found = twins.sharing(measure)(asked)
    assert found["kind"].tolist() == [kinds[row] for row in asked]
    assert found["pair"].tolist() == [[kinds[row], 2 * kinds[row]] for row in asked]
    assert len(seen) == len(set(kinds))
    assert seen == twins.distinct(asked).tolist()


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.data())
def test_signals_of_some_rows_are_given_to_their_exact_duplicates(
    kinds: list[int], data: st.DataObject
) -> None:
    first = np.array([kinds.index(kind) for kind in kinds])
    rows = np.array(data.draw(st.permutations(range(len(kinds)))), np.int64)
    rows = rows[: data.draw(st.integers(0, len(kinds)))]
    asked = [kinds[row] for row in rows]
    everyone, found = ExactDuplicates(first).for_all(rows, {"place": np.arange(len(rows))})
    assert everyone.tolist() == [row for row, kind in enumerate(kinds) if kind in asked]
    assert found["place"].tolist() == [asked.index(kinds[row]) for row in everyone]


def test_blocks_part_equal_rows() -> None:
    twins = ExactDuplicates(np.array([0, 0, 2, 0, 0, 2]))
    assert twins.within(3).first.tolist() == [0, 0, 2, 3, 3, 5]
    assert twins.together(np.array([3])).tolist() == [0, 1, 3, 4]

"""Which rows may be chosen: duplicates, noise, cooldown, and what they leave of a budget."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from coretune.filters import FILTERS, chain, says
from coretune.filters.cooldown import Cooldown
from coretune.filters.duplicates import Duplicates
from coretune.filters.neighbours import Neighbours
from coretune.filters.room import shrunk
from coretune.rounds.folded_duplicates import folded, folded_to
from coretune.rounds.transitions import empty_pool
from coretune.select.copies import copy_groups
from coretune.select.random import Random
from coretune.testing import synthetic_pool
from coretune.training.first_pool import with_folded
from coretune.types import EQUAL_TO, FOLDED_TO, TRAINED_AT, TRAINED_TIMES, Array, Budget, Pool, Quota, Verdict

POOL = synthetic_pool(60, 6, 2, unusable=0.1)

USABLE = np.flatnonzero(POOL.usable)


def with_features(pool: Pool = POOL, **features: Array) -> Pool:
    return dataclasses.replace(pool, features={**pool.features, **features})


def trained(at: Array, times: Array | None = None, **more: Array) -> Pool:
    given = np.zeros(POOL.n, np.int32) if times is None else times
    return with_features(**{TRAINED_AT: at, TRAINED_TIMES: given, **more})


def kept(filter: Any, pool: Pool, budget: Budget) -> Array:
    return np.flatnonzero(pool.usable & filter.judge(pool, budget).keep)


# ------------------------------------------------------------------------------------------ duplicates


def test_of_equal_rows_the_lowest_usable_one_may_be_chosen() -> None:
    pool = synthetic_pool(60, 6, 0, copies=0.5, unusable=0.2)
    verdict = Duplicates().judge(pool, Budget(5))
    groups = pool.feature(EQUAL_TO)
    left = np.flatnonzero(verdict.keep)
    usable = np.flatnonzero(pool.usable)
    assert sorted(groups[left]) == sorted(set(groups[usable].tolist()))
    assert all(left[groups[left] == group] == usable[groups[usable] == group].min() for group in groups[left])
    assert (verdict.score[usable] == ~verdict.keep[usable]).all()


def test_rows_that_are_the_same_but_for_their_format_go_only_where_that_is_asked_for() -> None:
    apart = with_features(POOL, **{EQUAL_TO: np.arange(POOL.n, dtype=np.int32)})
    assert Duplicates().judge(apart, Budget(5)).keep[USABLE].all()
    same = np.arange(POOL.n, dtype=np.int32)
    same[[USABLE[4], USABLE[7]]] = same[USABLE[1]]
    verdict = Duplicates(alike="folded").judge(with_features(apart, **{FOLDED_TO: same}), Budget(5))
    assert np.flatnonzero(POOL.usable & ~verdict.keep).tolist() == [USABLE[4], USABLE[7]]
    assert Duplicates(alike="folded").needs == ()


def test_a_trainer_says_which_rows_are_the_same_but_for_their_format() -> None:
    class Letters:
        """A tokenizer of single letters."""

        def __len__(self) -> int:
            return 128

        def convert_ids_to_tokens(self, ids: range) -> list[str]:
            return [chr(i) for i in ids]

    class Texts:
        def tokens(self, rows: Array) -> list[Array]:
            return [np.frombuffer(["One two", "one, TWO.", "one 2"][i].encode(), np.uint8) for i in rows]

    pool = with_folded(empty_pool(np.full(3, 9)), Texts(), Letters())  # type: ignore[arg-type]
    keep = Duplicates(alike="folded").judge(pool, Budget(1)).keep
    assert keep.tolist() == [True, False, True]
    assert Duplicates().judge(pool, Budget(1)).keep.all()
    with pytest.raises(ValueError, match=r"alike is folded, which reads texts: give .* a processing_class"):
        with_folded(pool, Texts(), None)  # type: ignore[arg-type]


def test_case_space_and_punctuation_are_folded_and_signs_of_arithmetic_are_not() -> None:
    texts = ["Add 3 + 4.", "add  3+4", "add 3 - 4", "add 3+4!", "Add 34", "加 3+4", "減 3+4"]
    letters = sorted(set("".join(texts)))
    pieces = folded(letters)
    rows = [np.array([letters.index(letter) for letter in text]) for text in texts]
    same = folded_to(len(rows), lambda some: [rows[i] for i in some], pieces)
    assert same.tolist() == [0, 0, 2, 0, 4, 5, 6]


def test_rows_without_a_letter_are_the_same_only_where_their_signs_are() -> None:
    """So are tokens that the tokenizer has no piece for, or that are beyond its vocabulary."""
    pieces = folded(["(", ")", "a", None, "!"])
    rows = [[0, 1], [1, 0], [0, 1], [0, 2, 1], [2], [2, 4], [2, 3], [2, 9], [2, 9, 4], [2, 8]]
    same = folded_to(len(rows), lambda some: [np.array(rows[i]) for i in some], pieces)
    assert same.tolist() == [0, 1, 0, 3, 3, 3, 6, 7, 7, 9]


def test_rows_that_point_the_same_way_as_all_are_no_near_duplicates() -> None:
    """Hidden states with a common part a hundred times as long as what differs."""
    pool = synthetic_pool(60, 6, 0, copies=0.5)
    answers = pool.features["response_embedding"]
    common = np.eye(6, dtype=np.float32)[0] * 100 + answers
    alike = common / np.linalg.norm(common, axis=1, keepdims=True)
    assert (alike @ alike.T).min() > 0.999
    bent = with_features(pool, response_embedding=alike)
    copies = [copy_groups(each, 0.999, "response_embedding") for each in (pool, bent)]
    assert copies[0].tolist() == copies[1].tolist()
    assert 30 <= len(np.unique(copies[0])) < 60
    same = dataclasses.replace(pool, features={"response_embedding": np.tile(alike[:1], (60, 1))})
    assert len(np.unique(copy_groups(same, 0.999, "response_embedding"))) < 30  # each with its neighbours


# -------------------------------------------------------------------------------------------- cooldown


def test_rows_just_trained_on_cool_down_and_those_trained_longest_ago_come_back_first() -> None:
    at = np.full(POOL.n, -1, np.int32)
    at[USABLE[:20]], at[USABLE[20:40]] = 5, 4
    pool, fresh = trained(at), set(USABLE[40:].tolist())
    assert set(kept(Cooldown(coresets=2), pool, Budget(9))) == fresh
    assert set(kept(Cooldown(coresets=1), pool, Budget(9))) == fresh | set(USABLE[20:40].tolist())
    more = set(kept(Cooldown(coresets=2), pool, Budget(len(fresh) + 5)))
    assert more == fresh | set(USABLE[20:40].tolist())  # all that are equal in it, for the method to choose
    assert len(kept(Cooldown(coresets=5), pool, Budget(len(USABLE)))) == len(USABLE)
    tokens = Budget(int(POOL.cost[USABLE].sum()), "tokens")
    assert len(kept(Cooldown(coresets=5), pool, tokens)) == len(USABLE)


def test_nothing_cools_down_before_a_coreset_was_trained_on() -> None:
    assert len(kept(Cooldown(), trained(np.full(POOL.n, -1, np.int32)), Budget(9))) == len(USABLE)


def test_rows_are_trained_on_as_often_as_is_their_share() -> None:
    """All once, twenty of them nine times: more than their share, unless their region is worth more."""
    at, times = np.zeros(POOL.n, np.int32), np.ones(POOL.n, np.int32)
    at[USABLE[-1]] = 9  # long ago for all others
    often = USABLE[:20]
    times[often] = 9
    alike = kept(Cooldown(coresets=1), trained(at, times), Budget(20))
    assert not np.isin(often, alike).any()
    assert np.isin(often, kept(Cooldown(coresets=1), trained(at, times), Budget(len(USABLE) - 1))).all()
    loss = np.full(POOL.n, 0.1, np.float32)
    assert POOL.graph is not None
    near = POOL.graph.neighbors[often[0]]
    loss[near[near >= 0]] = 10  # the region of one of them
    by_loss = kept(Cooldown(coresets=1, by="loss"), trained(at, times, loss=loss), Budget(20))
    assert often[0] in by_loss
    assert (~np.isin(often, by_loss)).sum() > 10


# --------------------------------------------------------------------------------------------- in a chain


@dataclasses.dataclass(frozen=True)
class Below:
    """Takes out the rows below a number."""

    row: int

    name = "below"
    says = "too low"
    needs: tuple[str, ...] = ()

    def judge(self, pool: Pool, budget: Budget) -> Any:
        keep = np.arange(pool.n) >= self.row
        return Verdict(keep, np.zeros(pool.n, np.float32), {"seen": int(pool.usable.sum())})


def test_each_filter_sees_what_those_before_it_left_and_a_row_counts_for_the_first() -> None:
    pool = synthetic_pool(60, 6, 0, copies=0.5)
    left = chain.apply([Duplicates(), Below(20)], pool, Budget(5))
    chosen = left.noted(Random().select(left.pool, left.budget, np.random.default_rng(0)))
    duplicates, below = chosen.filtered_by("duplicates"), chosen.filtered_by("below")
    assert duplicates is not None
    assert below is not None
    assert not (duplicates & below).any()
    assert chosen.figures["seen"] == 60 - duplicates.sum()
    assert chosen.figures["filtered_duplicates"] == duplicates.sum()
    assert chosen.figures["filtered_below"] == below.sum()
    assert (chosen.indices >= 20).all()
    assert not duplicates[chosen.indices].any()
    assert {"duplicates", "below"} <= set(chosen.reasons)
    assert pool.usable.all()  # the pool itself is as it was


def test_no_filter_is_the_bare_method() -> None:
    left = chain.apply([], POOL, Budget(5))
    bare = Random().select(POOL, Budget(5), np.random.default_rng(0))
    assert left.noted(bare) is bare
    assert left.pool is POOL


@pytest.mark.parametrize("unit", ["rows", "tokens"])
def test_a_budget_that_filters_leave_too_few_rows_for_shrinks_and_the_log_says_so(
    unit: str, caplog: pytest.LogCaptureFixture
) -> None:
    size = POOL.cost if unit == "tokens" else np.ones(POOL.n, int)
    there = int(size[USABLE[USABLE >= 40]].sum())
    with caplog.at_level(logging.WARNING, "coretune"):
        left = chain.apply([Below(40)], POOL, Budget(there + 7, unit))
    assert left.budget == Budget(there, unit)
    assert f"filters leave {there} of the {there + 7} {unit}" in caplog.text
    assert f"below {(USABLE < 40).sum()}" in caplog.text
    assert chain.apply([Below(40)], POOL, Budget(there, unit)).budget == Budget(there, unit)


def test_filters_that_leave_no_row_that_fits_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"leave no row that fits.*below 54.*raise the budget"):
        chain.apply([Below(60)], POOL, Budget(3))
    with pytest.raises(ValueError, match="leave no row that fits"):
        chain.apply([Below(40)], POOL, Budget(int(POOL.cost[USABLE[USABLE >= 40]].min()) - 1, "tokens"))


def test_a_quota_shrinks_with_the_rows_that_are_left_of_a_group() -> None:
    group = np.arange(60) % 2
    pool = dataclasses.replace(POOL, usable=(np.arange(60) >= 50) & (group == 0))
    budget = Budget(20, "rows", Quota(group, np.array([8, 6]), np.array([12, 12]), ("a", "b")))
    less = shrunk(budget, pool)
    assert less.amount == 5
    assert less.quota is not None
    assert (less.quota.least.tolist(), less.quota.most.tolist()) == ([5, 0], [12, 12])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Duplicates(alike="near"), "duplicates.alike is 'near': give one of exact, folded"),
        (lambda: Cooldown(coresets=0), "cooldown.coresets is 0: give at least 1"),
        (lambda: Cooldown(by="luck"), "cooldown.by is 'luck': give one of count, loss"),  # type: ignore[arg-type]
    ],
)
def test_a_setting_out_of_range_is_an_error(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_every_filter_says_why_in_words() -> None:
    assert all(says(name) == kind.says for name, kind in FILTERS.items())
    assert says("mine") == ""


# ------------------------------------------------------------------------------------------- neighbours


def pairs_of(mismatched: Sequence[float], own: Sequence[float]) -> dict[str, Array]:
    """Losses of responses after other rows' prompts, and after their own."""
    return {"mismatched_loss": np.float32(mismatched), "matched_loss": np.float32(own)}


def test_rows_whose_loss_is_far_above_their_neighbours_are_flagged() -> None:
    """Neighbours have 1, a mismatched response 6: a third of the way is 2.65. And 1.6 is not 1.65 times 1."""
    loss = np.ones(POOL.n, np.float32)
    hard, harder, wrong = USABLE[3], USABLE[8], USABLE[15]
    loss[[hard, harder, wrong]] = 1.6, 2.6, 2.7
    pool = dataclasses.replace(with_features(loss=loss), references=pairs_of([2, 6, 40], [1]))
    verdict = Neighbours().judge(pool, Budget(5))
    assert np.flatnonzero(pool.usable & ~verdict.keep).tolist() == [wrong]
    assert verdict.score[[hard, wrong]] == pytest.approx([0.12, 0.34])
    assert verdict.figures == {"matched_loss": 1.0, "mismatched_loss": 6.0, "noise_on": 1}


def test_responses_asked_about_seem_wrong_by_their_loss_and_by_the_other_prompt() -> None:
    """They have 1, a mismatched response 6: as above 2.6 does not seem wrong and 2.7 does."""
    own, other = [1, 1, 1, 1, 1, 2.6, 2.7, 9, 9], [6, 6, 6, 6, 1, 2.6, 3, 10, 10.5]

    def asked(own: Sequence[float], other: Sequence[float]) -> Pool:
        return dataclasses.replace(POOL, references=pairs_of(other, own))

    assert Neighbours().seem_wrong(asked(own, other)) == 2
    assert Neighbours().seem_wrong(asked([1, 1, 9], [6, 6, 90])) == 0
    assert Neighbours().seem_wrong(asked([], [])) == 0


@pytest.mark.parametrize(
    ("mismatched", "own", "on"),
    [([1.19] * 2, [1, 1, 9], False), ([1.21], [1, 1, 9], True), ([5], [], False), ([], [1], False)],
)
def test_neighbours_count_where_another_prompt_raises_the_loss(
    mismatched: list[float], own: list[float], on: bool
) -> None:
    loss = np.ones(POOL.n, np.float32)
    loss[USABLE[-1]] = 3.0
    pool = dataclasses.replace(with_features(loss=loss), references=pairs_of(mismatched, own))
    told = Neighbours(min_loss_ratio=1.2)
    assert told.on(pool) == on
    assert (~told.judge(pool, Budget(5)).keep & pool.usable).any() == on

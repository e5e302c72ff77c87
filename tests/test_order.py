"""A round's order: whole passes, packs that hold, rows of like length together, and a batch that changed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coretune.rounds.order import by_length, fill, round_order
from coretune.rounds.schedule import Schedule
from coretune.rounds.state import State
from coretune.rounds.transitions import after_steps, empty_pool
from coretune.types import TRAINED_AT, Coreset

N = 40
COST = np.random.default_rng(0).integers(1, 20, N)


def a_state(rows: int, cursor: int = 0, **counts: int) -> State:
    indices = np.random.default_rng(rows).permutation(N)[:rows]
    coreset = Coreset(indices, np.ones(rows), np.ones(rows))
    return State(counts.pop("round", 0), 0, 1, empty_pool(COST), coreset, cursor, **counts)


def stream(rows: int, length: int) -> list[int]:
    """What the passes over a coreset of `rows` rows hand out."""
    return round_order(a_state(rows), Schedule(length, 1, 0, 1), 0).rows.tolist()


@given(rows=st.integers(1, N), packs=st.integers(1, 6), capacity=st.integers(19, 60), data=st.data())
@settings(max_examples=60)
def test_packs_hold_a_beginning_of_the_passes_and_never_too_much(
    rows: int, packs: int, capacity: int, data: st.DataObject
) -> None:
    state = a_state(rows, cursor=data.draw(st.integers(0, 3 * rows)))
    schedule = Schedule(packs, 1, 0, 1, pack=capacity)
    order = round_order(state, schedule, 0)
    assert len(order.ends) == packs
    inside = [order.of(item, item + 1) for item in range(packs)]
    assert all(0 < COST[pack].sum() <= capacity for pack in inside)
    taken = len(order.rows)
    expected = stream(rows, state.cursor + taken + 1)
    assert sorted(order.rows) == sorted(expected[state.cursor : -1])
    assert all(COST[pack].sum() + COST[expected[-1]] > capacity for pack in inside)  # the next fits nowhere


def test_packing_fills_what_it_has() -> None:
    order = round_order(a_state(N), Schedule(10, 4, 0, 1, pack=200), 0)
    assert COST[order.rows].sum() / (40 * 200) > 0.97


def test_an_empty_pack_cannot_be_where_every_row_fits() -> None:
    rows, sizes = fill(iter([0, 1, 2, 3]), np.array([5, 5, 5, 5]), 3, 9)
    assert rows.tolist() == [0, 1, 2]
    assert sizes.tolist() == [1, 1, 1]


@given(rows=st.integers(1, N), batch=st.integers(1, 9), seed=st.integers(0, 9))
@settings(max_examples=60)
def test_rows_of_like_length_stand_together_and_none_is_lost(rows: int, batch: int, seed: int) -> None:
    shuffled = np.random.default_rng(seed).permutation(N)[:rows]
    ordered = by_length(shuffled, COST, batch)
    assert sorted(ordered) == sorted(shuffled)
    assert COST[ordered[0]] == COST[shuffled].max()
    size = batch * max(1, rows // (batch * 4))
    for at in range(size, rows, size):  # all but the first piece and the one that gave its longest row
        piece = COST[ordered[at : at + size]]
        assert (np.diff(piece[1:]) <= 0).all()


def test_grouping_by_length_spares_padding_and_keeps_the_passes() -> None:
    schedule = Schedule(20, 4, 0, 1)
    plain = round_order(a_state(N), schedule, 0).rows.reshape(-1, 4)
    grouped = round_order(a_state(N), dataclasses.replace(schedule, group=4), 0).rows.reshape(-1, 4)
    assert sorted(grouped.ravel()[:N]) == sorted(plain.ravel()[:N]) == list(range(N))
    assert np.ptp(COST[grouped], axis=1).sum() < 0.6 * np.ptp(COST[plain], axis=1).sum()


@given(
    rows=st.integers(1, N),
    steps=st.integers(1, 6),
    over=st.integers(0, 6),
    batches=st.tuples(st.integers(1, 8), st.integers(1, 8), st.integers(1, 8)),
    data=st.data(),
)
@settings(max_examples=80)
def test_another_batch_inside_a_round_goes_on_where_the_passes_stopped(
    rows: int, steps: int, over: int, batches: tuple[int, int, int], data: st.DataObject
) -> None:
    """Twice in the same round: no row of the passes is skipped and none comes again."""
    over = min(over, steps)
    again = data.draw(st.integers(over, steps))
    state, met = a_state(rows, cursor=5), []
    schedules = [Schedule(steps, batch, 0, 1) for batch in batches]
    before = 0
    for schedule, until in zip(schedules, (over, again, steps), strict=True):
        order = round_order(state, schedule, 0)
        assert len(order.rows) == schedule.items
        met += order.of(before * schedule.batch, until * schedule.batch).tolist()
        last, before = state, until
        state = after_steps(state, schedule, until, 0)
    assert met == stream(rows, 5 + len(met))[5:]
    assert state.cursor == 5 + len(met)
    assert set(np.flatnonzero(state.pool.feature(TRAINED_AT) == 1)) == set(met)
    assert len(round_order(last, schedules[2], 0).trained) == (steps - again) * batches[2]


@pytest.mark.parametrize("pack", [0, 60])
def test_the_same_batch_needs_no_laying_anew(pack: int) -> None:
    schedule = Schedule(5, 2, 0, 1, pack=pack)
    order = round_order(a_state(20, cursor=7), schedule, 3)
    assert order.skipped == 0
    assert np.array_equal(order.trained, order.rows)
    assert order.of(4, 4).size == 0
    assert np.array_equal(order.of(0, schedule.items), order.rows)

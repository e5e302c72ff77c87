"""Rounds: their schedule, their rows, when they measure and choose."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from fake_model import FakeModel
from fake_run import COST, N, Run, assert_same, by_checkpoints, config, schedule_of
from hypothesis import given, settings
from hypothesis import strategies as st

from coretune.filters.noise import Noise
from coretune.ledger import Ledger
from coretune.neighbors import cells, graph
from coretune.policies.update import update
from coretune.refresh import advance, start
from coretune.rounds.budget import parse_budget
from coretune.rounds.order import round_order
from coretune.rounds.schedule import Schedule, coreset_rows, make_schedule
from coretune.rounds.state import State
from coretune.rounds.transitions import empty_pool, row_weights
from coretune.select.grace import Grace
from coretune.select.random import Random
from coretune.types import TRAINED_AT, TRAINED_TIMES, Coreset

# ---------------------------------------------------------------------------------------------- the schedule


@given(
    every=st.integers(1, 60),
    warmup=st.floats(0, 0.9),
    n=st.integers(1, 5000),
    batch=st.integers(1, 64),
)
@settings(deadline=None, max_examples=200)
def test_a_round_is_the_interval_or_its_shortest_divisor_that_holds_the_warmup(
    every: int, warmup: float, n: int, batch: int
) -> None:
    schedule = make_schedule(config(warmup=warmup, refresh_every=every), n, 10, batch)
    needed = math.ceil(warmup * n / batch)
    divisors = [d for d in range(1, every + 1) if every % d == 0]
    assert schedule.steps == (min((d for d in divisors if d >= needed), default=every) if needed else every)
    assert schedule.steps * schedule.every == every
    assert schedule.warmup_rounds == math.ceil(needed / schedule.steps)
    assert schedule.rows == schedule.steps * batch


def test_without_refreshes_a_round_is_the_warmup_or_one_pass_over_the_coreset() -> None:
    assert make_schedule(config(refresh_every="never", warmup=0.05), 400, 77, 4) == Schedule(5, 4, 1, 0)
    assert make_schedule(config(refresh_every="never"), 400, 77, 4) == Schedule(20, 4, 0, 0)


def test_a_pass_is_as_many_steps_as_the_coreset_has_batches() -> None:
    every_pass = config(refresh_every="pass", warmup=0.05)
    assert make_schedule(every_pass, 400, 77, 4) == make_schedule(
        config(refresh_every=20, warmup=0.05), 400, 77, 4
    )
    assert make_schedule(every_pass, 400, 77, 4, pack=64, density=5) == Schedule(1, 4, 1, 4, 64, 5)


def test_a_method_that_measures_nothing_has_no_warmup() -> None:
    assert make_schedule(config(Random(), refresh_every=6, warmup=0.5), 400, 40, 4) == Schedule(6, 4, 0, 1)


def test_the_rows_of_a_token_budget_are_estimated_from_the_mean_row() -> None:
    pool = empty_pool(np.array([10, 20, 30]))
    assert coreset_rows(config(budget=parse_budget("40 tokens")), pool) == 2
    assert coreset_rows(config(budget=parse_budget("10 tokens")), pool) == 1
    assert coreset_rows(config(budget=parse_budget("67%")), pool) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"refresh_every": "often"},
            "refresh_every is 'often': give a number of steps, or pass",
        ),
        ({"refresh_every": 0}, "refresh_every is 0: give at least 1 step"),
        ({"warmup": 1.0}, r"warmup is 1.0: give a share"),
        ({"warmup": -0.1}, r"warmup is -0.1: give a share"),
        ({"audit_every": 0}, "audit_every is 0: give at least 1 selection"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**settings)


# ---------------------------------------------------------------------------------------- rows of a round


def a_state(rows: int, round: int = 0, selected_in: int = 0) -> State:
    indices = np.random.default_rng(rows).permutation(N)[:rows]
    return State(round, selected_in, 1, empty_pool(COST), Coreset(indices, np.ones(rows), np.ones(rows)))


@given(rows=st.integers(1, N), steps=st.integers(1, 7), selected_in=st.integers(-1, 3))
@settings(deadline=None, max_examples=60)
def test_rounds_run_through_whole_shuffled_passes(rows: int, steps: int, selected_in: int) -> None:
    """Whatever the length of a round, each row comes once in every pass, and rounds waste nothing."""
    schedule, begin = Schedule(steps, 3, 0, 1), max(selected_in, 0)
    rounds = -(-4 * rows // schedule.rows)
    stream: list[int] = []
    for number in range(begin, begin + rounds):
        state = dataclasses.replace(a_state(rows, number, selected_in), cursor=len(stream))
        piece = round_order(state, schedule, seed=5).rows
        assert piece.shape == (schedule.rows,)
        stream += piece.tolist()
    chosen = sorted(a_state(rows).coreset.indices)
    for at in range(0, 4 * rows, rows):
        assert sorted(stream[at : at + rows]) == chosen


def test_the_order_hangs_on_the_seed_and_the_selection_alone() -> None:
    schedule = Schedule(5, 4, 0, 1)
    order = round_order(a_state(20, 3, 3), schedule, 0).rows
    assert np.array_equal(order, round_order(a_state(20, 3, 3), schedule, 0).rows)
    assert not np.array_equal(order, round_order(a_state(20, 3, 3), schedule, 1).rows)
    assert not np.array_equal(order, round_order(a_state(20, 4, 4), schedule, 0).rows)


def test_the_warmup_meets_distinct_random_rows_once_each() -> None:
    run = Run(config(warmup=0.6, refresh_every=2))
    assert run.schedule.warmup_rounds == 3
    met = run.rows() + run.go(1).rows() + run.go(1).rows()
    assert len(set(met)) == 24
    assert met != sorted(met)
    assert run.state.selections == 0
    assert not run.model.measured
    assert run.go(1).state.selections == 1
    other = Run(config(warmup=0.6, refresh_every=2, seed=1))
    assert set(other.rows()) != set(met[:8])


def test_rows_are_stamped_with_the_coreset_that_trained_on_them_and_counted() -> None:
    run = Run(config(warmup=0.1, refresh_every=2))
    assert run.state.pool.feature(TRAINED_AT).tolist() == [-1] * N
    expected, met = np.full(N, -1), []
    for _ in range(6):
        expected[run.rows()] = run.state.selections
        met += list(run.rows())
        run.go(1)
        np.testing.assert_array_equal(run.state.pool.feature(TRAINED_AT), expected)
        np.testing.assert_array_equal(run.state.pool.feature(TRAINED_TIMES), np.bincount(met, minlength=N))
    assert set(expected) >= {2, 3}


def test_weights_are_zero_outside_the_coreset() -> None:
    state = a_state(5)
    weighted = dataclasses.replace(state.coreset, weights=np.array([2.0, 0.5, 0.5, 1.5, 0.5]))
    weights = row_weights(dataclasses.replace(state, coreset=weighted))
    assert weights[state.coreset.indices].tolist() == [2.0, 0.5, 0.5, 1.5, 0.5]
    assert weights.sum() == 5.0


# --------------------------------------------------------------------------------- measuring and choosing


def test_selections_come_when_they_are_due() -> None:
    run = Run(config(warmup=0.1, refresh_every=2)).go(6)
    assert (run.schedule.steps, run.schedule.warmup_rounds, run.schedule.every) == (1, 1, 2)
    assert [entry.round for entry in run.ledger.rounds] == [1, 3, 5]
    assert [state.selected_in for state in run.states] == [-1, 1, 1, 3, 3, 5, 5]
    assert [state.round for state in run.states] == list(range(7))


def test_never_selects_once() -> None:
    run = Run(config(refresh_every="never", warmup=0.1)).go(5)
    assert [entry.round for entry in run.ledger.rounds] == [1]
    assert len(run.model.measured) == 1


def test_a_method_without_needs_never_measures() -> None:
    run = Run(config(Random(), refresh_every=1))
    first = set(run.state.coreset.indices)
    run.go(2)
    assert set(run.state.coreset.indices) != first
    assert [entry.rows_measured for entry in run.ledger.rounds] == [0, 0, 0]
    assert run.ledger.by_phase()["measurement"].rows == 0


def test_a_method_with_needs_and_no_model_is_an_error() -> None:
    wanted = config()
    with pytest.raises(ValueError, match="this method measures the pool, so it needs a model"):
        start(wanted, empty_pool(COST), schedule_of(wanted), None, Ledger())


@pytest.mark.parametrize("budget", ["41", "2000000 tokens", "4 tokens"])
def test_a_budget_that_cannot_be_filled_is_an_error_before_anything_else(budget: str) -> None:
    model, wanted = FakeModel(N), config(budget=parse_budget(budget), warmup=0.1)
    with pytest.raises(ValueError, match="budget of"):
        start(wanted, empty_pool(COST), Schedule(1, 4, 1, 1), model.measurement(*wanted.needs), Ledger())
    assert not model.measured


def test_all_anchors_are_a_full_measurement_made_anew() -> None:
    """Every signal, the graph and the coreset of the third refresh are those of a first one at that age."""
    wanted = config(anchors="all")
    run = Run(wanted).go(3)
    fresh = FakeModel(N)
    fresh.age = run.model.age
    rng = np.random.default_rng(0)
    measured = fresh.measurement(*wanted.needs).measure(np.arange(N))
    pool = update(wanted.refresh, empty_pool(COST), np.arange(N), measured, 3)
    for name in wanted.needs:
        np.testing.assert_array_equal(run.state.pool.feature(name), pool.feature(name))
    assert run.state.pool.graph is not None
    assert pool.graph is not None
    np.testing.assert_array_equal(run.state.pool.graph.neighbors, pool.graph.neighbors)
    chosen = wanted.selector.select(pool, wanted.budget.resolve(pool), rng)
    np.testing.assert_array_equal(run.state.coreset.indices, chosen.indices)


def test_a_row_whose_signal_breaks_is_left_out_and_the_run_goes_on() -> None:
    run = Run(config(anchors="all"))
    victim = int(run.state.coreset.indices[0])
    run.model.broken = {victim}
    run.go(1)
    assert not run.state.pool.usable[victim]
    assert run.state.pool.usable.sum() == N - 1
    run.model.broken = set()
    for state in run.go(3).states[1:]:
        assert victim not in state.coreset.indices
        assert len(state.coreset.indices) == 8
        assert all(np.isfinite(state.pool.feature(name)).all() for name in run.config.needs)


def test_same_seed_same_run() -> None:
    def chosen(seed: int) -> list[list[int]]:
        run = Run(config(Grace(), seed=seed, anchors="priority", warmup=0.1)).go(4)
        return [state.coreset.indices.tolist() for state in run.states]

    assert chosen(3) == chosen(3)
    assert chosen(3) != chosen(4)


def test_the_ledger_says_what_a_refresh_did() -> None:
    run = Run(config(anchors="all")).go(1)
    before, after = (state.coreset.indices for state in run.states)
    entry = run.ledger.rounds[-1]
    assert (entry.round, entry.rows_measured, entry.rows_chosen) == (1, N, 8)
    assert entry.overlap == np.isin(after, before).mean()
    assert run.ledger.rounds[0].overlap is None
    spent = run.ledger.by_phase()
    assert entry.seconds <= sum(spent[name].seconds for name in ("measurement", "graph", "selection")) + 0.1


# ------------------------------------------------------------------------------------------------- audit


def test_the_audit_of_a_full_measurement_finds_it_perfect() -> None:
    run = Run(config(Grace(), anchors="all", repair="local", delta=0.0, audit_every=1)).go(2)
    assert run.ledger.rounds[0].approximation == {}  # the first selection has measured everything
    for entry in run.ledger.rounds[1:]:
        assert set(entry.approximation) == {
            "spearman",
            "embedding_cosine",
            "edge_recall",
            "coreset_share",
            "coreset_jaccard",
            "value_ratio",
        }
        for name, value in entry.approximation.items():
            assert value == pytest.approx(1.0, abs=1e-6), name


def test_the_audit_holds_rows_against_what_they_are_compared_with_now() -> None:
    """Not against the pairs measured at the last refresh, by which nobody is noisy."""
    always = Noise(pairs=8, min_auc=0.0)
    run = Run(config(Grace(), filters=(always,), anchors="all", repair="local", delta=0.0, audit_every=1))
    assert run.state.coreset.figures["filtered_noise"] == 0
    run.model.mismatched = 0.3
    run.go(1)
    assert run.state.coreset.figures["filtered_noise"] > N // 4
    assert run.ledger.rounds[1].approximation["coreset_jaccard"] == 1


def test_the_audit_sees_an_approximation_and_leaves_no_trace_in_it() -> None:
    settings = {"anchors": "priority", "anchor_share": 0.1}
    plain = Run(config(Grace(), **settings)).go(4)
    audited = Run(config(Grace(), **settings, audit_every=2)).go(4)
    assert [bool(entry.approximation) for entry in audited.ledger.rounds] == [False, False, True, False, True]
    assert audited.ledger.rounds[2].approximation["spearman"] < 0.99
    for one, other in zip(plain.states, audited.states, strict=True):
        assert_same(one, other)
    assert plain.ledger.by_phase()["measurement"].rows == audited.ledger.by_phase()["measurement"].rows
    assert audited.ledger.by_phase()["other"].rows == 2 * N


def test_inexact_lists_are_reported_with_their_recall(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "graph_recall" not in Run(config()).ledger.rounds[0].approximation
    monkeypatch.setattr(cells, "EXACT_ROWS", 10)
    run = Run(config(anchors="priority", repair="local", delta=0.5), FakeModel(N, drift=0.01)).go(1)
    first, second = (entry.approximation for entry in run.ledger.rounds)
    assert 0.5 < first["graph_recall"] <= 1
    assert run.states[0].pool.graph is not None
    truth = graph.recall(
        run.states[0].pool.graph,
        run.model.__class__(N, drift=0.01).signal("prompt_embedding"),
        np.random.default_rng(0),
    )
    assert first["graph_recall"] == pytest.approx(truth)
    assert "graph_recall" not in second  # mended, not made anew
    rebuilt = Run(config(anchors="all")).go(1)
    assert all("graph_recall" in entry.approximation for entry in rebuilt.ledger.rounds)


# ------------------------------------------------------------------------------------- with a warm-up run


def test_a_method_with_a_warm_up_run_has_no_warmup_rounds_and_measures_its_needs_alone() -> None:
    assert schedule_of(by_checkpoints(refresh_every="never")).warmup_rounds == 0
    assert by_checkpoints().needs == ("gradient",)
    run = Run(by_checkpoints()).go(2)
    assert [state.pool.graph for state in run.states] == [None] * 3
    assert [len(rows) for rows in run.model.measured] == [N] * 3


def test_the_first_measurement_is_its_own_and_references_are_of_the_current_weights() -> None:
    young, old = FakeModel(N), FakeModel(N)
    old.age = 5
    asked: list[int] = []

    def references() -> dict[str, Any]:
        asked.append(old.age)
        return {"trajectory": np.full((1, 2), float(old.age)), "share": np.ones(1)}

    settings = by_checkpoints()
    first = dataclasses.replace(young.measurement("gradient"), references=dict)
    measurement = dataclasses.replace(old.measurement("gradient"), references=references, first=first)
    schedule, ledger = schedule_of(settings), Ledger()
    state = start(settings, empty_pool(COST), schedule, measurement, ledger)
    assert (len(young.measured), len(old.measured), asked) == (1, 0, [])
    assert state.pool.references == {}
    state = advance(settings, state, schedule, measurement, ledger)
    assert (len(young.measured), len(old.measured), asked) == (1, 1, [5])
    assert state.pool.references["trajectory"].tolist() == [[5.0, 5.0]]
    assert np.array_equal(state.pool.feature("gradient"), old.signal("gradient"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"audit_every": 1}, "audit_every compares estimates .* every refresh is one: leave audit_every out"),
        ({"warmup": 0.0}, "warmup is 0 and the warm-up run is trained on that share of the pool: raise it"),
        ({"signal": "trajectory", "anchors": "priority"}, "anchors is priority, and trajectories .* to all"),
    ],
)
def test_what_cannot_go_with_a_warm_up_run_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        by_checkpoints(**settings)


def test_checkpoints_of_the_users_need_no_warmup() -> None:
    assert by_checkpoints(checkpoints_from="runs/before", warmup=0.0).uses_checkpoints
    assert not by_checkpoints(checkpoints_from="runs/before").has_warmup_run

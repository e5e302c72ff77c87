"""How many rows later refreshes measure: a run played without its model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import coreset_config, trainer

from coretune.ledger import Ledger
from coretune.planning.forecast import Looks, Moved, forecast
from coretune.planning.rehearsal import Choosing, Rehearsal, looking_at
from coretune.probing.probe import ages_of
from coretune.refresh import advance, start
from coretune.rounds.budget import parse_budget
from coretune.rounds.measurement import Measurement
from coretune.rounds.schedule import Clock, CoresetConfig
from coretune.rounds.transitions import empty_pool
from coretune.types import Array, Pool, Rows

N = 40
REFERENCES = {
    "mismatched_loss": np.full(8, 3.0, np.float32),
    "matched_loss": np.ones(8, np.float32),
    "unprompted_loss": np.full(8, 3.0, np.float32),
    "pair_tokens": np.full(8, 9),
}


def signals(seed: int) -> dict[str, Array]:
    """Of N rows, what GRACE needs."""
    rng = np.random.default_rng(seed)
    unit = rng.standard_normal((N, 6)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return {
        "prompt_embedding": unit,
        "response_embedding": unit[::-1].copy(),
        "loss": rng.random(N).astype(np.float32) + 0.5,
        "empty_prompt_loss": rng.random(N).astype(np.float32) + 2.5,
    }


def known() -> Pool:
    nothing = np.zeros(N, np.int32)
    return Pool(signals(0), np.full(N, 9), nothing, np.ones(N, bool), references=REFERENCES)


def setting(cooldown: bool = True, **changes: object) -> CoresetConfig:
    made = coreset_config("grace", budget="25%", **changes)
    return made if cooldown else replace(made, filters=made.filters[:-1])


def test_a_way_begins_and_ends_where_it_was_measured() -> None:
    before, after = signals(0), signals(1)
    moved = Moved(before, after, (1.0, 2.0))
    rows = np.array([5, 0, 17])
    for path, end in ((0.0, before), (1.0, after)):
        for name, value in moved.at(rows, path).items():
            np.testing.assert_allclose(value, end[name][rows], atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(path=st.floats(0, 6), seed=st.integers(0, 20))
def test_signals_stay_signals_beyond_what_was_measured(path: float, seed: int) -> None:
    found = Moved(signals(seed), signals(seed + 1), (1.0, 2.0)).at(np.arange(N), path)
    assert (found["loss"] > 0).all()
    np.testing.assert_allclose(np.linalg.norm(found["prompt_embedding"], axis=1), 1, atol=1e-5)
    assert all(value.dtype == np.float32 and np.isfinite(value).all() for value in found.values())


@pytest.mark.parametrize("look_again", [1.0, 2.0])
def test_where_nothing_moves_each_choice_is_measured_once(look_again: float) -> None:
    still = Moved(signals(0), signals(0), (1.0, 2.0))
    clock = Clock(1, 10, 1, 1)
    found = forecast(
        setting(look_again=look_again, cooldown=False), known(), still, clock, np.arange(1.0, 8.0)
    )
    if look_again == 1.0:
        assert found == [Looks(1.0, 1)] * 5
    else:  # chosen and measured in round 2, valid until 4, and again until 8
        assert found == [Looks(1.0, 1), Looks(0.0, 0), Looks(1.0, 1), Looks(0.0, 0), Looks(0.0, 0)]


@settings(deadline=None, max_examples=20)
@given(warmup=st.integers(0, 3), every=st.integers(1, 3), rounds=st.integers(2, 12))
def test_there_are_as_many_as_later_selections(warmup: int, every: int, rounds: int) -> None:
    clock = Clock(1, 10, warmup, every)
    moved = Moved(signals(0), signals(1), (1.0, 2.0))
    ages = np.arange(1.0, rounds + 1)
    if clock.selections(rounds):
        found = forecast(setting(), known(), moved, clock, ages)
        assert len(found) == clock.selections(rounds) - 1


def test_a_forecast_is_what_the_run_would_do_if_its_signals_moved_so() -> None:
    """Against a run by hand, at the ages 4, 6, 8, …: a quarter of the probe's way, a half, and so on."""
    config, clock = setting(look_again=1.5), Clock(1, 10, 1, 1)
    moved = Moved(signals(0), signals(1), (1.0, 16.0))
    ages = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    found = forecast(config, known(), moved, clock, ages)
    path, looks = {"now": 0.0}, list[int]()

    def measure(rows: Rows) -> Mapping[str, Array]:
        looks.append(len(rows))
        return moved.at(rows, path["now"])

    measurement, ledger = Measurement(measure, lambda rows: 0.0, lambda: REFERENCES), Ledger()
    state = start(config, empty_pool(known().cost), clock, measurement, ledger)
    state = advance(config, state, clock, measurement, ledger)
    for share in (0.25, 0.5, 0.75):  # of log 16, from the first selection at age 2 on
        path["now"] = share
        state = advance(config, state, clock, measurement, ledger)
    assert [round(one.rows * 10) for one in found] == [e.rows_measured for e in ledger.rounds[1:]]
    assert sum(one.looks for one in found) == len(looks) - 1


def test_rows_with_online_signals_are_not_measured_again() -> None:
    """With measurements valid for one round and no cooldown the same rows are chosen and trained on."""
    still, clock = Moved(signals(0), signals(0), (1.0, 2.0)), Clock(1, 10, 1, 1)
    config, ages = setting(look_again=1.0, cooldown=False), np.arange(1.0, 5.0)
    assert [one.rows for one in forecast(config, known(), still, clock, ages)] == [1.0, 1.0]
    shown = forecast(config, known(), still, clock, ages, harvests=True)
    assert all(one.rows < 0.5 for one in shown)  # some of those filtered out, which are not trained on


@pytest.mark.parametrize(
    "schedule",
    [
        {},
        {"lr_scheduler_type": "cosine", "warmup_steps": 3},
        {"lr_scheduler_type": "constant"},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
    ],
)
def test_ages_are_the_learning_rates_that_the_trainer_will_have(
    tmp_path: Path, schedule: dict[str, object]
) -> None:
    run = trainer(tmp_path, max_steps=8, **schedule)
    run.create_optimizer_and_scheduler(num_training_steps=8)
    rates = []
    for _ in range(8):
        rates.append(run.lr_scheduler.get_last_lr()[0] / 1e-2)
        run.optimizer.step()
        run.lr_scheduler.step()
    found = ages_of(run.args)
    assert len(found) == 9
    np.testing.assert_allclose(found[2:], np.cumsum(rates)[1:], atol=1e-6)
    assert (found > 0).all()


def test_more_measurements_than_rehearsed_cost_more_choosing() -> None:
    one = Choosing(1.0, 2.0, 100.0, 2.0)
    found = looking_at(Rehearsal(one, one), [Looks(1.0, 2), Looks(2.0, 4)], budget=100, most=1000)
    assert found.later == Choosing(1.5, 2.5, 150.0, 3.0)
    assert found.first == one
    assert looking_at(Rehearsal(one, one), [Looks(9.0, 4)], budget=100, most=300).later.rows == 300
    assert looking_at(Rehearsal(one, one), [], 1, 1).later == one


def test_a_budget_is_of_the_pool_played_with() -> None:
    config = replace(setting(), budget=parse_budget(7))
    looks = forecast(
        config, known(), Moved(signals(0), signals(0), (1, 2)), Clock(1, 4, 1, 1), np.arange(1.0, 4.0)
    )
    assert [one.rows for one in looks] == [1.0]

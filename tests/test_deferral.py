"""A first measurement that is deferred until noise detection is on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from fake_model import FakeModel
from fake_run import COST, N, Run, assert_same, config
from recorded_run import decode, fake_rows
from tiny_run import coreset_config, trainer

from coretune.filters.noise import Noise
from coretune.recording import run_record
from coretune.rounds.budget import parse_budget
from coretune.rounds.exact_duplicates import ExactDuplicates
from coretune.rounds.measurement import Measurement
from coretune.rounds.state import load, save
from coretune.select.facility_location import FacilityLocation
from coretune.select.grace import Grace
from coretune.select.random import Random
from coretune.types import Array, Rows


def patient(**settings: Any) -> Any:
    settings = {"anchors": "candidates", "defer_first_measurement": True, "warmup": 0.1, **settings}
    return config(Grace(), filters=(Noise(pairs=8),), **settings)


def deaf() -> FakeModel:
    model = FakeModel(N, drift=0.0)
    model.mismatched = 1.0
    return model


def test_while_noise_detection_is_off_rows_are_drawn_at_random_and_none_is_measured() -> None:
    """It is asked in the rounds 1, 2, 4 and 8, and the first measurement comes when it is answered."""
    model = deaf()
    run = Run(patient(), model).go(5)
    assert model.measured == []
    assert [entry.rows_measured for entry in run.ledger.rounds] == [0] * 5
    assert all(state.coreset.figures["drawn"] == 1 for state in run.states[1:])
    assert run.state.coreset.figures["mismatched_loss"] == 1.0
    model.mismatched = 4.0
    run.go(2)
    assert model.measured == []
    run.go(1)
    assert [len(rows) for rows in model.measured] == [N]
    assert "drawn" not in run.state.coreset.figures
    assert run.state.pool.graph is not None


def test_a_deferred_measurement_comes_only_where_a_response_seems_wrong() -> None:
    """One that comes at the first question does not wait for that."""
    model = deaf()
    run = Run(patient(), model).go(1)
    model.mismatched, model.wrong = 4.0, 0
    run.go(6)
    assert model.measured == []
    assert run.state.coreset.figures["drawn"] == 1
    assert run.state.coreset.figures["seem_wrong"] == 0
    model.wrong = 1
    run.go(1)
    assert [len(rows) for rows in model.measured] == [N]
    early = FakeModel(N, drift=0.0)
    early.wrong = 0
    Run(patient(), early).go(1)
    assert [len(rows) for rows in early.measured] == [N]


def test_it_is_asked_again_where_a_refresh_comes_every_second_round() -> None:
    """The rounds of refreshes are then 1, 3, 5, …, none of them a power of two but the first."""
    model = deaf()
    run = Run(patient(refresh_every=2, warmup=0.1), model)
    assert (run.schedule.every, run.schedule.warmup_rounds) == (2, 1)
    run.go(1)
    model.mismatched = 4.0
    run.go(2)
    assert [len(rows) for rows in model.measured] == [N]


def test_nobody_comes_twice_before_all_came_once() -> None:
    run = Run(patient(warmup=0.0), deaf()).go(12)
    rows = np.concatenate([run.rows(state) for state in run.states])
    for at in range(0, len(rows) - N + 1, N):
        assert sorted(rows[at : at + N]) == list(range(N))


class Copied(FakeModel):
    """The pool's second half is equal to its first."""

    def measurement(self, *names: str) -> Measurement:
        return dataclasses.replace(
            super().measurement(*names), duplicates=ExactDuplicates(np.arange(N) % (N // 2))
        )


def test_the_warm_up_leaves_out_equal_rows() -> None:
    """And what was trained on in it comes again only after all others."""
    model = Copied(N)
    model.mismatched = 1.0
    run = Run(patient(), model)
    warmed = set(run.rows())
    assert run.schedule.warmup_rounds == 1
    assert len(warmed) == run.schedule.rows
    assert max(warmed) < N // 2
    assert not warmed & set(run.go(1).rows())
    assert set(Run(patient(defer_first_measurement=False), Copied(N)).rows()) == warmed
    unsuspecting = config(FacilityLocation(), warmup=0.1)
    assert max(Run(unsuspecting, Copied(N)).rows()) >= N // 2


def test_of_equal_rows_one_is_drawn() -> None:
    model = Copied(N)
    model.mismatched = 1.0
    run = Run(patient(), model).go(8)
    assert all((state.coreset.indices < N // 2).all() for state in run.states[1:])
    whole = Run(patient(budget=parse_budget("100%")), model).go(1)
    assert len(whole.state.coreset.indices) == N


@pytest.mark.parametrize("budget", ["6", "25%", "100 tokens"])
def test_the_budget_is_kept(budget: str) -> None:
    run = Run(patient(budget=parse_budget(budget)), deaf()).go(2)
    asked, rows = run.config.budget.resolve(run.state.pool), run.state.coreset.indices
    if asked.unit == "rows":
        assert len(rows) == asked.amount
    else:
        assert asked.amount - COST.max() < COST[rows].sum() <= asked.amount


@pytest.mark.parametrize(
    "changes",
    [
        {"defer_first_measurement": False},
        {"refresh_every": "never"},
        {"anchors": "priority"},
    ],
)
def test_without_a_noise_filter_nothing_is_deferred(changes: dict[str, Any]) -> None:
    model = deaf()
    Run(patient(warmup=0.0, **changes), model)
    assert [len(rows) for rows in model.measured] == [N]


def test_methods_without_a_noise_filter_defer_nothing() -> None:
    model = deaf()
    Run(config(FacilityLocation(), anchors="candidates", defer_first_measurement=True), model)
    assert [len(rows) for rows in model.measured] == [N]


def test_random_choice_with_a_noise_filter_waits_too() -> None:
    """It measures for the filter alone; a method with signals of its own measures them at once."""
    waits, model = Run(config(Random(), anchors="candidates", filters=(Noise(pairs=8),)), deaf()), deaf()
    assert waits.state.coreset.figures["drawn"] == 1
    assert not waits.model.measured
    Run(config(FacilityLocation(), anchors="candidates", filters=(Noise(pairs=8),)), model)
    assert [len(rows) for rows in model.measured] == [N]


class Shown(FakeModel):
    """Training shows some rows, and what they were when they were trained on."""

    shown: list[int]

    def measurement(self, *names: str) -> Measurement:
        def shown() -> tuple[Rows, dict[str, Array]]:
            rows, self.shown = np.array(self.shown, np.int64), []
            return rows, {name: self.signal(name)[rows] + 7 for name in names}

        return dataclasses.replace(super().measurement(*names), online=shown)


def test_online_signals_are_not_kept_while_the_first_measurement_is_deferred() -> None:
    model = Shown(N, drift=0.0)
    model.mismatched, model.shown = 1.0, []
    run = Run(patient(), model)
    for row in range(3):
        model.shown = [row]
        run.go(1)
        assert model.shown == []
    assert model.measured == []


def test_online_signals_of_before_the_first_measurement_are_not_used_after_it() -> None:
    model = Shown(N, drift=0.0)
    model.mismatched, model.shown = 1.0, []
    run = Run(patient(), model).go(3)
    model.shown, model.mismatched = [3], 4.0
    run.go(1)
    assert [len(rows) for rows in model.measured] == [N]
    assert model.shown == []
    np.testing.assert_array_equal(run.state.pool.feature("loss"), model.signal("loss"))


def test_a_run_that_is_cut_while_it_waits_goes_on_the_same(tmp_path: Path) -> None:
    whole = Run(patient(), deaf()).go(3)
    save(whole.state, tmp_path)
    again = Run(patient(), deaf())
    again.states = [load(tmp_path)]
    for run in (whole, again):
        run.model.mismatched = 4.0
        run.go(3)
    assert_same(whole.state, again.state)


def test_a_trainer_waits_and_its_run_can_be_read(tmp_path: Path) -> None:
    """The loss of a model of random weights does not depend on the prompt."""
    coreset = coreset_config(defer_first_measurement=True)
    coreset = dataclasses.replace(coreset, filters=(Noise(),))
    run = trainer(tmp_path, coreset)
    run.train()
    assert run.ledger.by_phase()["measurement"].rows == 0
    assert [entry.rows_measured for entry in run.ledger.rounds] == [0, 0, 0]
    assert (tmp_path / "_coretune" / "selection.parquet").exists()
    chosen = trainer(tmp_path / "select", coreset).select()
    assert "drawn" not in chosen.coreset.figures


def test_the_map_is_made_once_the_pool_was_measured(tmp_path: Path) -> None:
    model = deaf()
    run = Run(patient(), model).go(1)
    rows, path = fake_rows(N), tmp_path / "_coretune" / "pool.parquet"

    def record() -> Any:
        settings = {"embedding": run.config.refresh.embedding, "others": N, "seed": 0}
        run_record.record(tmp_path, run.state, rows, decode, **settings)
        return pq.read_table(path)

    assert record()["x"].null_count == N
    model.mismatched = 4.0
    run.go(1)
    table = record()
    assert table["x"].null_count == table["copies"].null_count == 0
    written = path.stat().st_mtime_ns
    run.go(1)
    record()
    assert path.stat().st_mtime_ns == written

"""A run with online signals: fewer measurements, the same values, and resumed as if it had never stopped."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from tiny_run import arguments, coreset_config, corpus, trainer

from coretune.measure.step_signals import StepSignals, latest
from coretune.training.refusals import can_weigh
from coretune.training.train import CoresetSFTTrainer, CoresetTrainer

pytestmark = pytest.mark.skipif(not can_weigh(version("trl")), reason="TRL < 1.16 has no loss per token")

#: After a warm-up a measurement is valid for ever: nothing is learnt but from training steps.
SETTINGS = {"staleness_factor": 1e9, "online_signals": True, "warmup": 0.1, "filters": ()}


def online_run(folder: Path, coreset=None, **settings):
    return trainer(folder, coreset or coreset_config(**SETTINGS), **settings)


def test_rows_trained_on_need_no_measurement(tmp_path):
    run = online_run(tmp_path)
    run.train()
    rounds = run.ledger.rounds
    assert rounds[0].rows_measured == 48
    assert [entry.rows_measured for entry in rounds[1:]] == [0]
    assert [entry.approximation["rows_online"] for entry in rounds[1:]] == [8]  # 2 steps of 4 rows
    measured = run.ledger.costs["measurement"]
    assert measured.rows == 48
    assert measured.flops == pytest.approx(run.cost.measurement(np.arange(48)))


def test_online_signals_are_in_the_pool(tmp_path):
    run = online_run(tmp_path)
    shown: list[StepSignals] = []
    take = run.signals.online.reader.take
    run.processes.answers("online signals", lambda: shown.append(take()) or shown[-1])
    run.train()
    pool = run.coreset_state.pool
    for name, value in shown[-1].signals.items():
        np.testing.assert_array_equal(pool.features[name][shown[-1].rows], value)
    assert (pool.measured_at[shown[-1].rows] == run.coreset_state.selected_in).all()
    assert sorted(shown[-1].step.tolist()) == [2] * 4 + [3] * 4  # steps of 4 rows


def test_online_signals_alone_do_not_change_what_is_trained_on_first(tmp_path):
    with_it, without = (
        online_run(tmp_path / "a"),
        online_run(tmp_path / "b", coreset_config(**{**SETTINGS, "online_signals": False})),
    )
    for run in (with_it, without):
        run.train()
    assert with_it.trained[:4] == without.trained[:4]


@pytest.mark.parametrize("anchors", ["candidates", "priority"])
def test_with_other_anchors_the_rest_is_measured(tmp_path, anchors):
    """After a warm-up: a measurement before training, with noise detection on, would stay valid."""
    run = online_run(tmp_path, coreset_config(anchors=anchors, online_signals=True, warmup=0.1))
    run.train()
    assert len(run.ledger.rounds) > 1
    for entry in run.ledger.rounds[1:]:
        assert entry.approximation["rows_online"] == 8
        assert entry.rows_measured > 0


def test_a_run_that_was_cut_between_refreshes_goes_on_the_same(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6}
    whole = online_run(tmp_path / "whole", **saving)
    whole.train()
    again = online_run(tmp_path / "again", **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert again.trained == whole.trained[3:]
    for name, value in whole.coreset_state.pool.features.items():
        np.testing.assert_allclose(again.coreset_state.pool.features[name], value, rtol=1e-5, atol=1e-6)


def test_several_processes_seen_together():
    def seen(rows, step):
        value = np.asarray(step, np.float32) + 0.5
        return StepSignals(np.asarray(rows, np.int64), np.asarray(step, np.int64), {"loss": value})

    together = latest([seen([1, 4], [7, 2]), seen([], []), seen([1, 2], [3, 5])])
    assert together.rows.tolist() == [1, 2, 4]
    assert together.step.tolist() == [7, 5, 2]
    assert together.signals["loss"].tolist() == [7.5, 5.5, 2.5]
    assert len(latest([seen([], [])]).rows) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_type": "dft"}, "online signals need loss_type nll"),
        ({"label_smoothing_factor": 0.1}, "online signals need loss_type nll"),
        ({"torch_compile": True}, "torch_compile may bypass"),
    ],
)
def test_a_step_that_hides_its_rows_is_refused_before_training(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        online_run(tmp_path, **settings)


def test_by_default_what_steps_show_is_taken(tmp_path):
    """By GRACE, whose signals a forward pass shows, when candidates are measured and again."""
    assert trainer(tmp_path).signals.online is not None
    for method, settings in (
        ("grace", {"anchors": "priority"}),
        ("grace", {"anchors": "all"}),
        ("grace", {"refresh_every": "never"}),
        ("grace", {"online_signals": False}),
        ("ifd", {}),
        ("gradient_norm", {}),
        ("random", {}),
    ):
        made = trainer(tmp_path, coreset_config(method, **settings))
        assert made.signals.online is None, (method, settings)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"loss_type": "dft"}, "online signals need loss_type nll"),
        (
            {"packing": True, "max_length": 64},
            "online signals separate rows by their padding, and packing is on",
        ),
        (
            {"train_dataset": corpus().dataset.remove_columns("example_id")},
            "train_dataset has no column example_id",
        ),
    ],
)
def test_by_default_a_run_goes_on_without_what_its_steps_hide_and_says_so(tmp_path, caplog, settings, why):
    run = trainer(tmp_path, kind=CoresetSFTTrainer, **settings)
    assert run.signals.online is None
    assert f"online signals are off, rows just trained on are measured again: {why}" in caplog.text
    run.train()
    assert [entry.approximation.get("rows_online") for entry in run.ledger.rounds] == [None] * 3


def test_a_method_whose_signals_a_step_does_not_show_is_refused(tmp_path):
    with pytest.raises(ValueError, match="unconditional_loss cannot be read off"):
        online_run(tmp_path, coreset_config("ifd", **SETTINGS))


def test_the_plain_trainer_is_refused(tmp_path):
    with pytest.raises(ValueError, match="use CoresetSFTTrainer"):
        CoresetTrainer(args=arguments(tmp_path), coreset=coreset_config(**SETTINGS))

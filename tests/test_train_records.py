"""What a trainer logs and records of its selections; rows that are left out; evaluation."""

from __future__ import annotations

import json
import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded_run import recorded_lines
from tiny_run import coreset_config, corpus, trainer
from watched_run import names, watched

from coretune.neighbors import cells
from coretune.recording import audit
from coretune.training.refusals import can_weigh
from coretune.training.row_signals import RowSignals

# ------------------------------------------------------------------------------- logs, audit, exclusions


def test_a_selection_is_logged_for_every_logger_and_as_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = coreset_config("grace", refresh_every=2, audit_every=1, anchors="priority")
    made = trainer(tmp_path, config, max_steps=4, logging_steps=4)
    made.train()
    logged = [entry for entry in made.state.log_history if "coreset/round" in entry]
    assert [entry["coreset/round"] for entry in logged] == [0, 1]
    assert logged[0]["coreset/rows"] == 12
    assert logged[0]["coreset/pool"] == logged[0]["coreset/rows_measured"] == 48
    assert "coreset/overlap" not in logged[0]
    assert 0 <= logged[1]["coreset/overlap"] <= 1
    assert logged[1]["coreset/approximation/spearman"] <= 1
    # Only coreset figures and the trainer's clock: TRL's running means go on to its own next line.
    assert {name for name in logged[1] if not name.startswith("coreset/")} <= {"step", "epoch"}
    assert "mean_token_accuracy" in next(entry for entry in made.state.log_history if "loss" in entry)
    shown = capsys.readouterr().out.splitlines()
    lines = [line for line in shown if line.startswith("step ")]
    assert lines[0].startswith("step 0: coreset of 12 of 48 rows, ")
    assert "measured 48 rows" in lines[0]
    assert "% of them kept; measured" in lines[1]
    assert "against a full measurement: spearman" in lines[1]
    assert not any("coreset/round" in line for line in shown)


def test_the_recall_of_an_inexact_graph_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cells, "EXACT_ROWS", 10)
    made = trainer(tmp_path, coreset_config("grace", refresh_every="never"), max_steps=1)
    made.train()
    recall = made.ledger.rounds[0].approximation["graph_recall"]
    logged = next(entry for entry in made.state.log_history if "coreset/graph_recall" in entry)
    assert 0 < logged["coreset/graph_recall"] == recall <= 1
    assert json.loads((tmp_path / "_coretune" / "ledger.json").read_text())["rounds"][0]["approximation"] == {
        "graph_recall": recall
    }
    assert f"graph recall {recall:.3f}" in capsys.readouterr().out


def test_the_audit_has_every_row_of_every_selection(tmp_path: Path) -> None:
    made, states = watched(tmp_path, coreset_config("grace", refresh_every=2), max_steps=4)
    table = audit.read(tmp_path / "_coretune" / "selection.parquet").to_pylist()
    for state in (state for state in states if state.round == state.selected_in):
        lines = [line for line in table if line["round"] == state.round]
        assert sorted(line["id"] for line in lines) == sorted(made.pool_rows.ids)
        chosen = sorted((line["rank"], line["id"]) for line in lines if line["chosen"])
        assert [name for _, name in chosen] == names(made, state.coreset.indices)


@pytest.mark.parametrize(("broken", "shown"), [(1, "1 row is"), (13, "13 rows are")])
def test_a_row_with_a_nan_is_named_and_the_run_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    broken: int,
    shown: str,
) -> None:
    measurer = RowSignals.measurer

    def poisoned(self: RowSignals, *args: Any) -> Any:
        measure = measurer(self, *args)

        def measured(rows: Any) -> Any:
            found = {name: np.array(value) for name, value in measure(rows).items()}
            found["loss"][np.isin(rows, range(broken))] = np.nan
            return found

        return measured

    monkeypatch.setattr(RowSignals, "measurer", poisoned)
    with caplog.at_level(logging.WARNING, logger="coretune"):
        made, _ = watched(tmp_path, coreset_config("grace", refresh_every=1), max_steps=4)
    warnings = [record.getMessage() for record in caplog.records if "excluded" in record.getMessage()]
    named = names(made, range(min(broken, 10)))
    more = " and 3 more" if broken == 13 else ""
    assert warnings == [f"{shown} excluded from now on, a signal was not finite: {', '.join(named)}{more}"]
    trained = {name for batch in made.trained for name in batch}
    assert not trained & set(names(made, range(broken)))
    assert len(made.trained) == 4
    assert recorded_lines(tmp_path, named[0])[0]["excluded"] == "a signal was not finite"


def test_evaluation_works_in_between_and_is_not_training(tmp_path: Path) -> None:
    settings = {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 4}
    config = coreset_config("grace", weighted=can_weigh(version("trl")), warmup=0.1)
    made = trainer(tmp_path, config, eval_dataset=corpus(12, 1).dataset, max_steps=6, **settings)
    made.train()
    losses = [entry["eval_loss"] for entry in made.state.log_history if "eval_loss" in entry]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    costs = made.ledger.by_phase()
    assert costs["evaluation"].rows == 36
    assert all(cost.seconds >= 0 for cost in costs.values())

"""Steps whose loss stands out, loss by source, rows that were left out: recorded, and on the page."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from recorded_run import make_run
from tiny_run import coreset_config, trainer

from coretune.recording.by_source import NO_SOURCE, OTHERS, SOURCES, largest, record_losses
from coretune.recording.row_account import write_account
from coretune.recording.run_files import LOSSES, SPIKES, RunFiles
from coretune.recording.spikes import LEAST, Spike, record_spike, spike, usual
from coretune.report import facts, write_report

CALM = [2.0, 2.1, 1.9, 2.05, 1.95, 2.0, 2.1, 1.9]


@pytest.mark.parametrize(
    ("before", "loss", "found"),
    [
        (CALM, 6.0, 2.0),
        (CALM, 2.3, None),  # no more than noise
        ([2.0] * LEAST, 2.5, None),  # far in deviations, and small
        ([2.0] * LEAST, 3.5, 2.0),
        (CALM[: LEAST - 1], 9.0, None),
        (CALM, float("nan"), None),
        ([*CALM, 30.0, 25.0], 9.0, 2.025),  # spikes before hide none
    ],
)
def test_a_loss_stands_out_by_the_losses_before_it(
    before: list[float], loss: float, found: float | None
) -> None:
    assert usual(before, loss) == (None if found is None else pytest.approx(found))


def test_the_rows_of_a_spike_come_highest_loss_first_and_each_once() -> None:
    rows, seen = np.array([3, 1, 2, 1]), np.array([0.5, np.nan, 7.25, np.nan])
    found = spike(40, 9.0, 2.0, rows, seen, ["a", "b", "c", "d"])
    assert found == Spike(40, 9.0, 2.0, ["c", "d", "b"], [7.25, 0.5, None], 3)
    assert (
        found.line == "step 40: the loss is 9.000, and was about 2.000; in the batch: c (7.25), d (0.50), b"
    )


def test_a_run_that_goes_on_writes_later_spikes_anew(tmp_path: Path) -> None:
    (tmp_path / SPIKES).parent.mkdir()
    for step in (10, 20, 15):
        record_spike(tmp_path, Spike(step, 9.0, 2.0, ["a"], [None], 1))
    assert [one["step"] for one in json.loads((tmp_path / SPIKES).read_text())] == [10, 15]


def test_a_run_warns_of_a_spike_with_its_rows_and_records_losses_by_source(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = trainer(tmp_path, coreset_config("loss", refresh_every=5), max_steps=10, logging_steps=1)
    made.train()
    assert not (tmp_path / SPIKES).exists()
    rows = made._order.of(16, 20)  # of the last step: no selection has taken yet what it showed
    made._trained.append(rows)
    with caplog.at_level(logging.WARNING, "coretune"):
        made.log({"loss": 99.0})
    (found,) = json.loads((tmp_path / SPIKES).read_text())
    assert (found["step"], found["loss"], found["batch"]) == (10, 99.0, 4)
    assert sorted(found["rows"]) == sorted(made.pool_rows.ids[row] for row in rows)
    assert found["losses"] == sorted(found["losses"], reverse=True)
    assert f"in the batch: {found['rows'][0]} ({found['losses'][0]:.2f})" in caplog.text

    kept = json.loads((tmp_path / LOSSES).read_text())
    assert kept["names"] == [NO_SOURCE]
    assert [one["round"] for one in kept["selections"]] == [0, 1]
    last = made.coreset_state.pool.features["loss"]
    assert kept["selections"][-1]["loss"] == [pytest.approx(float(last.mean()), abs=1e-5)]
    assert kept["selections"][-1]["rows"] == [48]


def test_the_smaller_sources_are_one_group() -> None:
    names, group = largest([f"s{number}" for number in range(SOURCES + 5)] + ["s0", None])
    assert len(names) == SOURCES + 1
    assert names[-1] == OTHERS
    assert names[group[0]] == names[group[SOURCES + 5]] == "s0"
    assert names[group[-1]] in (OTHERS, NO_SOURCE)


@pytest.fixture
def told(tmp_path: Path) -> Path:
    """A run whose files hold all three."""
    folder = make_run(tmp_path)
    run = RunFiles.of(folder)
    source = run.pool["source"].to_pylist()
    for round in run.rounds:
        loss = np.array([1.0 + round if name == source[0] else 4.0 for name in source], np.float32)
        loss[2] = np.nan
        pool = SimpleNamespace(n=len(source), features={"loss": loss}, measured_at=np.zeros(len(source)))
        state: Any = SimpleNamespace(pool=pool, round=round)
        record_losses(folder, state, source)
    record_spike(folder, Spike(30, 8.5, 2.0, [run.ids[7], run.ids[9]], [12.5, None], 16))
    bad = [("pool.jsonl:3", "no text in 'prompt'"), ("pool.jsonl:9", "no text in 'answer'")]
    write_account(
        folder, len(source), bad, {"label is false": 4}, 11, ["pool.jsonl: column `lang` is not used"]
    )
    return folder


def test_the_page_has_losses_spikes_and_rows_left_out(told: Path) -> None:
    run = RunFiles.of(told)
    found = facts.gather(run, [])
    first = run.pool["source"].to_pylist()[0]
    line = next(line for line in found["source_losses"]["table"] if line["name"] == first)
    assert (line["before"], line["after"]) == (1.0 + run.rounds[0], 1.0 + run.rounds[-1])
    assert len(found["source_losses"]["selections"]) == len(run.rounds)
    (told_of,) = found["spikes"]
    assert [row["id"] for row in told_of["rows"]] == [run.ids[7], run.ids[9]]
    assert told_of["rows"][0]["text"].startswith(run.pool["prompt"].to_pylist()[7][:20])
    assert [(line["rows"], line["first"]) for line in found["account"]["out"]] == [
        (2, "pool.jsonl:3"),
        (4, None),
    ]
    page = write_report(told, []).read_text(encoding="utf-8")
    for text in ("Loss by source", "Steps whose loss stood out", "(12.50)", "and 14 more", "label is false"):
        assert text in page
    assert "of 11 the prompt was cut" in page


def test_a_run_without_any_of_them_has_no_such_sections(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path), []).read_text(encoding="utf-8")
    for text in ("Loss by source", "stood out, below", "left out before the run"):
        assert text not in page

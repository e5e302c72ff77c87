"""Bars on a terminal, plain lines elsewhere, and silence where it is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tiny_run import model_folder, records, write_jsonl
from typer.testing import CliRunner

from coretune import progress
from coretune.cli import app


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_there_are_few_plain_lines(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.progress(2000, "measuring") as bar:
        for _ in range(400):
            clock[0] += 0.1
            bar.update(5)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) in (3, 4)  # 40 seconds
    assert lines[0].startswith("measuring: 5")
    assert lines[0].endswith(" rows, 50 a second, 30 s left")


def test_what_is_over_at_once_says_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress(10, "measuring") as bar:
        bar.update(10)
    assert capsys.readouterr().err == ""


def test_slow_things_are_shown_in_seconds_each(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.progress(3, "comparing", "run") as bar:
        clock[0] += 20
        bar.set_description("random-seed0")
        bar.update()
    assert capsys.readouterr().err == "random-seed0: 1 of 3 runs, 20.0 s each, 40 s left\n"


def test_on_a_terminal_it_is_a_bar_and_hidden_it_is_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.progress(10, shown=False) as bar:
        bar.update(10)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    with progress.progress(10, "measuring", leave=True) as bar:
        bar.update(10)
    assert "measuring: 100%" in capsys.readouterr().err


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "pool.jsonl", [*records(40), {"id": "mute", "prompt": "say:", "completion": ""}])
    raw = {
        "model_name_or_path": str(model_folder()),
        "train_data": str(tmp_path / "pool.jsonl"),
        "output_dir": str(tmp_path / "run"),
        "skip_bad_rows": True,
        "coreset": {"method": "random", "budget": "25%"},
        "training": {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


@pytest.mark.parametrize("command", ["train", "select"])
def test_quiet_is_one_line_and_json_is_json(config: Path, tmp_path: Path, command: str) -> None:
    quiet = CliRunner().invoke(app, [command, str(config), "--quiet"])
    assert quiet.exit_code == 0, quiet.output
    assert len(quiet.stdout.splitlines()) == 1
    assert str(tmp_path / "run") in quiet.stdout
    assert "left out" not in quiet.stderr
    told = CliRunner().invoke(app, [command, str(config), "--json", f"output_dir={tmp_path / 'again'}"])
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    assert str(tmp_path / "again") in str(found)
    if command == "train":
        assert found["phases"]["training"]["rows"] == 12

"""What entered and left, against sets; by source and length, against counting."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from recorded_run import fake_rows, make_run
from typer.testing import CliRunner

from coretune.cli import app
from coretune.reading.diff import Side, diff, last_rounds, lines
from coretune.recording.run_files import RunFiles


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFiles:
    return RunFiles.of(make_run(tmp_path_factory.mktemp("run")))


def test_entered_left_and_kept_are_those_of_the_sets(run: RunFiles) -> None:
    found = diff(Side(run, 1), Side(run, 3))
    old, new = run.chosen(1), run.chosen(3)
    assert [row.id for row in found.entered] == [name for name in new if name not in old]
    assert [row.id for row in found.left] == [name for name in old if name not in new]
    assert found.kept == len(set(old) & set(new))
    assert found.rows == (15, 15)


def test_a_coreset_against_itself_differs_in_nothing(run: RunFiles) -> None:
    found = diff(Side(run, 3), Side(run, 3))
    assert (found.kept, found.entered, found.left) == (15, [], [])
    assert all(mix.before == mix.after for mix in (*found.sources, *found.lengths))


def test_groups_are_counted(run: RunFiles) -> None:
    found = diff(Side(run, 1), Side(run, 5))
    source = dict(zip(run.ids, run.pool["source"].to_pylist(), strict=True))
    counts = Counter(source[name] for name in run.chosen(5))
    assert {mix.group: mix.after for mix in found.sources if mix.after} == counts
    for side in ("before", "after"):
        assert sum(getattr(mix, side) for mix in found.lengths) == 15
        assert sum(getattr(mix, side) for mix in found.sources) == 15


def test_a_row_that_entered_says_why_it_was_not_there_before(run: RunFiles) -> None:
    found = diff(Side(run, 1), Side(run, 3))
    for row in found.entered:
        assert row.why.startswith(("not chosen", "filtered out by "))
        assert " → answer " in row.text


def test_runs_of_different_pools_compare_by_id(run: RunFiles, tmp_path: Path) -> None:
    smaller = RunFiles.of(make_run(tmp_path, rows=fake_rows(20), rounds=(1,)))
    found = diff(Side(smaller, 1), Side(run, 1))
    outside = {row.id for row in found.entered if row.why == "not in that run's pool"}
    assert outside == {name for name in run.chosen(1) if int(name[4:]) >= 20}


def test_rows_without_a_source_are_one_group(tmp_path: Path) -> None:
    run = RunFiles.of(make_run(tmp_path, graph=False, rows=fake_rows(30, sources=False)))
    found = diff(Side(run, 1), Side(run, 3))
    assert [(mix.group, mix.before, mix.after) for mix in found.sources] == [("no source", 7, 7)]
    assert "by source" not in "\n".join(lines(found))


def test_a_run_of_one_refresh_has_nothing_to_compare_with(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has one refresh, 1: give a second run"):
        last_rounds(RunFiles.of(make_run(tmp_path, rounds=(1,))))


def test_the_command_takes_two_refreshes_or_two_runs(run: RunFiles) -> None:
    path = str(run.path)
    told = {
        name: CliRunner().invoke(app, ["diff", path, *more])
        for name, more in {
            "last": [],
            "asked": ["--rounds", "1", "3"],
            "runs": [path],
            "json": ["--json"],
        }.items()
    }
    assert all(done.exit_code == 0 for done in told.values()), told
    assert "refresh 3, 15 rows\nafter:" in told["last"].stdout
    assert "refresh 1, 15 rows\nafter:" in told["asked"].stdout
    assert "kept 15, entered 0, left 0" in told["runs"].stdout
    assert json.loads(told["json"].stdout) == json.loads(
        json.dumps(diff(Side(run, 3), Side(run, 5)).to_dict())
    )
    assert "more (--json names all)" in told["last"].stdout

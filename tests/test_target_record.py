"""`coretune select --target`: a file for any trainer, and a page, that say whom each chosen row serves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_cli import config_file, refused
from tiny_run import records, write_jsonl
from typer.testing import CliRunner

from coretune.cli import app
from coretune.reading.explain import explain, lines
from coretune.recording.run_files import REPORT, TARGETS, RunFiles
from coretune.report.facts import gather
from coretune.report.targets import served

CORESET = {"method": "rds", "budget": 6}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_jsonl(folder / "pool.jsonl", records(40))
    wanted = [{**row, "id": f"wanted-{i}"} for i, row in enumerate(records(3, seed=5))]
    write_jsonl(folder / "math.jsonl", wanted[:2])
    write_jsonl(folder / "<b>code.jsonl", wanted[2:])
    return folder


@pytest.fixture(scope="module")
def chosen(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The run directory, and the lines of coreset.jsonl."""
    folder = tmp_path_factory.mktemp("select")
    config = config_file(data, folder, coreset=CORESET, eval_data=None)
    files = [str(data / name) for name in ("math.jsonl", "<b>code.jsonl")]
    result = CliRunner().invoke(app, ["select", str(config), "--target", files[0], "--target", files[1]])
    assert result.exit_code == 0, result.output
    written = (folder / "run" / "_coretune" / "coreset.jsonl").read_text(encoding="utf-8").splitlines()
    return folder / "run", [json.loads(line) for line in written]


def test_each_line_says_which_example_it_serves_and_why(
    chosen: tuple[Path, list[dict[str, Any]]], data: Path
) -> None:
    _, rows = chosen
    assert len(rows) == 6
    for row in rows:
        assert {"prompt", "completion", "id"} <= set(row)
        facts = row["coretune"]
        assert set(facts["serves"]) == {"id", "target", "similarity"}
        assert facts["why"].startswith(f"for example {facts['serves']['id']} of {facts['serves']['target']}")
        assert "serves" not in facts["components"]
    # Two targets share alike: turn by turn one of the three examples, and the third has half of the rows.
    counts = [sum(row["coretune"]["serves"]["id"] == f"wanted-{i}" for row in rows) for i in range(3)]
    assert counts[2] == 3
    assert counts[0] + counts[1] == 3
    assert {row["coretune"]["serves"]["target"] for row in rows} == {
        str(data / "math.jsonl"),
        str(data / "<b>code.jsonl"),
    }


def test_the_page_shows_each_example_with_the_rows_chosen_for_it(
    chosen: tuple[Path, list[dict[str, Any]]],
) -> None:
    folder, rows = chosen
    run = RunFiles.of(folder)
    found = served(run, run.rounds[-1])
    assert {example["id"] for example in found[:2]} == {"wanted-0", "wanted-1"}
    assert found[2]["id"] == "wanted-2"
    for example in found:
        own = [row["id"] for row in rows if row["coretune"]["serves"]["id"] == example["id"]]
        assert example["count"] == len(own)
        assert [row["id"] for row in example["rows"]] == own[:4]
    page = (folder / REPORT).read_text(encoding="utf-8")
    assert "Target examples, and the rows chosen for them" in page
    assert "<b>code.jsonl" not in page.partition("<script")[0]  # a name is text
    assert gather(run)["targets"] == found


def test_explain_shows_the_example_and_its_text(chosen: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, rows = chosen
    serves = rows[0]["coretune"]["serves"]
    said = "\n".join(lines(explain(RunFiles.of(folder), rows[0]["id"])))
    assert f"serves         {serves['id']} of {serves['target']}: " in said
    assert "target_similarity" in said


def test_a_run_without_a_target_shows_none(chosen: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    folder, _ = chosen
    text = (folder / TARGETS).read_bytes()
    (folder / TARGETS).unlink()
    run = RunFiles.of(folder)
    assert served(run, run.rounds[-1]) == []
    assert all(r.serves is None for r in explain(run, run.ids[0]).refreshes)
    (folder / TARGETS).write_bytes(text)


def test_a_target_that_is_absent_or_given_twice_is_one_line(data: Path, tmp_path: Path) -> None:
    config = config_file(data, tmp_path, coreset=CORESET, eval_data=None)
    assert "target_data is " in refused("select", config, "--target", data / "none.jsonl")
    math = data / "math.jsonl"
    assert "give each file once" in refused("select", config, "--target", math, "--target", math)

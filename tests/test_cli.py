"""The command: what it prints, and that every mistake is one line on stderr and exit code 1."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_run import model_folder, records, write_jsonl
from typer.testing import CliRunner

from coretune import demo, run
from coretune.cli import app
from coretune.playground import BASE_MODEL


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_jsonl(folder / "pool.jsonl", records(40))
    write_jsonl(folder / "eval.jsonl", records(8, seed=1))
    return folder


def config_file(data: Path, folder: Path, **top: Any) -> Path:
    raw = {
        "model_name_or_path": str(model_folder()),
        "train_data": str(data / "pool.jsonl"),
        "eval_data": str(data / "eval.jsonl"),
        "output_dir": str(folder / "run"),
        "coreset": {"method": "grace", "budget": "25%", "refresh_every": 2, "refresh": {"k": 4}},
        "training": {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2},
        **top,
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


def refused(*arguments: object) -> str:
    """The one line on stderr of a command that fails."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 1, result.output
    # Bars of libraries go there too, and end in a carriage return.
    lines = [line for line in result.stderr.split("\n") if line and "\r" not in line and "%|" not in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("coretune: ")
    assert "Traceback" not in result.output
    return lines[0]


def test_train_ends_with_its_cost_and_where_it_is(data: Path, tmp_path: Path) -> None:
    """In a process of its own, as a user has it: no library's notes among the lines."""
    command = [sys.executable, "-m", "coretune", "train", str(config_file(data, tmp_path)), "seed=3"]
    command += ["coreset.refresh.warmup=0.05"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert f"run directory: {tmp_path / 'run'}" in done.stdout
    for phase in ("warm-up", "measurement", "selection", "training", "total"):
        assert phase in done.stdout
    selections = [line for line in done.stdout.splitlines() if "coreset of 10 of 40 rows" in line]
    assert [line.partition(":")[0].strip() for line in selections] == ["step 1", "step 3"]
    assert "Warning" not in done.stderr
    assert "INFO" not in done.stderr
    written = yaml.safe_load((tmp_path / "run" / "_coretune" / "config.yaml").read_text())
    assert written["seed"] == 3
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_select_says_where_the_coreset_is(data: Path, tmp_path: Path) -> None:
    path = config_file(data, tmp_path)
    result = CliRunner().invoke(app, ["select", str(path), "coreset.budget=3", "coreset.refresh.warmup=0"])
    assert result.exit_code == 0, result.output
    assert f"coreset: {tmp_path / 'run' / '_coretune' / 'coreset.jsonl'}" in result.stdout
    assert "step 0: coreset of 3 of 40 rows" in result.stdout
    assert len((tmp_path / "run" / "_coretune" / "coreset.jsonl").read_text().splitlines()) == 3


def test_bad_rows_may_be_skipped_from_the_command_line(data: Path, tmp_path: Path) -> None:
    rows = [*records(40), {"id": "mute", "prompt": "say:", "completion": ""}]
    pool = write_jsonl(tmp_path / "pool.jsonl", rows)
    path = config_file(data, tmp_path, train_data=str(pool), coreset={"method": "random", "budget": 5})
    assert "pool.jsonl line 41: empty response" in refused("select", path)
    assert "--skip-bad-rows" in refused("select", path)
    assert CliRunner().invoke(app, ["select", str(path), "--skip-bad-rows"]).exit_code == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["coreset.budget=0"], "coreset.budget: budget '0' chooses nothing: write rows (600)"),
        (["coreset.budget=41"], "budget of 41 rows, but only 40 are usable: ask for at most 40"),
        (["coreset.budget=9M tokens"], "budget of 9000000 tokens, but the usable rows hold"),
        (["coreset.refresh.k=40"], "k = 40 neighbours, but the pool has 40 rows: set k to at most 39"),
        (["coreset.methd=grace"], "unknown key coreset.methd, did you mean 'coreset.method'?"),
        (["training.max_step=3"], "unknown key training.max_step, did you mean 'training.max_steps'"),
        (["training.packing=true", "training.packing_strategy=wrapped"], "cuts examples in two"),
        (
            ["training.max_steps=1", "coreset.refresh.warmup=0.05"],
            "max_steps is 1 and the warm-up takes 1 steps",
        ),
        (["model_name_or_path=/nowhere/m"], "model_name_or_path is /nowhere/m, and there is no such folder"),
        (["train_data=/nowhere/pool.jsonl"], "/nowhere/pool.jsonl"),
        (["coreset"], "'coreset' is not an override; write key=value"),
        (["training.eval_strategy=often"], "training.eval_strategy is 'often': give one of no, steps, epoch"),
        (["training.fp16=true", "training.bf16=true"], "training: "),
        (["resume_from_checkpoint=true"], "no checkpoint in"),
    ],
)
@pytest.mark.parametrize("command", ["train"])
def test_a_mistake_is_one_line(
    data: Path, tmp_path: Path, command: str, overrides: list[str], message: str
) -> None:
    assert message in refused(command, config_file(data, tmp_path), *overrides)


def test_data_that_cannot_be_read_is_one_line(data: Path, tmp_path: Path) -> None:
    path = config_file(data, tmp_path)
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "wäre", "completion": "a"}\n'.encode("latin-1"))
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a", \n')
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    write_jsonl(tmp_path / "chat.jsonl", [{"messages": turns}] * 3)
    twins = write_jsonl(tmp_path / "twins.jsonl", [*records(5), records(5)[2]])
    assert "empty.jsonl" in refused("train", path, f"train_data={tmp_path / 'empty.jsonl'}")
    assert "UTF-8" in refused("train", path, f"train_data={tmp_path / 'latin.jsonl'}")
    assert "broken.jsonl line 1" in refused("train", path, f"train_data={tmp_path / 'broken.jsonl'}")
    assert "row-002" in refused("train", path, f"train_data={twins}")
    plain = f"model_name_or_path={model_folder(template=False)}"
    chat = refused("train", path, f"train_data={tmp_path / 'chat.jsonl'}", plain)
    assert "the tokenizer has no chat template" in chat


def test_a_config_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    for command in ("train", "select"):
        assert "config.yaml is no file; give the path" in refused(command, tmp_path / "config.yaml")


def test_a_folder_that_is_no_model_is_one_line(data: Path, tmp_path: Path) -> None:
    path = config_file(data, tmp_path, model_name_or_path=str(data))
    assert f"model_name_or_path is {data}" in refused("train", path)
    tokenizer_only = tmp_path / "half"
    tokenizer_only.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json"):
        (tokenizer_only / name).write_bytes((model_folder() / name).read_bytes())
    assert "half" in refused("train", config_file(data, tmp_path, model_name_or_path=str(tokenizer_only)))


def test_a_traceback_is_shown_on_request(data: Path, tmp_path: Path) -> None:
    path = str(config_file(data, tmp_path))
    result = CliRunner().invoke(app, ["train", path, "coreset.budget=41", "--traceback"])
    assert isinstance(result.exception, ValueError)


@pytest.mark.skipif(not BASE_MODEL.exists(), reason="the playground's model is not made yet")
def test_the_demo_compares_three_arms_and_leaves_other_files_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "quiet", lambda: None)  # it would last for the tests that follow
    (tmp_path / "mine.txt").write_text("mine")
    for of_an_earlier_demo in ("data/old.jsonl", "grace-coreset/_coretune/selection.parquet"):
        (tmp_path / of_an_earlier_demo).parent.mkdir(parents=True)
        (tmp_path / of_an_earlier_demo).write_text("old")
    header, *rows = demo.run_demo(tmp_path, rows=200, steps=16)
    assert [row[0] for row in rows] == ["full pool", "random coreset", "GRACE coreset"]
    assert all(len(row) == len(header) for row in rows)
    seen = header.index("rows\nseen")
    assert {row[seen] for row in rows} == {"256"}
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert not (tmp_path / "data" / "old.jsonl").exists()
    assert json.loads((tmp_path / "grace-coreset" / "_coretune" / "ledger.json").read_text())["rounds"]
    # Planted copies and wrong answers are labelled beside the pool, never in what a selector is given.
    pool = [json.loads(line) for line in (tmp_path / "data" / "pool.jsonl").read_text().splitlines()]
    assert {name for row in pool for name in row} == {"id", "prompt", "completion", "source"}

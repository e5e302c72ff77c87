"""`coretune init` writes a config that a run takes; the schema says of a config what the run says of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tiny_run import model_folder, records, write_jsonl
from typer.testing import CliRunner

from coretune.cli import app
from coretune.commands import init_command
from coretune.commands.schema import config_schema
from coretune.commands.starter import Starter
from coretune.config import ConfigError, check_config, load_config
from coretune.yaml_text import read_text

ROOT = Path(__file__).parents[1]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_jsonl(tmp_path / "pool.jsonl", records(40))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = config_schema()
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def init(*arguments: str, answers: str = "") -> Any:
    return CliRunner().invoke(app, ["init", *arguments], input=answers)


def test_a_written_config_trains_as_it_is(here: Path) -> None:
    model = str(model_folder())
    result = init("first.yaml", "--model", model, "--data", "pool.jsonl", "--eval-data", "pool.jsonl")
    assert result.exit_code == 0, result.output
    config = load_config("first.yaml")
    assert (config.model_name_or_path, config.train_data, config.eval_data) == (
        model,
        "pool.jsonl",
        "pool.jsonl",
    )
    assert config.output_dir == "runs/pool"
    assert config.peft is not None
    text = (here / "first.yaml").read_text()
    schema = re.match(r"# yaml-language-server: \$schema=(\S+)\n", text)
    assert schema is not None
    assert json.loads((here / schema[1]).read_text()) == config_schema()
    keys = [line for line in text.splitlines() if re.match(r"\w+:", line)]
    assert all("#" in line or "output_dir" in line or "seed" in line or "coreset" in line for line in keys)
    result = CliRunner().invoke(
        app, ["select", "first.yaml", "coreset.method=random", "training.max_steps=2"]
    )
    assert result.exit_code == 0, result.output


def test_a_file_that_is_there_is_replaced_on_request_alone(here: Path) -> None:
    (here / "config.yaml").write_text("mine")
    result = init("--data", "pool.jsonl")
    assert result.exit_code == 1
    assert "config.yaml is there already: give another name, or --force" in result.stderr
    assert (here / "config.yaml").read_text() == "mine"
    assert init("--data", "pool.jsonl", "--force", "--full", "--budget", "600").exit_code == 0
    config = load_config(here / "config.yaml")
    assert (config.coreset["budget"], config.peft) == (600, None)
    assert config.model_name_or_path.count("/") == 1  # a real name, of the hub


def test_what_no_flag_says_is_asked_on_a_terminal_and_named_without_one(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "--data is missing" in init().stderr
    monkeypatch.setattr(init_command, "_terminal", lambda: True)
    assert init(answers=f"{model_folder()}\npool.jsonl\n\n").exit_code == 0
    config = load_config(here / "config.yaml")
    assert (config.model_name_or_path, config.output_dir) == (str(model_folder()), "runs/pool")


@pytest.mark.parametrize("flag", ["--model", "--data", "--output", "--eval-data", "--budget"])
def test_an_empty_flag_is_not_taken_for_one_that_is_left_out(here: Path, flag: str) -> None:
    result = init("--data", "pool.jsonl", flag, " ")
    assert result.exit_code == 1
    assert f"{flag} is empty: give its value, or leave it out" in result.stderr
    assert sorted(path.name for path in here.iterdir()) == ["pool.jsonl"]


def test_nothing_is_written_for_data_that_is_not_there(here: Path) -> None:
    result = init("--data", "pol.jsonl")
    assert result.exit_code == 1
    assert "train_data is pol.jsonl" in result.stderr
    assert sorted(path.name for path in here.iterdir()) == ["pool.jsonl"]


@pytest.mark.parametrize(
    "data", ["a b: c.jsonl", "é.jsonl", "#x.jsonl", "x" * 300, "'a\"b", "- x", "12", "C:\\x"]
)
def test_any_name_is_written_so_that_it_reads_back(data: str) -> None:
    text = Starter("org/model", data, "runs/x").text(Path("config.yaml"))
    assert check_config(read_text(text, "config")).train_data == data


def test_the_schema_takes_the_configs_of_the_documentation(validator: Any) -> None:
    found = 0
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for block in re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            if "model_name_or_path:" not in block or "train_data:" not in block:
                continue  # a few keys of a config
            raw = read_text(block, page.name)
            check_config(raw)
            assert not list(validator.iter_errors(raw)), page.name
            found += 1
    assert found


BASE = {
    "model_name_or_path": "a/b",
    "train_data": "org/rows",
    "output_dir": "runs/a",
    "coreset": {"method": "grace", "budget": "10%"},
}


@pytest.mark.parametrize(
    "change",
    [
        {"coreset": {"method": {"grace": {"lambda": 0.3}}, "budget": 600, "filters": ["noise"]}},
        {"coreset": {"method": "random", "budget": "2M tokens", "filters": [{"cooldown": {"by": "loss"}}]}},
        {"training": {"learning_rate": 1, "save_strategy": "no", "report_to": ["wandb"]}},
        {"peft": {"r": 4, "target_modules": ["q_proj"]}},
        {"train_data": ["pool.jsonl", {"path": "org/rows", "split": "train[:10%]"}], "eval_fraction": 0.1},
        {"peft": {"peft_type": "IA3", "feedforward_modules": ["down_proj"]}},
    ],
)
def test_the_schema_takes_what_a_run_takes(validator: Any, change: dict[str, Any]) -> None:
    check_config({**BASE, **change})
    assert [error.message for error in validator.iter_errors({**BASE, **change})] == []


@pytest.mark.parametrize(
    "change",
    [
        {"methd": "grace"},
        {"coreset": {"methd": "grace", "budget": 3}},
        {"coreset": {"method": "grase", "budget": 3}},
        {"coreset": {"method": {"grace": {"lamda": 0.3}}, "budget": 3}},
        {"coreset": {"method": "grace", "budget": 3, "filters": ["nose"]}},
        {"training": {"max_step": 3}},
        {"training": {"learning_rate": "1e-3 "}},
        {"training": {"output_dir": "runs/b"}},
        {"peft": {"rr": 4}},
        {"report": "sometimes"},
    ],
)
def test_the_schema_refuses_what_a_run_refuses(validator: Any, change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        check_config({**BASE, **change})
    assert list(validator.iter_errors({**BASE, **change}))


def test_the_schema_is_printed_too() -> None:
    assert json.loads(CliRunner().invoke(app, ["schema"]).stdout) == config_schema()

"""Configs of TRL's command, Axolotl, LLaMA-Factory: each key is taken, or has what to write in its place."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from coretune.cli import app
from coretune.config import ConfigError, RunConfig, check_config
from coretune.other_tools import LEAVE, WRITE
from coretune.stock_fields import LORA, SFT, field_types

CONFIGS = Path(__file__).parent / "configs"
PAGE = (Path(__file__).parents[1] / "docs" / "coming-from.md").read_text(encoding="utf-8")
TOOLS = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
#: Keys whose meaning is part of another key of the config that the page writes.
MEANT = {"dataset_train_split", "dataset_test_split", "dataset_dir", "bnb_4bit_quant_type", "max_samples"}


def given(tool: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CONFIGS / f"{tool}.yaml").read_text(encoding="utf-8"))
    return found


def becomes(tool: str) -> dict[str, Any]:
    """What the page writes for it."""
    (block,) = re.findall(rf"```yaml\n# from tests/configs/{tool}\.yaml\n(.*?)```", PAGE, re.DOTALL)
    found: dict[str, Any] = yaml.safe_load(block)
    return found


@pytest.mark.parametrize("tool", TOOLS)
def test_a_config_of_another_tool_is_answered_key_by_key_in_one_line(tool: str) -> None:
    config = given(tool)
    result = CliRunner().invoke(app, ["preview", str(CONFIGS / f"{tool}.yaml")])
    assert result.exit_code == 1
    line = result.stderr
    assert line.count("\n") == 1
    assert "unknown" not in line
    for key in config:
        if key not in RunConfig.model_fields:
            assert re.search(rf"\b{key}\b", line), key
    assert line.rstrip().endswith("(docs/coming-from.md)")


@pytest.mark.parametrize("tool", TOOLS)
def test_what_the_page_writes_is_a_config_with_every_value(tool: str) -> None:
    config, here = given(tool), becomes(tool)
    check_config(here)
    written = {**here, **here["training"], **here["peft"]}
    for key, value in config.items():
        if key in LEAVE or value is None or value is False:
            continue
        if key in here or key in here["training"]:
            assert written[key] == value, key
        else:
            assert key in WRITE, key
    scalars = {str(value) for value in _scalars(config) if not isinstance(value, bool)}
    assert {"2048", "cosine"} <= scalars & {str(value) for value in _scalars(here)}


def _scalars(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [one for inner in value.values() for one in _scalars(inner)]
    if isinstance(value, list):
        return [one for inner in value for one in _scalars(inner)]
    return [value]


def test_the_page_has_every_key() -> None:
    table = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE.split("## Every key")[1], re.MULTILINE))
    assert table.keys() == WRITE.keys() | LEAVE.keys()
    assert not WRITE.keys() & LEAVE.keys()
    for key, remedy in WRITE.items():
        assert table[key] == remedy.replace("|", "\\|")


def test_no_key_that_is_taken_here_is_sent_away() -> None:
    assert not (WRITE.keys() | LEAVE.keys()) & RunConfig.model_fields.keys()


def test_what_is_to_be_written_is_known_here() -> None:
    """Of `training.x` and `peft.x` in the answers."""
    for key, remedy in WRITE.items():
        for section, name in re.findall(r"\b(training|peft)\.(\w+)", remedy):
            known = field_types(SFT if section == "training" else LORA)
            assert name in known, (key, name)
        for name in re.findall(r"^(\w+):? ", remedy):
            if name in (
                "train_data",
                "eval_data",
                "eval_fraction",
                "corpus_dir",
                "model_name_or_path",
                "train_on",
            ):
                assert name in RunConfig.model_fields


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"learning_rate": 1e-4}, "unknown key learning_rate, did you mean 'training.learning_rate'?"),
        ({"learning_rate": 1e-4, "bf16": True}, "put below training: learning_rate, bf16"),
        (
            {"base_model": "m", "quixotic": 1},
            "base_model is written as model_name_or_path; unknown: quixotic",
        ),
        ({"streaming": True}, "leave out streaming (rows are chosen from a pool that is read whole)"),
    ],
)
def test_keys_are_answered_together(keys: dict[str, Any], says: str) -> None:
    small = {"model_name_or_path": "m", "train_data": "d", "output_dir": "o"}
    with pytest.raises(ConfigError, match=re.escape(says)):
        check_config({**small, "coreset": {"method": "random", "budget": 2}, **keys})


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("type", "of another tool: formats are recognised, leave it out"),
        ("field_messages", "of another tool: write columns: {messages: …}"),
    ],
)
def test_keys_of_an_entry_are_answered_too(key: str, says: str) -> None:
    small = {"model_name_or_path": "m", "output_dir": "o", "coreset": {"method": "random", "budget": 2}}
    with pytest.raises(ConfigError, match=re.escape(says)):
        check_config({**small, "train_data": [{"path": "a.jsonl", key: "x"}]})


def test_the_tests_that_the_page_names_are_there() -> None:
    named = set(re.findall(r"`(test_\w+\.py)`", PAGE))
    assert len(named) > 15
    assert not {name for name in named if not (Path(__file__).parent / name).is_file()}

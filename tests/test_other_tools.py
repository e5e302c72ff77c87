"""Configs of TRL's command, Axolotl, LLaMA-Factory: each key is taken, or has what to write in its place."""

from __future__ import annotations

import re
from dataclasses import fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from coretune.cli import app
from coretune.config import ConfigError, RunConfig, check_config
from coretune.data.sources import Source
from coretune.other_tools import answer
from coretune.other_tools_keys import LEAVE, LEAVE_IN_AN_ENTRY, WRITE, WRITE_IN_AN_ENTRY
from coretune.stock_fields import LORA, SFT, field_types

CONFIGS = Path(__file__).parent / "configs"
PAGE = (Path(__file__).parents[1] / "docs" / "coming-from.md").read_text(encoding="utf-8")
TOOLS = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
#: Those, and longer ones whose keys the page answers without writing a whole config.
EVERY = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml"))
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


@pytest.mark.parametrize("file", EVERY)
def test_a_config_of_another_tool_is_answered_key_by_key_in_one_line(file: str) -> None:
    config = given(file.removesuffix(".yaml"))
    result = CliRunner().invoke(app, ["preview", str(CONFIGS / file)])
    assert result.exit_code == 1
    line = result.stderr
    assert line.count("\n") == 1
    assert "unknown" not in line
    entries = [entry for name in ("datasets", "test_datasets") for entry in config.get(name, [])]
    foreign = {key for entry in entries for key in entry} - {one.name for one in fields(Source)}
    for key in {*config, *foreign} - RunConfig.model_fields.keys():
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
    top, of_an_entry = PAGE.split("## Every key")[1].split("## Keys of an entry")
    for page, write, leave in ((top, WRITE, LEAVE), (of_an_entry, WRITE_IN_AN_ENTRY, LEAVE_IN_AN_ENTRY)):
        said = dict(write)
        said |= {key: f"leave it out: {text}" for key, text in leave.items()}
        rows = re.findall(r"^\| (`.*`) \| (.*) \|$", page, re.MULTILINE)
        assert {key: text for keys, text in rows for key in re.findall(r"`([\w*]+)`", keys)} == said
        assert not write.keys() & leave.keys()


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("galore_rank", "training.optim: galore_adamw"),
        ("dpo_beta", "leave out dpo_beta (this is sft; preference data: docs/data.md)"),
        ("lora_mlp_kernel", "leave out lora_mlp_kernel (layers and weights are as transformers has them)"),
        ("swanlab_experiment_name", "training.run_name"),  # its own line, and no pattern's
        ("tensor_parallel_size", "each process takes rows of its own"),
    ],
)
def test_a_pattern_answers_the_keys_that_it_fits_and_a_name_goes_first(key: str, says: str) -> None:
    assert says in str(answer({key: 1}, ()))


def test_no_pattern_fits_a_key_that_is_known_here_or_another_name() -> None:
    patterns = [name for name in (*WRITE, *LEAVE) if "*" in name]
    assert len(patterns) > 20
    below = field_types(SFT).keys() - (WRITE.keys() | LEAVE.keys())  # these go below `training` before
    for key in RunConfig.model_fields.keys() | {"coreset", "methd", "model_nam_or_path", "trian_data"}:
        assert not [pattern for pattern in patterns if fnmatchcase(key, pattern)], key
    for key in below:
        assert answer({key: 1, "zz": 1}, field_types(SFT)) is None, key


def test_every_key_of_trls_command_is_answered() -> None:
    """Of its own classes; those of SFTConfig are known as fields of `training`."""
    classes = (
        ("scripts/utils.py", "ScriptArguments"),
        ("scripts/utils.py", "DatasetMixtureConfig"),
        ("trainer/model_config.py", "ModelConfig"),
    )
    keys = [key for file, name in classes for key in field_types((("trl", file, name),))]
    assert len(keys) > 20
    for key in keys:
        assert key in RunConfig.model_fields or answer({key: 1}, field_types(SFT)), key


def test_no_key_that_is_taken_here_is_sent_away() -> None:
    assert not (WRITE.keys() | LEAVE.keys()) & RunConfig.model_fields.keys()


def test_what_is_to_be_written_is_known_here() -> None:
    """Of `training.x` and `peft.x` in the answers."""
    for key, remedy in [*WRITE.items(), *WRITE_IN_AN_ENTRY.items()]:
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
        ({"base_model": "m", "quixotic": 1}, "base_model → model_name_or_path; unknown: quixotic (docs"),
        (
            {"base_model": "m", "methd": 1, "lora_rnk": 8},
            "unknown: methd (did you mean 'coreset.method'?), lora_rnk (did you mean 'lora_rank'?)",
        ),
        ({"streaming": True}, "leave out streaming (rows are chosen from a pool that is read whole)"),
        (
            {"datasets": [{"path": "a", "type": "alpaca", "ds_type": "json", "field_output": "o"}]},
            "in the entries of datasets: field_output → columns: {output: …}, leave out type, ds_type (",
        ),
        ({"training": {"micro_batch_size": 2, "cutoff_len": 9}}, "training: micro_batch_size → training.per"),
        (
            {"peft": {"lora_rank": 2, "lora_target": "all"}},
            "peft: lora_rank → peft.r; lora_target → peft.tar",
        ),
    ],
)
def test_keys_are_answered_together(keys: dict[str, Any], says: str) -> None:
    small = {"model_name_or_path": "m", "train_data": "d", "output_dir": "o"}
    with pytest.raises(ConfigError, match=re.escape(says)):
        check_config({**small, "coreset": {"method": "random", "budget": 2}, **keys})


def test_the_keys_of_an_entry_are_answered_together() -> None:
    small = {"model_name_or_path": "m", "output_dir": "o", "coreset": {"method": "random", "budget": 2}}
    entry = {"path": "a.jsonl", "type": "x", "field_messages": "y", "shards": 4}
    says = 'keys of another tool: field_messages → columns: {messages: …}; shards → split: "train[:10%]"; '
    with pytest.raises(ConfigError, match=re.escape(says + "leave out type (formats are recognised)")):
        check_config({**small, "train_data": [entry]})


def test_the_tests_that_the_page_names_are_there() -> None:
    named = set(re.findall(r"`(test_\w+\.py)`", PAGE))
    assert len(named) > 15
    assert not {name for name in named if not (Path(__file__).parent / name).is_file()}

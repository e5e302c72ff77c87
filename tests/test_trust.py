"""A model folder may bring Python of its own. It runs where the config says so, and nowhere else."""

from __future__ import annotations

import builtins
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_run import model_folder, records, write_jsonl
from typer.testing import CliRunner

from coretune.cli import app

MARK = 'from pathlib import Path\nPath({ran!r}).open("a").write("{what} ")\n'
MODEL = """
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""
TOKENIZER = """
from transformers import PreTrainedTokenizerFast
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def with_own_code(folder: Path, ran: Path, parts: tuple[str, ...]) -> Path:
    """The tiny model as a folder with Python for its `parts`; what is run is noted in the file `ran`."""
    shutil.copytree(model_folder(), folder)
    if "tokenizer" in parts:
        (folder / "own_tokenizer.py").write_text(MARK.format(ran=str(ran), what="tokenizer") + TOKENIZER)
        auto = {"AutoTokenizer": [None, "own_tokenizer.OwnTokenizer"]}
        edit(folder / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=auto)
    if "model" in parts:
        (folder / "own_model.py").write_text(MARK.format(ran=str(ran), what="model") + MODEL)
        auto = {"AutoConfig": "own_model.OwnConfig", "AutoModelForCausalLM": "own_model.OwnModel"}
        edit(folder / "config.json", model_type="own", auto_map=auto)
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the standard input was asked; its answer is always yes, as from `yes | coretune train`."""
    questions: list[str] = []

    def yes(question: str = "") -> str:
        questions.append(question)
        return "yes"

    monkeypatch.setattr(builtins, "input", yes)
    return questions


def command(folder: Path, name: str, model: Path, **training: Any) -> Any:
    config = {
        "model_name_or_path": str(model),
        "train_data": str(write_jsonl(folder / "pool.jsonl", records(16))),
        "output_dir": str(folder / "run"),
        "coreset": {"method": "random", "budget": "50%"},
        "training": {"max_steps": 1, "per_device_train_batch_size": 2, "save_strategy": "no", **training},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return CliRunner().invoke(app, [name, str(path)], input="yes\n" * 20)


@pytest.mark.parametrize("parts", [("tokenizer",), ("model",)])
@pytest.mark.parametrize("name", ["train", "plan"])
def test_code_of_a_model_folder_is_not_run_whatever_the_standard_input_says(
    tmp_path: Path, asked: list[str], parts: tuple[str, ...], name: str
) -> None:
    model = with_own_code(tmp_path / "model", tmp_path / "ran", parts)
    result = command(tmp_path, name, model)
    assert result.exit_code == 1
    assert "trust_remote_code" in result.stderr
    assert not asked
    assert not (tmp_path / "ran").exists()


def test_a_null_is_no_permission(tmp_path: Path, asked: list[str]) -> None:
    model = with_own_code(tmp_path / "model", tmp_path / "ran", ("model", "tokenizer"))
    for kwargs in ({"trust_remote_code": None}, '{"trust_remote_code": null}'):
        assert command(tmp_path, "train", model, model_init_kwargs=kwargs).exit_code == 1
    assert not asked
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "where", [{"trust_remote_code": True}, {"model_init_kwargs": {"trust_remote_code": True}}]
)
def test_code_that_the_config_allows_is_run_for_tokenizer_config_and_model(
    tmp_path: Path, asked: list[str], where: dict[str, Any]
) -> None:
    model = with_own_code(tmp_path / "model", tmp_path / "ran", ("model", "tokenizer"))
    result = command(tmp_path, "train", model, **where)
    assert result.exit_code == 0, result.stderr
    assert not asked
    assert set((tmp_path / "ran").read_text().split()) == {"model", "tokenizer"}

"""An adapter on the hub as the model: from the hub's cache on this machine, without a network."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from test_adapter_model import FILE, TRAINING, raw
from tiny_run import model_folder, trainer
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from coretune import run
from coretune.adapter_folder import ADAPTER, located
from coretune.cli import app
from coretune.commands.trained_model import load
from coretune.config import ConfigError, check_config

NAME, BASE = "people/adapter", "people/base"
WEIGHTS = "model.safetensors"


def repository(cache: Path, name: str, **refs: Path) -> None:
    """As the hub's library leaves a repository on a disk: each ref with the files of a folder."""
    place = cache / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True, exist_ok=True)
    for number, (ref, folder) in enumerate(refs.items(), 1):
        commit = f"{number:040d}"
        (place / "refs" / ref).write_text(commit)
        shutil.copytree(folder, place / "snapshots" / commit)


def scaled(folder: Path, file: str, to: Path, by: float) -> Path:
    shutil.copytree(folder, to)
    weights = {name: value * by for name, value in load_file(to / file).items()}
    save_file(weights, to / file, metadata={"format": "pt"})
    return to


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with a base of two revisions, and an adapter of two that notes the base's second, v1."""
    folder = tmp_path_factory.mktemp("hub")
    cache, base = folder / "cache", AutoModelForCausalLM.from_pretrained(str(model_folder()))
    repository(cache, BASE, main=model_folder(), v1=scaled(model_folder(), WEIGHTS, folder / "base", 0.5))
    settings = LoraConfig(
        r=2, init_lora_weights=False, target_modules=["q_proj"], task_type="CAUSAL_LM", revision="v1"
    )
    made = get_peft_model(base, settings)
    made.active_peft_config.base_model_name_or_path = BASE
    made.save_pretrained(folder / "first")
    noted = json.loads((folder / "first" / ADAPTER).read_text())
    assert (noted["base_model_name_or_path"], noted["revision"]) == (BASE, "v1")
    (folder / "first" / "checkpoint-3").mkdir()
    repository(cache, NAME, main=folder / "first", v2=scaled(folder / "first", FILE, folder / "second", 2))
    return cache


@pytest.fixture
def cache(kept: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(kept))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return kept


def weights_of(cache: Path, name: str, number: int, file: str) -> dict[str, torch.Tensor]:
    place = cache / f"models--{name.replace('/', '--')}" / "snapshots" / f"{number:040d}"
    return load_file(place / file)


def answered(*arguments: object, lines: str = "") -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=lines)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_run_goes_on_from_an_adapter_on_the_hub(cache: Path, tmp_path: Path) -> None:
    """Its own revision is asked for, its base's is noted: what is saved notes that again."""
    section = {**TRAINING, "learning_rate": 1e-6, "model_init_kwargs": {"revision": "v2"}}
    made = run.train(
        check_config(raw(tmp_path, Path(NAME), training=section, evaluate={"rows": 2}, eval_fraction=0.2))
    )
    before, after = weights_of(cache, NAME, 2, FILE), load_file(tmp_path / "run" / FILE)
    assert before.keys() == after.keys()
    for key, value in after.items():
        assert not torch.equal(value, before[key])
        assert torch.allclose(value, before[key], atol=1e-4)
    base = weights_of(cache, BASE, 2, WEIGHTS)["model.layers.0.mlp.up_proj.weight"]
    assert torch.equal(made.model.get_decoder().layers[0].mlp.up_proj.weight, base)
    noted = json.loads((tmp_path / "run" / ADAPTER).read_text())
    assert (noted["base_model_name_or_path"], noted["revision"]) == (BASE, "v1")
    written = yaml.safe_load((tmp_path / "run" / "_coretune" / "config.yaml").read_text())
    assert written["model_name_or_path"] == NAME
    assert written["training"]["model_init_kwargs"] == {"revision": "v2"}
    again, _ = load(tmp_path / "run")  # as merge and chat do
    assert torch.equal(again.get_decoder().layers[0].mlp.up_proj.weight, base)


def test_an_adapter_on_the_hub_is_a_model_in_python_too(cache: Path, tmp_path: Path) -> None:
    made = trainer(tmp_path, model=NAME, model_init_kwargs={"dtype": "float32"})
    for name, value in weights_of(cache, NAME, 1, FILE).items():
        assert torch.equal(made.model.get_parameter(name.replace(".weight", ".default.weight")), value)


def test_commands_take_an_adapter_on_the_hub_as_they_take_a_folder(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    raw(tmp_path, Path(NAME))  # pool.jsonl
    answered("init", "first.yaml", "--model", NAME, "--data", "pool.jsonl")
    written = yaml.safe_load(Path("first.yaml").read_text())
    assert written["model_name_or_path"] == NAME
    assert "peft" not in written
    told = json.loads(answered("preview", "first.yaml", "--json"))
    assert (told["model_name_or_path"], told["rows"]) == (NAME, 16)
    few = ("coreset.method=random", "coreset.budget=50%", "training.max_steps=2", "training.use_cpu=true")
    answered("select", "first.yaml", *few, "--quiet")
    assert len((tmp_path / "runs/pool/_coretune/coreset.jsonl").read_text().splitlines()) == 8
    answered("plan", "first.yaml", *few, "output_dir=plan", "--quiet")
    answered("chat", NAME, "--max-new-tokens", 2, lines="one\n")
    answered("merge", NAME, "--output", "merged")
    merged = AutoModelForCausalLM.from_pretrained("merged")
    base = weights_of(cache, BASE, 2, WEIGHTS)
    assert torch.equal(merged.model.layers[0].mlp.up_proj.weight, base["model.layers.0.mlp.up_proj.weight"])
    assert not torch.allclose(
        merged.model.layers[0].self_attn.q_proj.weight, base["model.layers.0.self_attn.q_proj.weight"]
    )
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["merged", "plan", "runs"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("merge", NAME), "people/adapter is an adapter on the hub: give --output"),
        (("merge", "people/nothing"), "is no folder, and no adapter on the hub that can be reached"),
        (("chat", "people/nothing"), "is no folder, and no adapter on the hub that can be reached"),
        (("preview", "config.yaml", "peft.r=4"), "is people/adapter, an adapter, which .* leave peft out"),
        (("preview", "config.yaml", "model_name_or_path=people/nothing"), "people/nothing, and no tokenizer"),
        (("init", "new.yaml", "--model", NAME, "--data", "pool.jsonl", "--full"), "leave --full out"),
        (("preview", "config.yaml", f"model_name_or_path={BASE}", "load_in_4bit=true"), "add a section peft"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_an_adapter_on_the_hub_is_one_line(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(yaml.safe_dump(raw(tmp_path, Path(NAME))), encoding="utf-8")
    result = CliRunner().invoke(app, list(arguments))
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1), result.output
    assert re.search(says, result.stderr), result.stderr


def test_an_adapter_whose_weights_cannot_be_had_is_one_line(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    other = Path(shutil.copytree(kept, tmp_path / "cache"))
    for path in other.rglob(FILE):
        path.unlink()
    with pytest.raises(ConfigError, match="is an adapter on the hub, and its weights are not in the hub's"):
        located(NAME, {"cache_dir": str(other)})


def test_a_model_that_is_no_adapter_is_named_as_before(cache: Path) -> None:
    how: dict[str, Any] = {"revision": "v1", "dtype": "float32"}
    for name in (BASE, "people/nothing", str(model_folder()), "no name at all", "/gone/model"):
        assert located(name, how) == (name, how)


def test_an_adapter_in_a_folder_of_a_repository_is_found_there(kept: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(next(kept.glob("models--people--adapter/snapshots/*")), whole / "last")
    repository(tmp_path / "cache", "people/several", main=whole)
    where = {"cache_dir": str(tmp_path / "cache"), "local_files_only": True, "subfolder": "last"}
    folder, how = located("people/several", where)
    assert Path(folder).name == "last"
    assert (Path(folder) / FILE).is_file()
    del where["subfolder"]  # the base has none of that name
    assert how == {**where, "revision": "v1"}

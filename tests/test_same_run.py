"""A checkpoint is gone on from with the very bytes, model, arguments and weights that it was saved with."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from four_steps import SAVING, TOKENIZER, a_trainer
from tiny_run import Spy, arguments, coreset_config, model_folder, records, trainer, write_jsonl
from tiny_tokenizer import tiny_tokenizer
from transformers import AutoModelForCausalLM
from trl import SFTConfig

from coretune.data.corpus import Corpus
from coretune.rounds.quota_request import parse_quota
from coretune.training import identity
from coretune.training.checkpoints import RECORD, _read, _write, newest_whole, why_not_whole
from coretune.training.compared_arguments import COUNTED, MAY_DIFFER, WITHOUT_EFFECT, compared
from coretune.training.identity import model_parts
from coretune.training.resume import find_checkpoint

pytestmark = pytest.mark.xdist_group("same run")  # most go on from one run's checkpoints


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a finished run of four steps, with checkpoints at the second and the fourth."""
    folder = tmp_path_factory.mktemp("run")
    a_trainer(folder).train()
    return folder


# ------------------------------------------------------------------------------------------------- damage


def flip(path: Path) -> None:
    """One bit in the middle; the size stays."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit(key: str, value: Any, path: Path) -> None:
    state = json.loads(path.read_text())
    path.write_text(json.dumps({**state, key: value}, indent=2, sort_keys=True) + "\n")


DAMAGED: dict[str, list[Callable[[Path], None]]] = {
    "model.safetensors": [flip],
    "optimizer.pt": [flip],
    "scheduler.pt": [flip],
    "rng_state.pth": [flip],
    "coreset_state.npz": [flip],
    "coretune_ledger.json": [flip],
    "config.json": [flip],
    "trainer_state.json": [partial(edit, "global_step", 3), partial(edit, "log_history", [])],
    RECORD: [partial(edit, "step", 3), partial(edit, "files", {})],
}


@pytest.mark.parametrize(("name", "change"), [(n, c) for n, some in DAMAGED.items() for c in some])
def test_a_checkpoint_with_a_changed_file_is_passed_over_and_the_file_is_named(
    tmp_path: Path, run: Path, name: str, change: Callable[[Path], None]
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    change(copy / "checkpoint-4" / name)
    whole, ((passed, reason),) = newest_whole(copy)
    assert (whole, passed) == (copy / "checkpoint-2", copy / "checkpoint-4")
    assert name in reason


def test_every_file_that_a_resume_reads_is_listed_with_its_checksum(run: Path) -> None:
    listed = json.loads((run / "checkpoint-4" / RECORD).read_text())["files"]
    there = {path.name for path in (run / "checkpoint-4").iterdir()}
    assert set(listed) == there - {RECORD}
    assert set(DAMAGED) <= there


def test_damage_at_the_newest_checkpoint_costs_its_steps_and_nothing_else(
    tmp_path: Path, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (2, 4):
        shutil.copytree(run / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    flip(tmp_path / "checkpoint-4" / "optimizer.pt")
    with caplog.at_level(logging.WARNING, logger="coretune"):
        resumed = a_trainer(tmp_path)
        resumed.train(resume_from_checkpoint=True)
    assert "optimizer.pt is damaged" in caplog.text
    assert len(resumed.trained) == 2
    assert why_not_whole(tmp_path / "checkpoint-4") is None  # written anew
    for name in ("model.safetensors", "optimizer.pt"):
        there, here = (root / "checkpoint-4" / name for root in (run, tmp_path))
        assert there.read_bytes() == here.read_bytes(), name
    flip(tmp_path / "checkpoint-2" / "model.safetensors")
    with pytest.raises(ValueError, match=r"checkpoint-2 is not whole: model.safetensors is damaged"):
        a_trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_checkpoint_cut_before_the_checksum_of_its_state_is_whole(tmp_path: Path, run: Path) -> None:
    """The stock trainer deletes older checkpoints before that checksum is written: this one must count."""
    copy = shutil.copytree(run / "checkpoint-4", tmp_path / "checkpoint-4")
    note = _read(copy)
    del note["files"]["trainer_state.json"]
    _write(copy, note)
    assert why_not_whole(copy) is None


def of_another_version(change: Callable[[dict[str, Any]], object], path: Path) -> None:
    note = _read(path.parent)
    change(note)
    _write(path.parent, note)


@pytest.mark.parametrize(
    "change",
    [
        lambda note: note.pop("around"),
        lambda note: note.pop("weights"),
        lambda note: note["schedule"].update(unheard_of=1),
        lambda note: note.update(batches=3),
    ],
)
def test_a_checkpoint_of_another_version_is_passed_over_with_the_reason(
    tmp_path: Path, run: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    of_another_version(change, copy / "checkpoint-4" / RECORD)
    found, passed_over = newest_whole(copy)
    assert found == copy / "checkpoint-2"
    assert [reason.partition(": go on")[0] for _, reason in passed_over] == [
        f"{RECORD} is of another version of coretune"
    ]


@pytest.mark.parametrize("name", [RECORD, "trainer_state.json", "optimizer.pt"])
def test_a_checkpoint_that_cannot_be_read_is_passed_over_with_the_file(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As where another user made it; nothing is begun anew in its place."""
    copy = shutil.copytree(run, tmp_path / "run")
    open_path = Path.open

    def closed(path: Path, *given: Any, **named: Any) -> Any:
        if path == copy / "checkpoint-4" / name:
            raise PermissionError(13, "Permission denied", str(path))
        return open_path(path, *given, **named)

    monkeypatch.setattr(Path, "open", closed)
    found, passed_over = newest_whole(copy)
    assert found == copy / "checkpoint-2"
    assert passed_over == [(copy / "checkpoint-4", f"{name} cannot be read (Permission denied)")]
    shutil.rmtree(copy / "checkpoint-2")
    with pytest.raises(ValueError, match=rf"can be gone on from \(.*{name} cannot be read \(Permission"):
        find_checkpoint(str(copy), True)


# ---------------------------------------------------------------------------------------------- arguments

CHANGED = {
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 1,
    "max_grad_norm": 0.1,
    "weight_decay": 0.1,
    "adam_beta2": 0.9,
    "optim": "adafactor",
    "neftune_noise_alpha": 5.0,
    "label_smoothing_factor": 0.1,
    "seed": 1,
    "loss_type": "dft",
    "average_tokens_across_devices": False,
}


@pytest.mark.parametrize("name", ["learning_rate", "optim", "neftune_noise_alpha"])
def test_a_run_that_goes_on_with_another_argument_is_refused_and_both_values_are_named(
    tmp_path: Path, run: Path, name: str
) -> None:
    other = a_trainer(tmp_path, **{name: CHANGED[name]})
    with pytest.raises(ValueError, match=rf"is of another run: settings .*training.{name} .*, here .*"):
        other.train(resume_from_checkpoint=str(run / "checkpoint-2"))


@pytest.mark.parametrize("name", CHANGED)
def test_an_argument_that_changes_the_run_is_compared(tmp_path: Path, name: str) -> None:
    (strict, _), (other, _) = (
        compared(arguments(tmp_path, **given), {}) for given in ({}, {name: CHANGED[name]})
    )
    assert {key for key in strict if strict[key] != other[key]} == {f"training.{name}"}


def test_every_argument_is_compared_or_one_of_those_that_do_not_decide(tmp_path: Path) -> None:
    args = arguments(tmp_path)
    strict, around = compared(args, {})
    for name in SFTConfig.__dataclass_fields__:
        places = (f"training.{name}" in strict, f"training.{name}" in around)
        if name.startswith((*WITHOUT_EFFECT, *COUNTED)):
            assert not places[0], name
        else:
            assert places == (not name.startswith(MAY_DIFFER), name.startswith(MAY_DIFFER)), name


def test_an_optimizer_of_the_users_with_other_settings_is_refused(tmp_path: Path) -> None:
    def with_adam(folder: Path, rate: float) -> Spy:
        model = AutoModelForCausalLM.from_pretrained(model_folder())
        adam = torch.optim.AdamW(model.parameters(), lr=rate)
        return a_trainer(folder, model=model, optimizers=(adam, None))

    with_adam(tmp_path / "one", 1e-3).train()
    with pytest.raises(ValueError, match=r"settings .*optimizer AdamW .*0.001.*, here AdamW .*0.002"):
        with_adam(tmp_path / "two", 2e-3).train(str(tmp_path / "one" / "checkpoint-2"))


def test_what_may_change_within_a_run_is_named(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    known = identity.versions()
    monkeypatch.setattr("coretune.training.resume.versions", lambda: {**known, "torch": "9.9"})
    other = a_trainer(tmp_path, max_steps=6, gradient_checkpointing=False, logging_steps=1)
    other.held_out = SimpleNamespace(fingerprint="other rows")
    with caplog.at_level(logging.WARNING, logger="coretune"):
        other.train(resume_from_checkpoint=str(run / "checkpoint-4"))
    assert other.state.global_step == 6
    said = "\n".join(record.getMessage() for record in caplog.records if record.name == "coretune")
    assert f"torch {known['torch']}, here 9.9" in said
    assert "training.gradient_checkpointing true, here false" in said
    assert "max_steps was 4 and is 6" in said
    assert "held-out rows not set, here other rows" in said
    assert "logging_steps" not in said


# ---------------------------------------------------------------------------------------- the same weights


def another_config(folder: Path, **entries: Any) -> Path:
    """The tiny model's folder with the same weights and other entries in config.json."""
    shutil.copytree(model_folder(), folder)
    known = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**known, **entries}))
    return folder


@pytest.mark.parametrize(
    ("name", "value"), [("rms_norm_eps", 1e-2), ("hidden_act", "gelu"), ("attention_dropout", 0.5)]
)
def test_the_same_weights_under_another_config_are_another_model(
    tmp_path: Path, run: Path, name: str, value: Any
) -> None:
    folder = another_config(tmp_path / "model", **{name: value})
    other = a_trainer(tmp_path, model=str(folder))
    with pytest.raises(ValueError, match=rf"settings .*model.{name} .*, here .*{value}"):
        other.train(resume_from_checkpoint=str(run / "checkpoint-2"))
    same = AutoModelForCausalLM.from_pretrained(model_folder())
    here, there = (model_parts(model, tiny_tokenizer()) for model in (other.model, same))
    assert {part for part in here if here[part] != there[part]} == {"config"}


def test_a_store_of_signals_is_of_config_and_versions_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder that a first measurement goes into, or is taken from."""

    def parts(model: str) -> dict[str, str]:
        return dict(trainer(tmp_path / "run", model=model).signals.parts([]))

    plain = parts(str(model_folder()))
    other = parts(str(another_config(tmp_path / "model", rms_norm_eps=1e-2)))
    assert {name for name in plain if plain[name] != other[name]} == {"config"}
    monkeypatch.setattr("coretune.installed.version", lambda name: "9.9" if name == "peft" else version(name))
    newer = parts(str(model_folder()))
    assert {name for name in plain if plain[name] != newer[name]} == {"peft"}


def test_another_attention_is_refused(tmp_path: Path, run: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder(), attn_implementation="eager")
    with pytest.raises(ValueError, match=r"model.attention sdpa, here eager"):
        a_trainer(tmp_path, model=model).train(resume_from_checkpoint=str(run / "checkpoint-2"))


def test_other_sources_under_a_quota_are_another_run(tmp_path: Path) -> None:
    """No token changes with them, and the rows that are chosen do."""

    def with_sources(folder: Path, names: str) -> Spy:
        rows = [{**row, "source": names[i % 2]} for i, row in enumerate(records(24))]
        file = write_jsonl(tmp_path / f"{folder.name}.jsonl", rows)
        pool = Corpus.build(file, TOKENIZER, max_length=96)
        config = replace(coreset_config("random"), quota=parse_quota({"source": {"a": 0.5}}))
        return trainer(folder, config, pool=pool, **SAVING)

    with_sources(tmp_path / "one", "ab").train()
    checkpoint = str(tmp_path / "one" / "checkpoint-2")
    with pytest.raises(ValueError, match=r"is of another run: sources \w{16} there and \w{16} here"):
        with_sources(tmp_path / "two", "ba").train(resume_from_checkpoint=checkpoint)

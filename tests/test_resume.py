"""Checkpoints: a resumed run is the same run, half-written ones are passed over, other runs' are refused."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from tiny_run import Spy, coreset_config, corpus, model_folder, trainer, weights
from transformers import AutoModelForCausalLM

from coretune.measure.settings import MeasureSettings
from coretune.rounds.state import load
from coretune.training.checkpoints import RECORD, newest_whole, why_not_whole
from coretune.training.refusals import can_weigh

pytestmark = pytest.mark.xdist_group("resume")  # most go on from one run's checkpoints
RESUMABLE = {"save_strategy": "steps", "max_steps": 11, "lr_scheduler_type": "cosine"}


def a_long_config(method: str = "grace", **settings: Any) -> Any:
    # Rounds of 3 steps: the warm-up fills the first, then a selection each.
    usual = {"warmup": 0.25, "refresh_every": 3, "anchors": "priority", "anchor_share": 0.3}
    return coreset_config(method, **{**usual, **settings})


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Spy]:
    folder = tmp_path_factory.mktemp("whole")
    made = trainer(folder, a_long_config(), save_steps=1, **RESUMABLE)
    made.train()
    assert made.schedule.steps == 3
    return folder, made


@pytest.mark.parametrize("at", [2, 3, 4, 6, 8])
def test_a_resumed_run_is_the_uninterrupted_one(
    tmp_path: Path, uninterrupted: tuple[Path, Spy], at: int
) -> None:
    """At a round's border (3, 6) and in the middle of one, of the warm-up (2) and of a coreset (4, 8)."""
    folder, whole = uninterrupted
    shutil.copytree(folder / f"checkpoint-{at}", tmp_path / f"checkpoint-{at}")
    resumed = trainer(tmp_path, a_long_config(), save_steps=100, **RESUMABLE)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.trained == whole.trained[at:]
    for name, value in weights(whole).items():
        assert torch.equal(weights(resumed)[name], value), name
    for theirs, ours in zip(resumed.ledger.rounds, whole.ledger.rounds, strict=True):
        assert (theirs.round, theirs.rows_measured, theirs.overlap) == (
            ours.round,
            ours.rows_measured,
            ours.overlap,
        )
    for name in ("warm-up", "measurement", "training"):
        mine, other = resumed.ledger.by_phase()[name], whole.ledger.by_phase()[name]
        assert (mine.rows, mine.tokens, mine.flops) == (other.rows, other.tokens, other.flops), name


def test_a_checkpoint_of_another_pool_or_of_no_coreset_is_refused(
    tmp_path: Path, uninterrupted: tuple[Path, Spy]
) -> None:
    folder, _ = uninterrupted
    other = trainer(tmp_path, a_long_config(), pool=corpus(40, 1), **RESUMABLE)
    with pytest.raises(ValueError, match=r"is of another run: data .* there and .* here .give the rows"):
        other.train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    with pytest.raises(ValueError, match=r"no checkpoint in .* that is whole"):
        trainer(tmp_path, a_long_config(), **RESUMABLE).train(resume_from_checkpoint=True)
    with pytest.raises(FileNotFoundError, match="it is no checkpoint of a run on a coreset"):
        trainer(tmp_path, a_long_config(), **RESUMABLE).train(resume_from_checkpoint=str(model_folder()))


def test_a_checkpoint_holds_the_state_of_its_round(uninterrupted: tuple[Path, Spy]) -> None:
    folder, _ = uninterrupted
    for step in range(1, 12):
        assert load(folder / f"checkpoint-{step}").round == (step - 1) // 3


def test_a_run_that_is_over_makes_no_step_more(tmp_path: Path, uninterrupted: tuple[Path, Spy]) -> None:
    """Inside a round, where the stock loop reads max_steps only after another step."""
    folder, whole = uninterrupted
    resumed = trainer(tmp_path, a_long_config(), save_steps=100, **RESUMABLE)
    resumed.train(resume_from_checkpoint=str(folder / "checkpoint-11"))
    assert resumed.trained == []
    assert resumed.state.global_step == 11
    for name, value in weights(whole).items():
        assert torch.equal(weights(resumed)[name], value), name


# --------------------------------------------------------------------------------------------- half-written


@pytest.mark.parametrize(
    "name",
    [RECORD, "trainer_state.json", "coreset_state.npz", "model.safetensors", "optimizer.pt", "rng_state.pth"],
)
def test_a_checkpoint_without_all_of_a_file_is_not_whole(
    tmp_path: Path, uninterrupted: tuple[Path, Spy], name: str
) -> None:
    copy = shutil.copytree(uninterrupted[0] / "checkpoint-4", tmp_path / "checkpoint-4")
    assert why_not_whole(copy) is None
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: len(content) // 2])
    assert name in str(why_not_whole(copy))
    (copy / name).unlink()
    assert name in str(why_not_whole(copy))
    assert newest_whole(tmp_path) == (None, [(copy, why_not_whole(copy))])


def test_the_newest_whole_checkpoint_is_gone_on_from_and_the_others_are_named(
    tmp_path: Path, uninterrupted: tuple[Path, Spy], caplog: pytest.LogCaptureFixture
) -> None:
    folder, whole = uninterrupted
    for step in (3, 8, 9):
        shutil.copytree(folder / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-9" / "trainer_state.json").unlink()
    (tmp_path / "checkpoint-8" / "optimizer.pt").write_bytes(b"half")
    (tmp_path / "checkpoint-10").mkdir()
    with caplog.at_level(logging.WARNING, logger="coretune"):
        resumed = trainer(tmp_path, a_long_config(), save_steps=8, **RESUMABLE)
        resumed.train(resume_from_checkpoint=True)
    said = [record.getMessage() for record in caplog.records if "passed over" in record.getMessage()]
    assert [Path(line.split()[2].rstrip(",")).name for line in said] == [
        f"checkpoint-{n}" for n in (10, 9, 8)
    ]
    assert "trainer_state.json is missing" in said[1]
    assert "optimizer.pt has 4 bytes and had" in said[2]
    assert resumed.trained == whole.trained[3:]
    assert why_not_whole(tmp_path / "checkpoint-8") is None  # written anew


def test_a_half_written_checkpoint_is_never_loaded(tmp_path: Path, uninterrupted: tuple[Path, Spy]) -> None:
    half = shutil.copytree(uninterrupted[0] / "checkpoint-9", tmp_path / "checkpoint-9")
    (half / "trainer_state.json").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-9 is not whole: .* give another checkpoint"):
        trainer(tmp_path, a_long_config(), **RESUMABLE).train(str(half))


def test_a_checkpoint_that_is_written_anew_keeps_nothing_of_the_old(
    tmp_path: Path, uninterrupted: tuple[Path, Spy]
) -> None:
    shutil.copytree(uninterrupted[0] / "checkpoint-3", tmp_path / "checkpoint-3")
    (tmp_path / "checkpoint-4").mkdir()
    (tmp_path / "checkpoint-4" / "rng_state_3.pth").write_bytes(b"of a run of four processes")
    made = trainer(tmp_path, a_long_config(), save_steps=4, **RESUMABLE)
    made.train(resume_from_checkpoint=True)
    assert not (tmp_path / "checkpoint-4" / "rng_state_3.pth").exists()


# ------------------------------------------------------------------------------------------- another run


def other_model(folder: Path) -> Path:
    """The tiny model with one weight changed, its tokenizer beside it."""
    shutil.copytree(model_folder(), folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1e-3
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("settings", "coreset", "message"),
    [
        (
            {"pool": corpus(48, 1)},
            {},
            r"data \w{16} there and \w{16} here \(give the rows the run began with",
        ),
        ({"model": "other"}, {}, r"model \w{16} there and \w{16} here \(give the model the run began with"),
        ({"target": corpus(12, 1)}, {}, r"target none there and \w{16}"),
        (
            {"peft_config": LoraConfig(r=2, target_modules=["q_proj"])},
            {},
            r"adapter none there and \w{16} here .*; model \w{16} there",
        ),
        ({}, {"refresh_every": 6}, r"settings \w{16} there and \w{16} here \(refresh_every 3, here 6\)"),
        ({}, {"budget": "50%"}, r"settings .*budget.amount Fraction\(1, 4\), here Fraction\(1, 2\)"),
        ({}, {"anchor_share": 0.2}, r"refresh.anchor_share 0.3, here 0.2"),
        ({}, {"signals": MeasureSettings(projection_dim=64)}, r"\(projection_dim 512, here 64"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_with_both_fingerprints(
    tmp_path: Path,
    uninterrupted: tuple[Path, Spy],
    settings: dict[str, Any],
    coreset: dict[str, Any],
    message: str,
) -> None:
    if settings.get("model") == "other":
        settings = {"model": str(other_model(tmp_path / "model"))}
    made = trainer(tmp_path, a_long_config(**coreset), **RESUMABLE, **settings)
    with pytest.raises(ValueError, match=r"checkpoint-4 is of another run: .*" + message):
        made.train(resume_from_checkpoint=str(uninterrupted[0] / "checkpoint-4"))


def test_another_tokenizer_is_refused(tmp_path: Path, uninterrupted: tuple[Path, Spy]) -> None:
    made = trainer(tmp_path, a_long_config(), **RESUMABLE)
    made.processing_class.chat_template = "{{ messages }}"
    with pytest.raises(ValueError, match=r"is of another run: tokenizer .*give the tokenizer"):
        made.train(resume_from_checkpoint=str(uninterrupted[0] / "checkpoint-4"))


def test_an_adapter_drawn_anew_is_no_other_run(tmp_path: Path) -> None:
    """Its own weights come from the checkpoint; those under it have to be the same."""
    lora = LoraConfig(r=2, lora_dropout=0.1, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"])
    settings: dict[str, Any] = {
        "peft_config": lora,
        "max_steps": 5,
        "save_steps": 2,
        "save_strategy": "steps",
    }
    whole = trainer(tmp_path / "whole", coreset_config("random"), **settings)
    whole.train()
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_pretrained(model_folder())
    resumed = trainer(tmp_path / "resumed", coreset_config("random"), **{**settings, "model": model})
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for name, value in weights(whole).items():
        assert torch.equal(weights(resumed)[name], value), name


def test_an_evaluation_between_a_checkpoint_and_the_next_round_changes_nothing(tmp_path: Path) -> None:
    """It is not made again, and the dropout after it is the same."""
    lora = LoraConfig(r=2, lora_dropout=0.3, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"])
    settings: dict[str, Any] = {
        "peft_config": lora,
        "max_steps": 6,
        "save_steps": 3,
        "save_strategy": "steps",
        "eval_strategy": "epoch",
        "eval_dataset": corpus(12, 1).dataset,
        "learning_rate": 1e-2,
    }
    config = coreset_config("random", refresh_every="never")  # rounds of three steps
    whole = trainer(tmp_path / "whole", config, **settings)
    whole.train()
    resumed = trainer(tmp_path / "resumed", config, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    for name, value in weights(whole).items():
        assert torch.equal(weights(resumed)[name], value), name
    assert [sum("eval_loss" in entry for entry in run.state.log_history) for run in (whole, resumed)] == [
        2,
        1,
    ]


# ---------------------------------------------------------------------------------------- another batch


@pytest.mark.parametrize(("batch", "accumulate"), [(2, 2), (2, 1), (8, 1), (4, 3)])
@pytest.mark.parametrize("at", [3, 5])
def test_with_other_batches_the_coreset_stays_and_its_passes_go_on(
    tmp_path: Path,
    uninterrupted: tuple[Path, Spy],
    caplog: pytest.LogCaptureFixture,
    at: int,
    batch: int,
    accumulate: int,
) -> None:
    folder, whole = uninterrupted
    shutil.copytree(folder / f"checkpoint-{at}", tmp_path / f"checkpoint-{at}")
    layout = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulate}
    resumed = trainer(tmp_path, a_long_config(), save_steps=100, **{**RESUMABLE, "max_steps": 7, **layout})
    with caplog.at_level(logging.WARNING, logger="coretune"):
        resumed.train(resume_from_checkpoint=True)
    shown = [record.getMessage() for record in caplog.records if "batches were" in record.getMessage()]
    assert len(shown) == 1
    assert f"4 rows × 1 a step × 1 processes and are {batch} × {accumulate} × 1" in shown[0]
    over = (6 - at) * accumulate  # the micro-batches of the rest of a round; then comes another selection
    trained = [name for rows in resumed.trained[:over] for name in rows]
    assert len(resumed.trained) == (7 - at) * accumulate
    if at == 3:  # between two rounds
        assert len(trained) == 3 * batch * accumulate
    else:  # in the first round of a coreset of twelve rows, eight of which were met
        assert trained[:4] == [name for rows in whole.trained[5:6] for name in rows][: len(trained)]
        assert load(folder / "checkpoint-5").coreset.indices.shape == (12,)
    if batch * accumulate == 4:
        assert trained == [name for rows in whole.trained[at:6] for name in rows]


# ------------------------------------------------------------------------------------------------ killed


@pytest.mark.skipif(not can_weigh(version("trl")), reason="TRL < 1.16 has no loss per token")
def test_killed_runs_that_go_on_are_the_run_nobody_killed() -> None:
    """In an interpreter of its own, which forks before anything has run in it."""
    command = [sys.executable, "bench/kill.py", "--kills", "3", "--steps", "8", "--check"]
    known = {**os.environ, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[1]
    found = subprocess.run(command, cwd=root, env=known, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr

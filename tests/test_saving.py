"""Disks that fill up, and what is left half-written or damaged: weights first, one line, the run goes on."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from test_run_folder import config
from tiny_run import coreset_config, model_folder, records, trainer, weights, write_jsonl
from tiny_tokenizer import tiny_tokenizer
from transformers import TrainerCallback

from coretune import files, run
from coretune.config import ConfigError
from coretune.data import freeze
from coretune.data.corpus import Corpus
from coretune.files import read_json
from coretune.measure.snapshots import find_snapshots
from coretune.planning.plan import PLAN, prediction
from coretune.recording.run_files import HISTORY, LEDGER, LOSSES, METRICS, OWN, POOL, REPORT, SELECTION
from coretune.recording.run_lock import run_lock
from coretune.report import write_report
from coretune.training.processes import Processes, ProcessLost
from coretune.training.saving import side_product
from coretune.training.warmup_run import _read


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Files whose names are put into it meet a full disk."""
    names: set[str] = set()
    written = files.atomic_write

    def refusing(path: str | os.PathLike[str]) -> Any:
        if Path(path).name in names:
            raise files.disk_full(Path(path), "more than 0 bytes")
        return written(path)

    monkeypatch.setattr(files, "atomic_write", refusing)
    for module in ("recording.run_record", "recording.audit", "rounds.state"):
        monkeypatch.setattr(f"coretune.{module}.atomic_write", refusing)
    return names


SIDE = ("report.html", "ledger.json", "selection.parquet", "README.md", HISTORY, METRICS)


def test_a_disk_too_full_for_anything_but_the_weights_still_gets_them(
    tmp_path: Path, full: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    whole = run.train(config(tmp_path / "data", tmp_path / "whole"))
    full.update(SIDE)
    with caplog.at_level(logging.WARNING, logger="coretune"):
        cut = run.train(config(tmp_path / "data", tmp_path / "full"))
    for name in (SELECTION, LEDGER, REPORT, "README.md", HISTORY, METRICS):
        assert f"{tmp_path / 'full' / name} was not written, the run goes on: " in caplog.text
    assert f"disk full: {tmp_path / 'full' / LEDGER} needs" in caplog.text
    kept = load_file(tmp_path / "full" / "model.safetensors")
    theirs = load_file(tmp_path / "whole" / "model.safetensors")
    assert all(torch.equal(kept[name], theirs[name]) for name in theirs)
    assert not list((tmp_path / "full").rglob("*.part"))
    assert weights(whole).keys() == weights(cut).keys()


def test_the_page_stops_no_run_whatever_it_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*given: Any) -> None:
        raise ZeroDivisionError

    for place in ("run", "training.watch"):
        monkeypatch.setattr(f"coretune.{place}.write_report", broken)
    run.train(config(tmp_path / "data", tmp_path / "run"))
    assert caplog.text.count(f"{REPORT} was not written, the run goes on: ZeroDivisionError") >= 2
    assert (tmp_path / "run" / "model.safetensors").is_file()


@pytest.mark.parametrize("fault", ["torch", "stream", "rust", "safetensors", "ours", "json"])
def test_a_disk_full_at_a_checkpoint_is_one_line_and_leaves_the_last_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: set[str], fault: str
) -> None:
    made = trainer(tmp_path, coreset_config("random"), save_strategy="steps", save_steps=2)
    stock = {
        "torch": "_save_optimizer_and_scheduler",
        "stream": "_save_optimizer_and_scheduler",
        "rust": "_save",
        "safetensors": "_save",
        "json": "_save_rng_state",
    }
    errors: dict[str, Exception] = {
        "torch": RuntimeError("[enforce fail at inline_container] PytorchStreamWriter failed writing"),
        "safetensors": RuntimeError("I/O error: No space left on device (os error 28)"),
        "stream": RuntimeError("basic_ios::clear: iostream error"),
        "rust": Exception("Input/output error (os error 5)"),
        "json": OSError(errno.ENOSPC, "No space left on device"),
    }

    def failing(*given: Any, **named: Any) -> None:
        raise errors[fault]

    class BeforeTheSecond(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 3 and fault == "ours":
                full.add("coreset_state.npz")
            elif state.global_step == 3:
                monkeypatch.setattr(made, stock[fault], failing)

    made.add_callback(BeforeTheSecond())
    with pytest.raises(OSError, match=rf"^.*{tmp_path}/checkpoint-4.*(needs|cannot be written).*$"):
        made.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


def test_results_that_were_cut_are_begun_anew(tmp_path: Path) -> None:
    made = trainer(tmp_path, coreset_config("random"))
    for name in ("all_results.json", "eval_results.json"):
        (tmp_path / name).write_text("")
    made.save_metrics("eval", {"eval_loss": 1.0})
    made.save_metrics("test", {"test_loss": 2.0})
    assert read_json(tmp_path / "eval_results.json") == {"eval_loss": 1.0}
    assert read_json(tmp_path / "all_results.json") == {"eval_loss": 1.0, "test_loss": 2.0}
    made.state.log_history = [{"loss": 1.0, "step": 1}]
    made.save_state()
    assert type(made.state).load_from_json(str(tmp_path / HISTORY)).log_history == made.state.log_history


def test_max_steps_lowered_to_what_was_trained_is_refused_with_both(tmp_path: Path) -> None:
    training = {"save_strategy": "steps", "save_steps": 2}
    trainer(tmp_path, coreset_config("random"), max_steps=4, **training).train()
    shutil.rmtree(tmp_path / "checkpoint-4")
    with pytest.raises(
        ValueError, match=r"checkpoint-2 is at step 2 of 4, and max_steps is 2 now: nothing is"
    ):
        trainer(tmp_path, coreset_config("random"), max_steps=2, **training).train(True)


def test_a_run_cut_at_its_last_step_still_goes_on_to_its_end(tmp_path: Path) -> None:
    training = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    trainer(tmp_path, coreset_config("random"), **training).train()
    again = trainer(tmp_path, coreset_config("random"), **training)
    again.train(True)
    assert again.state.global_step == 2
    assert again.trained == []


# ------------------------------------------------------------------------------------------- what is damaged


def _plan(folder: Path) -> object:
    return prediction(folder, dict)


READERS = {
    PLAN: _plan,
    "warmup.json": _read,
    METRICS: lambda folder: write_report(folder),
    HISTORY: lambda folder: write_report(folder),
    LEDGER: lambda folder: write_report(folder),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    trainer(folder, coreset_config("random"), max_steps=2).train()
    return folder


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_named_with_its_path_and_what_to_do(small: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(small, tmp_path / "run")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text('{"cut')
    with pytest.raises(ValueError, match=rf"^[^\n]*{folder / name}[^\n]*damaged[^\n]*remove[^\n]*$"):
        READERS[name](folder)


@pytest.mark.parametrize("lost", ["copies", "response", None])
def test_a_pool_of_another_version_is_named(small: Path, tmp_path: Path, lost: str | None) -> None:
    folder = shutil.copytree(small, tmp_path / "run")
    table = pq.read_table(folder / POOL, partitioning=None)
    table = table.replace_schema_metadata(None) if lost is None else table.drop_columns([lost])
    pq.write_table(table, folder / POOL)
    why = "it does not say what its map is of" if lost is None else f"it has no {lost}"
    with pytest.raises(ValueError, match=rf"{POOL} is of another version of coretune, {why}: read the run"):
        write_report(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (LEDGER, {"phases": {}, "rounds": []}, "is of another version of coretune, it has no total"),
        ("compare.json", {"a": 1}, "is of another version of coretune, it has no title, tables"),
        (METRICS, [1], "is damaged: it holds a list and no object"),
        (LEDGER, 3, "is damaged: it holds a int and no object"),
    ],
)
def test_a_file_with_other_content_is_named(
    small: Path, tmp_path: Path, name: str, content: Any, message: str
) -> None:
    folder = shutil.copytree(small, tmp_path / "run")
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{name} .*{message}"):
        write_report(folder)


def test_a_disk_full_where_rows_are_kept_names_that_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrow's own errors name no file, and output_dir may be on another disk."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    rows = write_jsonl(tmp_path / "pool.jsonl", records(4))
    monkeypatch.setattr("coretune.data.corpus.freeze", full)
    with pytest.raises(OSError, match=r"disk full: .*/kept needs more room, .*give another corpus_dir"):
        Corpus.build(rows, tiny_tokenizer(), max_length=32, cache_dir=tmp_path / "kept")


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_an_output_dir_that_cannot_be_one_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OSError, match=rf"output_dir .*{name} cannot be written to \(Not a .*give another"),
        run_lock(tmp_path / name),
    ):
        pass


@pytest.mark.parametrize("name", [POOL, SELECTION, LOSSES])
def test_a_damaged_record_does_not_stop_a_run(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / OWN).mkdir()
    made = trainer(tmp_path, coreset_config("loss" if name == LOSSES else "random"), max_steps=4)
    begun = made.begin_round

    def damaged(step: int) -> Any:
        if step:
            (tmp_path / name).write_bytes(b"PAR1")
        return begun(step)

    made.begin_round = damaged
    made.train()
    assert made.state.global_step == 4
    assert name == POOL or f"{tmp_path / name} was not written, the run goes on" in caplog.text


def test_a_checkpoint_of_a_warm_up_run_that_was_cut_is_none(tmp_path: Path) -> None:
    for step, text in ((2, json.dumps({"global_step": 2})), (4, '{"global'), (6, "")):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / HISTORY).write_text(text)
    shutil.copytree(tmp_path / "checkpoint-2", tmp_path / "my-checkpoint-8")
    shutil.copytree(tmp_path / "checkpoint-2", tmp_path / "checkpoint-2-backup")
    assert find_snapshots(tmp_path, 1) == [tmp_path / "checkpoint-2"]
    with pytest.raises(ValueError, match="holds 1 checkpoint-N folders, 2 are asked for"):
        find_snapshots(tmp_path, 2)


def test_broken_weights_of_a_model_are_one_line(tmp_path: Path) -> None:
    broken = shutil.copytree(model_folder(), tmp_path / "model")
    content = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigError, match=rf"^the weights of {broken} are damaged \([^\n]*\): restore"):
        run.train(config(tmp_path / "data", tmp_path / "run", model_name_or_path=str(broken)))
    assert not (tmp_path / "run" / OWN).exists()


def test_a_lost_process_is_one_line_wherever_it_is_missed() -> None:
    processes = Processes(0, 1, 60.0)
    with pytest.raises(RuntimeError, match="out of memory"), processes.exchanging():
        raise RuntimeError("CUDA out of memory")
    processes.world = 2
    for text in ("[gloo/transport/tcp/pair.cc:534] Connection closed by peer", "NCCL error: remote process"):
        with pytest.raises(ProcessLost, match="another process is gone") as raised, processes.exchanging():
            raise RuntimeError(text)
        assert isinstance(raised.value, OSError)  # one line in the command
    with pytest.raises(RuntimeError, match="out of memory"), processes.exchanging():
        raise RuntimeError("CUDA out of memory")


def test_a_side_product_that_fails_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with side_product("a/page"):
        raise KeyError("no\nline")
    assert "a/page was not written, the run goes on: 'no\\nline'" in caplog.text


def test_what_a_killed_tokenisation_left_goes_when_it_is_a_day_old(tmp_path: Path) -> None:
    for name, age in (("building-old", 90_000), ("building-new", 60), ("corpus-kept", 90_000)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    freeze._sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"building-new", "corpus-kept"}

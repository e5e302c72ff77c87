"""What an output_dir may hold when a run begins: one run at a time, its own, and what a kill has left."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_files import holding
from tiny_run import coreset_config, corpus, model_folder, records, trainer, weights, write_jsonl

from coretune import run
from coretune.comparing.compare_command import run_comparison
from coretune.config import ConfigError, RunConfig, check_config
from coretune.demo import run_demo
from coretune.recording import run_record
from coretune.recording.run_files import (
    CONFIG,
    CORESET,
    HISTORY,
    LEDGER,
    OWN,
    POOL,
    SELECTION,
    RunFiles,
    checkpoints_of,
)
from coretune.recording.run_lock import LOCK, run_lock
from coretune.training.resume import find_checkpoint
from coretune.training.run_folder import drop_old, refuse_foreign


def config(folder: Path, out: Path, **top: Any) -> RunConfig:
    folder.mkdir(exist_ok=True)
    rows = write_jsonl(folder / "pool.jsonl", records(24))
    training = {"max_steps": 4, "per_device_train_batch_size": 2, "bf16": False, "save_steps": 2}
    return check_config(
        {
            "model_name_or_path": str(model_folder()),
            "train_data": str(rows),
            "eval_data": str(rows),
            "output_dir": str(out),
            "coreset": {"method": "random", "budget": "25%", "refresh_every": 2},
            "training": {**training, "disable_tqdm": True, "dataloader_pin_memory": False},
            **top,
        }
    )


# ------------------------------------------------------------------------------------------ one at a time


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """A folder that another process writes a run into."""
    folder = tmp_path_factory.mktemp("taken")
    (folder / OWN).mkdir()
    running = holding(folder / LOCK, "time.sleep(600)")
    yield folder, running.pid
    running.kill()
    running.wait()


DOORS: dict[str, Callable[[Path, Path], object]] = {
    "train": lambda data, out: run.train(config(data, out)),
    "select": lambda data, out: run.select(config(data, out)),
    "resume": lambda data, out: run.train(config(data, out, resume_from_checkpoint=True)),
    "trainer.train": lambda data, out: trainer(out).train(),
    "trainer.select": lambda data, out: trainer(out).select(),
    "compare": lambda data, out: run_comparison(config(data, out), ["random"], 1, out, 1, False),
    "demo": lambda data, out: run_demo(out),
}


@pytest.mark.parametrize("door", DOORS)
def test_a_second_run_into_a_folder_is_refused_with_the_process_that_is_in_it(
    tmp_path: Path, taken: tuple[Path, int], door: str
) -> None:
    folder, pid = taken
    before = sorted(folder.rglob("*"))
    with pytest.raises(ValueError, match=f"{folder} is in use by pid {pid} on {os.uname().nodename}: wait"):
        DOORS[door](tmp_path / "data", folder)
    assert sorted(folder.rglob("*")) == before


def test_a_lock_is_of_one_run_through_all_its_parts_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with run_lock(tmp_path / "a" / "b"), run_lock(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / LOCK).exists()
    assert not (tmp_path / "a").exists()
    with run_lock(tmp_path / "a", first=False):
        assert not (tmp_path / "a").exists()


def test_a_planted_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / OWN).mkdir()
    (tmp_path / "theirs").write_text("precious")
    (tmp_path / LOCK).symlink_to(tmp_path / "theirs")
    with pytest.raises(OSError, match="lock"), run_lock(tmp_path):
        pass
    assert (tmp_path / "theirs").read_text() == "precious"


# ------------------------------------------------------------------------------------- of another's folder


def checkpoint(folder: Path, step: int, **state: Any) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / HISTORY).write_text(json.dumps({"log_history": [], "global_step": step, **state}))
    return path


def test_a_checkpoint_of_elsewhere_never_goes_on_in_the_folder_of_another_run(tmp_path: Path) -> None:
    theirs, ours = checkpoint(tmp_path / "theirs", 2), checkpoint(tmp_path / "ours", 4)
    asked = config(tmp_path / "data", tmp_path / "theirs", resume_from_checkpoint=str(ours))
    for work in (lambda: run.train(asked), lambda: find_checkpoint(asked.output_dir, str(ours))):
        with pytest.raises(
            ValueError, match=r"theirs holds a run, and .*ours/checkpoint-4 is a checkpoint of an"
        ):
            work()
    assert theirs.is_dir()
    for folder, given in ((tmp_path / "fresh", ours), (tmp_path / "ours", ours)):
        refuse_foreign(folder, given)
    (tmp_path / "link").symlink_to(tmp_path / "ours")
    refuse_foreign(tmp_path / "link", ours)


def test_the_users_copy_of_a_checkpoint_is_no_checkpoint(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        checkpoint(tmp_path, step)
    copy = shutil.copytree(tmp_path / "checkpoint-2", tmp_path / "checkpoint-2-backup")
    os.utime(copy, (0, 0))
    assert [path.name for path in checkpoints_of(tmp_path)] == [
        "checkpoint-2",
        "checkpoint-4",
        "checkpoint-6",
    ]
    assert RunFiles(tmp_path).history == []
    drop_old(tmp_path, 2, [str(tmp_path / "checkpoint-6"), None])
    assert {path.name for path in tmp_path.iterdir()} == {
        "checkpoint-2-backup",
        "checkpoint-4",
        "checkpoint-6",
    }
    drop_old(tmp_path, 1, [str(tmp_path / "checkpoint-6"), str(tmp_path / "checkpoint-4")])
    assert len(checkpoints_of(tmp_path)) == 2  # the newest and the best
    drop_old(tmp_path, None, [])
    assert len(checkpoints_of(tmp_path)) == 2


def test_a_run_keeps_the_users_copies_and_as_many_checkpoints_as_it_was_given(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-2-backup").mkdir()
    made = trainer(
        tmp_path, coreset_config("random"), save_strategy="steps", save_steps=1, save_total_limit=1
    )
    made.train()
    found = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert found == ["checkpoint-2-backup", "checkpoint-6"]
    assert made.args.save_total_limit == 1


# --------------------------------------------------------------------------- before the first checkpoint


def killed_after_selecting(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> None:
    record = run_record.record

    def recorded_and_killed(*args: Any, **kwargs: Any) -> None:
        record(*args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_record, "record", recorded_and_killed)
        with pytest.raises(KeyboardInterrupt):
            work()


def test_a_run_cut_before_its_first_checkpoint_begins_anew_when_it_is_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run.train(config(tmp_path / "data", tmp_path / "whole"))
    asked = config(tmp_path / "data", tmp_path / "cut")
    killed_after_selecting(monkeypatch, lambda: run.train(asked))
    (tmp_path / "cut" / "checkpoint-2").mkdir()
    (tmp_path / "cut" / "checkpoint-2" / HISTORY).write_text("")  # what a kill leaves of one
    with pytest.raises(ConfigError, match=r"holds a run already.*resume_from_checkpoint=true"):
        run.train(asked)
    with caplog.at_level(logging.WARNING, logger="coretune"):
        again = run.train(asked.model_copy(update={"resume_from_checkpoint": True}))
    assert "was cut before its first checkpoint: it begins from the start" in caplog.text
    for name, value in weights(whole).items():
        assert torch.equal(weights(again)[name], value), name


def test_a_run_that_never_began_is_not_gone_on_with(tmp_path: Path) -> None:
    """As under a name that was mistyped: the command's own config.yaml is no sign of an earlier run."""
    asked = config(tmp_path / "data", tmp_path / "new", resume_from_checkpoint=True)
    with pytest.raises(ValueError, match=r"no checkpoint in .*new that is whole; train without resume"):
        run.train(asked)
    assert not (tmp_path / "new").exists()


def test_a_selection_that_was_cut_begins_anew_and_a_finished_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run.select(config(tmp_path / "data", tmp_path / "whole"))
    asked = config(tmp_path / "data", tmp_path / "cut", resume_from_checkpoint=True)
    killed_after_selecting(monkeypatch, lambda: run.select(asked))
    assert not (tmp_path / "cut" / CORESET).exists()
    with caplog.at_level(logging.WARNING, logger="coretune"):
        again = run.select(asked)
    assert "the selection in" in caplog.text
    assert again.read_bytes() == whole.read_bytes()
    assert RunFiles.of(tmp_path / "cut").rounds == RunFiles.of(tmp_path / "whole").rounds
    with pytest.raises(ConfigError, match="holds a run already") as refused:
        run.select(asked)
    assert "resume_from_checkpoint" not in str(refused.value)
    assert again.read_bytes() == whole.read_bytes()


def test_a_selection_cut_after_its_ledger_begins_anew_and_a_training_run_after_it_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The ledger comes before coreset.jsonl, and is no sign that a selection was finished."""
    asked = config(tmp_path / "data", tmp_path / "cut")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "_write_coreset", killed)
        with pytest.raises(KeyboardInterrupt):
            run.select(asked, quiet=True)
    cut, trained = tmp_path / "cut", tmp_path / "trained"
    assert (cut / LEDGER).exists()
    assert not (cut / CORESET).exists()
    shutil.copytree(cut, trained)
    with caplog.at_level(logging.WARNING, logger="coretune"):
        made = run.select(asked, quiet=True)
    assert "was cut: it begins from the start" in caplog.text
    assert len(made.read_text().splitlines()) == 6
    with pytest.raises(ConfigError, match="holds a run already"):
        run.select(asked, quiet=True)
    quick = {"max_steps": 1, "save_strategy": "no", "eval_strategy": "no"}
    over = config(tmp_path / "data", trained, resume_from_checkpoint=True)
    run.train(over.model_copy(update={"training": {**over.training, **quick}}), lambda: None)
    with pytest.raises(ConfigError, match="holds a run already"):
        run.select(config(tmp_path / "data", trained), quiet=True)


def test_a_checkpoint_that_was_moved_and_left_a_link_is_the_folders_own(tmp_path: Path) -> None:
    made = checkpoint(tmp_path / "run", 2)
    made.rename(tmp_path / "elsewhere")
    made.symlink_to(tmp_path / "elsewhere")
    refuse_foreign(tmp_path / "run", made)
    checkpoint(tmp_path / "run", 4)
    drop_old(tmp_path / "run", 1, [])
    assert [path.name for path in checkpoints_of(tmp_path / "run")] == ["checkpoint-4"]
    assert list((tmp_path / "elsewhere").iterdir())


def test_nothing_begins_anew_where_no_run_began_or_a_checkpoint_was_once_complete(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no checkpoint in .*new that is whole; train without resume"):
        find_checkpoint(str(tmp_path / "new"), True)
    checkpoint(tmp_path / "damaged", 2)
    with pytest.raises(ValueError, match=r"can be gone on from \(.*damaged/checkpoint-2: it has no"):
        find_checkpoint(str(tmp_path / "damaged"), True)


def test_a_folder_used_again_describes_the_rows_of_the_run_that_is_in_it(tmp_path: Path) -> None:
    for rows in (16, 24):
        pool = corpus(rows)
        trainer(tmp_path, coreset_config("random"), pool=pool, max_steps=2).train()
    assert len(RunFiles.of(tmp_path).ids) == 24
    assert (tmp_path / POOL).is_file()
    assert (tmp_path / SELECTION).is_file()


# ------------------------------------------------------------------------------------------- the home folder


def test_every_path_of_a_config_may_begin_with_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    read = check_config(
        {
            "model_name_or_path": "~/model",
            "train_data": "~/pool.jsonl",
            "eval_data": "hub/name",
            "target_data": {"~/a.jsonl": 0.5, "~/b.jsonl": 0.5},
            "output_dir": "~/runs/x",
            "corpus_dir": "~/corpora",
            "signals_dir": "~",
            "resume_from_checkpoint": "~/runs/x/checkpoint-4",
            "columns": {"prompt": "~/p"},
            "coreset": {"method": {"brief": {"checkpoints_from": "~/teacher"}}, "budget": 5},
            "training": {
                "deepspeed": "~/zero.json",
                "accelerator_config": "~/a.json",
                "run_name": "about ~/50",
            },
            "evaluate": {"file": "~/test.jsonl"},
        }
    )
    home = str(tmp_path)
    assert (read.model_name_or_path, read.train_data) == (f"{home}/model", f"{home}/pool.jsonl")
    assert read.eval_data == "hub/name"
    assert read.target_data == {f"{home}/a.jsonl": 0.5, f"{home}/b.jsonl": 0.5}
    assert (read.output_dir, read.corpus_dir, read.signals_dir) == (f"{home}/runs/x", f"{home}/corpora", home)
    assert read.resume_from_checkpoint == f"{home}/runs/x/checkpoint-4"
    assert read.columns == {"prompt": "~/p"}
    assert read.coreset["method"] == {"brief": {"checkpoints_from": f"{home}/teacher"}}
    assert read.training == {
        "deepspeed": f"{home}/zero.json",
        "accelerator_config": f"{home}/a.json",
        "run_name": "about ~/50",
    }
    assert read.evaluate is not None
    assert read.evaluate.file == f"{home}/test.jsonl"
    with pytest.raises(ConfigError, match=r"~nobody-here/x begins with the home folder of a user who is not"):
        check_config({**read.model_dump(exclude_none=True), "output_dir": "~nobody-here/x"})


def test_a_run_in_the_home_folder_is_all_in_one_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    asked = config(tmp_path / "data", Path("~/runs/x"), resume_from_checkpoint=None)
    run.select(asked, quiet=True)
    assert not (tmp_path / "~").exists()
    assert {CONFIG, CORESET} <= {
        str(path.relative_to(tmp_path / "home/runs/x")) for path in (tmp_path / "home/runs/x").rglob("*")
    }

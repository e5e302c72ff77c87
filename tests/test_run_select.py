"""`coretune select`, and what is refused before anything is written."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from run_configs import CORESET, TRAINING, config, written_data
from tiny_run import model_folder, records, write_jsonl

from coretune import run
from coretune.config import ConfigError
from coretune.data.raw import CorpusError
from coretune.recording.run_files import CONFIG, LEDGER


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written_data(tmp_path_factory.mktemp("data"))


def test_any_trainer_reads_what_select_writes(data: Path, tmp_path: Path) -> None:
    """Unicode and columns of the user's own come back as they were; the file trains without a change."""
    rows = [{**row, "note": "späť ✓", "depth": {"a": [1, 2.5, None]}} for row in records(48)]
    pool = write_jsonl(tmp_path / "pool.jsonl", rows)
    section = {**CORESET, "method": "random"}
    path = run.select(config(data, tmp_path / "select", train_data=str(pool), coreset=section))
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    source = {row["id"]: row for row in rows}
    assert all({k: v for k, v in line.items() if k != "coretune"} == source[line["id"]] for line in lines)
    full = {"method": "random", "budget": "100%", "refresh_every": "never"}
    made = run.train(config(data, tmp_path / "train", train_data=str(path), coreset=full))
    assert sorted(made.pool_rows.ids) == sorted(line["id"] for line in lines)


@pytest.mark.parametrize("resumed", ["a folder", True])
def test_select_goes_on_with_no_run(data: Path, tmp_path: Path, resumed: str | bool) -> None:
    (tmp_path / "checkpoint-4").mkdir()
    resumed = str(tmp_path / "checkpoint-4") if isinstance(resumed, str) else resumed
    with pytest.raises(ConfigError, match="leave resume_from_checkpoint out; to choose by the weights of a"):
        run.select(config(data, tmp_path, resume_from_checkpoint=resumed))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


def test_a_selection_that_was_cut_is_begun_anew(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its folder holds a selection, and no coreset yet. What is finished stays, whatever is resumed."""
    section = {"method": "random", "budget": 4}
    run.select(config(data, tmp_path, coreset=section)).unlink()
    (tmp_path / LEDGER).unlink()
    path = run.select(config(data, tmp_path, coreset=section, resume_from_checkpoint=True))
    assert f"the selection in {tmp_path} was cut: it begins from the start" in caplog.text
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="holds a run already"):
        run.select(config(data, tmp_path, coreset=section, resume_from_checkpoint=True))
    assert path.read_bytes() == before


def test_select_goes_with_settings_that_only_training_needs(data: Path, tmp_path: Path) -> None:
    best = {"eval_strategy": "steps", "eval_steps": 4, "load_best_model_at_end": True}
    assert run.select(config(data, tmp_path, training={**TRAINING, **best})).exists()


@pytest.mark.parametrize(
    ("top", "message"),
    [
        ({"training": {"max_step": 5}}, "unknown key training.max_step, did you mean 'training.max_steps'"),
        (
            {"training": {"save_strategy": "often"}},
            "training.save_strategy is 'often': give one of no, steps, epoch",
        ),
        ({"training": {"output_dir": "x"}}, "training.output_dir belongs at the top of the config"),
        ({"training": {"seed": 1}}, "training.seed belongs at the top of the config"),
        ({"training": {"resume_from_checkpoint": "x"}}, "training.resume_from_checkpoint belongs at the top"),
        ({"peft": {"rank": 5}}, "unknown key peft.rank"),
        (
            {"peft": {"r": 4, "init_lora_weights": 5, "task_type": "NONE"}},
            "peft.init_lora_weights is 5: give",
        ),
        (
            {"model_name_or_path": "/nowhere/model"},
            "model_name_or_path is /nowhere/model, and there is no such folder",
        ),
        (
            {"model_name_or_path": "../nowhere"},
            "model_name_or_path is ../nowhere, and there is no such folder",
        ),
        ({"coreset": {**CORESET, "budget": "49"}}, "budget of 49 rows, but only 48 are usable"),
        ({"coreset": {**CORESET, "refresh": {"k": 48}}}, "k = 48 neighbours, but the pool has 48 rows"),
        ({"train_data": "/nowhere.jsonl"}, "nowhere.jsonl"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(
    data: Path, tmp_path: Path, top: dict[str, Any], message: str
) -> None:
    top = {name: {**TRAINING, **value} if name == "training" else value for name, value in top.items()}
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the messages are below
        run.train(config(data, tmp_path / "run", **top))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / CONFIG).exists()


def test_messages_without_a_chat_template_are_refused(data: Path, tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    path = write_jsonl(tmp_path / "chat.jsonl", [row] * 3)
    plain = str(model_folder(template=False))
    with pytest.raises(
        CorpusError, match=r"the tokenizer has no chat template; set tokenizer\.chat_template"
    ):
        run.train(
            config(data, tmp_path / "run", train_data=str(path), columns=None, model_name_or_path=plain)
        )


def test_bad_rows_are_refused_or_left_out_and_named(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [*records(48), {"id": "mute", "prompt": "say:", "completion": " "}]
    path = str(write_jsonl(tmp_path / "pool.jsonl", rows))
    with pytest.raises(CorpusError, match=r"pool\.jsonl line 49: empty response"):
        run.train(config(data, tmp_path / "run", train_data=path))
    with caplog.at_level(logging.WARNING, logger="coretune"):
        made = run.train(config(data, tmp_path / "run", train_data=path, skip_bad_rows=True))
    assert "left out pool.jsonl line 49: empty response" in caplog.text
    assert len(made.pool_rows.ids) == 48


def test_prompts_that_are_cut_are_counted(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [*records(48), {"id": "long", "prompt": "word " * 200, "completion": "short"}]
    path = str(write_jsonl(tmp_path / "pool.jsonl", rows))
    with caplog.at_level(logging.WARNING, logger="coretune"):
        made = run.build_trainer(config(data, tmp_path / "run", train_data=path))
    assert "1 prompts cut from the left to 96 tokens" in caplog.text
    assert made.pool_rows.length.max() == 96


def test_a_caller_may_have_the_console(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps: list[int] = []
    run.train(config(data, tmp_path, eval_data=None), on_step=lambda: steps.append(1))
    assert len(steps) == 8
    assert "coreset of" not in capsys.readouterr().out

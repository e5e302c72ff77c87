"""A run on several files of several formats, all answers trained, a share of the rows held out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_encode import turns
from tiny_run import model_folder, records, write_jsonl

from coretune import run
from coretune.commands.preview import preview
from coretune.config import ConfigError, RunConfig, check_config, load_config
from coretune.probing.probe_config import Size, small_config
from coretune.recording.run_files import CONFIG


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    asked = [
        {"q": row["prompt"], "a": row["completion"], "id": row["id"], "source": "pairs"}
        for row in records(24)
    ]
    chats = [
        {"id": f"c{row}", "messages": turns(f"say {row}", "one", "and", "two"), "source": "chats"}
        for row in range(20)
    ]
    first = {
        "path": str(write_jsonl(tmp_path / "pairs.jsonl", asked)),
        "columns": {"prompt": "q", "completion": "a"},
    }
    return check_config(
        {
            "model_name_or_path": str(model_folder()),
            "train_data": [
                first,
                {"path": str(write_jsonl(tmp_path / "chats.jsonl", chats)), "split": "train[:16]"},
            ],
            "eval_fraction": 0.2,
            "train_on": "all",
            "output_dir": str(tmp_path / "run"),
            "coreset": {"method": "loss", "budget": 8, "refresh_every": "never", "refresh": {"warmup": 0}},
            "training": {
                "max_steps": 2,
                "per_device_train_batch_size": 4,
                "bf16": False,
                "save_strategy": "no",
            },
            "evaluate": {"metric": "exact_match", "max_new_tokens": 2},
        }
    )


def test_a_run_holds_rows_out_scores_them_and_is_replayed(config: RunConfig, tmp_path: Path) -> None:
    trainer = run.train(config, on_step=lambda: None)
    pool, held_out = trainer.pool_rows, trainer.held_out
    assert (len(pool), len(held_out)) == (32, 8)
    assert not set(pool.ids) & set(held_out.ids)
    metrics = json.loads((tmp_path / "run" / "eval_results.json").read_text())
    assert metrics["eval_loss"] > 0
    assert "eval_exact_match" in metrics
    chat = next(row for row, name in enumerate(pool.ids) if name.startswith("c"))
    assert np.count_nonzero(np.diff(pool.labels([chat])[0] != -100)) == 3  # two answers, a hole between
    replayed = load_config(tmp_path / "run" / CONFIG)
    assert replayed.train_data == config.train_data
    assert (replayed.eval_fraction, replayed.train_on) == (0.2, "all")
    assert run.pool_of(replayed, trainer.processing_class, 96)[0].fingerprint == pool.fingerprint


def test_a_probe_trains_on_the_very_tokens_whatever_they_came_from(config: RunConfig, tmp_path: Path) -> None:
    trainer = run.build_trainer(config)
    small = small_config(trainer, config, tmp_path, Size(256, 16))
    pool, held_out = run.pool_of(small, trainer.processing_class, 96)
    assert held_out is not None
    for ours, theirs in ((trainer.pool_rows, pool), (trainer.held_out, held_out)):
        places = [ours.ids.index(name) for name in theirs.ids]
        assert len(places) == len(ours.ids)
        for name in ("tokens", "labels"):
            pairs = zip(getattr(ours, name)(places), getattr(theirs, name)(range(len(places))), strict=True)
            assert all(np.array_equal(one, other) for one, other in pairs)


def test_evaluation_data_is_said_once(config: RunConfig) -> None:
    raw = config.model_dump(exclude_none=True)
    with pytest.raises(ConfigError, match="eval_data and eval_fraction both say what is evaluated"):
        check_config({**raw, "eval_data": "e.jsonl"})
    for share in (0, 1, -0.5):
        with pytest.raises(ConfigError, match="eval_fraction is"):
            check_config({**raw, "eval_fraction": share})


def test_a_preview_reads_each_entry_by_its_own_columns(config: RunConfig) -> None:
    found = preview(config, 40, None)
    assert len(found.rows) == 40
    assert all(row.turns for row in found.rows)
    assert ("prompt/completion", "q", "the prompt") in found.columns
    assert ("messages", "messages", "turns of the conversation") in found.columns
    assert found.notes == ["chats.jsonl: 16 of 20 rows taken (split train[:16])"]
    chat = next(row for row in found.rows if row.id.startswith("c"))
    assert [(turn.role, turn.trained > 0) for turn in chat.turns] == [
        ("user", False),
        ("assistant", True),
    ] * 2

"""What cannot be trained on a coreset is refused before anything is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft import PrefixTuningConfig, PromptTuningConfig
from tiny_run import coreset_config, corpus, trainer
from transformers import Trainer

from coretune.measure.settings import MeasureSettings

# --------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("settings", "coreset", "message"),
    [
        (
            {"packing": True, "packing_strategy": "wrapped"},
            {},
            "packing_strategy wrapped cuts examples in two",
        ),
        (
            {"packing": True, "max_length": None},
            {},
            "packing fills packs of max_length tokens, and max_length is",
        ),
        (
            {"packing": True, "max_length": 20},
            {},
            r"rows are longer than a pack of max_length 20, the longest \d+",
        ),
        ({"train_sampling_strategy": "sequential"}, {}, "train_sampling_strategy is 'sequential'"),
        (
            {"accelerator_config": {"split_batches": True}},
            {},
            "accelerator_config.split_batches deals rows out",
        ),
        ({"auto_find_batch_size": True}, {}, "auto_find_batch_size does not go with a coreset"),
        ({"ignore_data_skip": True}, {}, "ignore_data_skip does not go with a coreset"),
        ({"loss_type": "dft"}, {"weighted": True}, "weighted needs (loss_type nll|TRL 1.16)"),
        ({"label_smoothing_factor": 0.1}, {"weighted": True}, "weighted needs loss_type nll"),
        ({}, {"k": 48}, "k = 48 neighbours, but the pool has 48 rows: set k to at most 47"),
        ({"measuring": MeasureSettings()}, {}, r"measuring is now coreset.signals: give coreset\("),
        ({}, {"budget": "49"}, "budget of 49 rows, but only 48 are usable"),
        ({}, {"budget": "5M tokens"}, "budget of 5000000 tokens, but the usable rows hold"),
        (
            {},
            {"method": "less", "signals": MeasureSettings(last_blocks=3)},
            "last_blocks is 3 but the model has 2 blocks",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_trained(
    tmp_path: Path, settings: dict[str, Any], coreset: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, coreset_config(**coreset), **settings)


def test_a_run_that_ends_in_its_warmup_is_refused(tmp_path: Path) -> None:
    made = trainer(tmp_path, coreset_config(warmup=0.4), max_steps=5)
    for begin in (made.train, made.select):
        with pytest.raises(ValueError, match="max_steps is 5 and the warm-up takes 6 steps"):
            begin()


def test_a_method_that_measures_nothing_needs_no_neighbours(tmp_path: Path) -> None:
    trainer(tmp_path, coreset_config("random", k=500))


def test_a_target_method_without_a_target_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="target_cosine needs target examples and none are given"):
        trainer(tmp_path, coreset_config("less"))
    made = trainer(tmp_path, coreset_config("less"), target=corpus(12, 1), max_steps=2)
    made.train()
    without_target = replace(made.cost, references=0.0).measurement(np.arange(len(made.pool_rows.length)))
    assert made.ledger.by_phase()["measurement"].flops > without_target


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
def test_virtual_tokens_are_refused_where_rows_are_measured(tmp_path: Path, kind: type) -> None:
    adapter = {
        "peft_config": kind(num_virtual_tokens=4, task_type="CAUSAL_LM"),
        "max_steps": 1,
        "gradient_checkpointing": False,
    }
    with pytest.raises(ValueError, match=f"{kind.__name__} puts virtual tokens before each row"):
        trainer(tmp_path, **adapter)
    trainer(tmp_path, coreset_config("random"), **adapter)


def test_processes_that_share_rows_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "get_total_train_batch_size", lambda self, args: 2)
    with pytest.raises(ValueError, match="a step takes 2 rows and all processes together have 4"):
        trainer(tmp_path)


def test_rows_that_are_not_those_of_the_dataset_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train_dataset has 12 rows and the pool 48"):
        trainer(tmp_path, rows=corpus(), train_dataset=corpus(12, 1).dataset)
    stream = corpus().dataset.to_iterable_dataset()
    with pytest.raises(ValueError, match="train_dataset is a stream"):
        trainer(tmp_path, train_dataset=stream)


def test_a_trainer_runs_once(tmp_path: Path) -> None:
    made = trainer(tmp_path, coreset_config("random"), max_steps=2)
    made.train()
    with pytest.raises(ValueError, match="this trainer has run: make a new one"):
        made.train()
    with pytest.raises(ValueError, match="this trainer has run"):
        made.select()


def test_weights_are_refused_where_trl_cannot_weigh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coretune.training.refusals.version", lambda _: "1.14.2")
    with pytest.raises(ValueError, match=r"weighted needs TRL 1\.16 or later, here is 1\.14\.2"):
        trainer(tmp_path, coreset_config("random", weighted=True), loss_type="nll")

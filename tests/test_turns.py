"""Rows as TRL prepares them in Python: what is measured of them is what the loss counts, holes and all."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from tiny_run import WORDS, arguments, coreset_config, model_folder
from tiny_tokenizer import tiny_tokenizer

from coretune.training.train import CoresetSFTTrainer

ROWS = 20


def words(count: int, *seed: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, count))


def messages() -> datasets.Dataset:
    """Two turns each, long questions and short answers."""
    rows = []
    for row in range(ROWS):
        turns = []
        for turn in range(2):
            turns.append({"role": "user", "content": f"say {row}: {words(4, row, turn)}"})
            turns.append({"role": "assistant", "content": words(1 + row % 3, row, turn, 1)})
        rows.append({"messages": turns})
    return datasets.Dataset.from_list(rows)


def pairs() -> datasets.Dataset:
    return datasets.Dataset.from_list(
        [{"prompt": f"say {row}: {words(4, row)}\n", "completion": words(2, row, 1)} for row in range(ROWS)]
    )


def texts() -> datasets.Dataset:
    return datasets.Dataset.from_list([{"text": words(6, row)} for row in range(ROWS)])


def made(folder: Path, rows: datasets.Dataset, method: str, **training: Any) -> CoresetSFTTrainer:
    return CoresetSFTTrainer(
        str(model_folder()),
        arguments(folder, dataset_kwargs=None, **training),
        coreset=coreset_config(method, budget="30%"),
        train_dataset=rows,
        processing_class=tiny_tokenizer(),
    )


def losses(trainer: CoresetSFTTrainer) -> np.ndarray:
    """(n,) one row at a time, by the model's own loss of the labels that are trained."""
    found = []
    for row in trainer.train_dataset:
        ids, labels = (torch.tensor([row[name]]) for name in ("input_ids", "labels"))
        with torch.no_grad():
            found.append(float(trainer.model.eval()(input_ids=ids, labels=labels).loss))
    return np.array(found)


@pytest.mark.parametrize(
    ("rows", "training"),
    [
        (messages, {"assistant_only_loss": True}),
        (messages, {}),
        (texts, {}),
        (pairs, {}),
        (pairs, {"completion_only_loss": False}),
    ],
)
def test_the_loss_measured_is_the_loss_trained(tmp_path: Path, rows: Any, training: dict[str, Any]) -> None:
    trainer = made(tmp_path, rows(), "loss", **training)
    expected = losses(trainer)
    state = trainer.select()
    np.testing.assert_allclose(state.pool.feature("loss"), expected, rtol=1e-4)
    assert set(state.coreset.indices) == set(np.argsort(-expected)[:6])
    counted = [sum(label != -100 for label in row["labels"][1:]) for row in trainer.train_dataset]
    assert trainer.pool_rows.response_length.tolist() == counted


@pytest.mark.parametrize(
    ("rows", "training", "off"),
    [
        (messages, {}, True),
        (texts, {}, True),
        (pairs, {"completion_only_loss": False}, True),
        (pairs, {}, False),
        (messages, {"assistant_only_loss": True}, False),
    ],
)
def test_rows_without_a_prompt_turn_noise_detection_off_with_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, rows: Any, training: dict[str, Any], off: bool
) -> None:
    with caplog.at_level(logging.WARNING, logger="coretune"):
        trainer = made(tmp_path, rows(), "grace", **training)
    said = [record.getMessage() for record in caplog.records if "noise detection" in record.getMessage()]
    assert len(said) == off
    if off:
        assert f"{ROWS} of {ROWS} rows have no prompt apart from what the loss counts" in said[0]
        assert "for messages set assistant_only_loss" in said[0]
        assert trainer.begin_round(0).coreset.figures["drawn"] == 1


def test_rows_without_a_prompt_differ_by_all_of_their_tokens(tmp_path: Path) -> None:
    """By their first token they would all be the same."""
    state = made(tmp_path, messages(), "facility_location").select()
    embeddings = state.pool.feature("prompt_embedding")
    assert len(np.unique(embeddings.round(3), axis=0)) == ROWS


def test_rows_that_truncation_leaves_without_a_label_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = pairs().map(
        lambda row, i: {"prompt": 40 * row["prompt"] if i < 3 else row["prompt"]}, with_indices=True
    )
    with caplog.at_level(logging.WARNING, logger="coretune"):
        trainer = made(tmp_path, rows, "loss", max_length=90)
    assert len(trainer.pool_rows.ids) == ROWS - 3
    assert f"left out 3 of {ROWS} rows of train_dataset: after truncation to max_length 90" in caplog.text


def test_no_row_that_is_left_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=rf"no row .* is left: after truncation to max_length 3 .* {ROWS} rows"
    ):
        made(tmp_path, pairs(), "loss", max_length=3)
    with pytest.raises(ValueError, match="train_dataset holds no rows"):
        made(tmp_path, pairs().select([]), "loss")

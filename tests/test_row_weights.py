"""A column `weight` multiplies the loss of its row in training, and nothing else."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from test_corpus import make_rows
from test_records import write
from tiny_run import Spy, arguments, coreset_config, model_folder, records
from tiny_tokenizer import tiny_tokenizer
from trl import SFTConfig

from coretune.data.corpus import Corpus
from coretune.data.formats import weight_of
from coretune.data.raw import BadRow, LeftOut
from coretune.rounds.sampler import PreparedRows
from coretune.training.weighting import loss_weights

FILES = Path(__file__).parent / "formats"


def weighed(path: Path, weights: list[Any]) -> Corpus:
    rows = [{**row, "weight": weight} for row, weight in zip(records(len(weights)), weights, strict=True)]
    return Corpus.build(write(path, rows), tiny_tokenizer(), max_length=96)


def test_weights_of_a_file_are_kept_and_named() -> None:
    corpus = Corpus.build(FILES / "weighted.csv", tiny_tokenizer(), max_length=99, skip_bad_rows=True)
    assert corpus.weight is not None
    assert dict(zip(corpus.ids, corpus.weight, strict=True)) == {"weighted.csv:2": 2.0, "weighted.csv:3": 0.5}
    assert corpus.notes == ["`weight` multiplies the loss of 2 rows by 0.5 to 2"]
    assert corpus.left_out == {"`weight` is 0: the row is not to be trained on": 1}


def test_weights_of_one_are_none_and_others_change_the_fingerprint(tmp_path: Path) -> None:
    plain, ones, others = (
        weighed(tmp_path / "p.jsonl", weights) for weights in ([1] * 4, [1.0, 1, 1, 1], [1, 1, 1, 3])
    )
    assert plain.weight is ones.weight is None
    assert plain.fingerprint == ones.fingerprint != others.fingerprint
    assert sorted(others.weight) == [1, 1, 1, 3]


@pytest.mark.parametrize("weight", [-1, "heavy", True, None, float("nan"), float("inf"), [1], 10**400])
def test_a_weight_that_is_none_is_named(weight: Any) -> None:
    with pytest.raises(BadRow, match=r"`w` is .*multiplies the row's loss: give a number above 0, or rename"):
        weight_of({"w": weight}, {"weight": "w"})


def test_a_weight_of_nothing_leaves_its_row_out() -> None:
    for zero in (0, 0.0, "0"):
        with pytest.raises(LeftOut):
            weight_of({"weight": zero}, {})
    assert weight_of({}, {}) == 1


def losses(trainer: Spy, rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the losses of each row's counted tokens under the model as it is, and how many those are."""
    sums, counts = [], []
    for row in rows:
        ids, labels = (
            torch.from_numpy(f([row])[0][None]) for f in (trainer.pool_rows.tokens, trainer.pool_rows.labels)
        )
        count = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            sums.append(count * float(trainer.model.eval()(input_ids=ids, labels=labels).loss))
        counts.append(count)
    return np.array(sums), np.array(counts)


@pytest.mark.parametrize("prepared", [False, True], ids=["a corpus", "rows that TRL prepares"])
def test_the_loss_of_a_step_is_weighed_by_row(tmp_path: Path, prepared: bool) -> None:
    weights = [0.5, 2.0, 1.0, 4.0, 1.0, 3.0]
    pool = weighed(tmp_path / "p.jsonl", weights)
    data: dict[str, Any] = {"train_dataset": pool.dataset, "rows": pool}
    if prepared:
        rows = [
            {"id": name, "weight": weight, "input_ids": ids.tolist(), "labels": labels.tolist()}
            for name, weight, ids, labels in zip(
                pool.ids, pool.weight, pool.tokens(range(6)), pool.labels(range(6)), strict=True
            )
        ]
        data = {"train_dataset": datasets.Dataset.from_list(rows)}
    trainer = Spy(
        str(model_folder()),
        arguments(tmp_path / "run", max_steps=1, logging_steps=1),
        coreset=coreset_config("random", budget=4, refresh_every="never"),
        processing_class=tiny_tokenizer(),
        **data,
    )
    places = list(range(6))
    sums, counts = losses(trainer, places)
    trainer.train()
    batch = [trainer.pool_rows.ids.index(name) for name in trainer.trained[0]]
    own = trainer.pool_rows.weight[batch]
    expected = float((own * sums[batch]).sum() / counts[batch].sum())
    (said,) = (entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    assert said == pytest.approx(expected, rel=1e-3)
    assert not math.isclose(expected, float(sums[batch].sum() / counts[batch].sum()), rel_tol=0.05)


def test_own_weights_multiply_those_of_the_coreset(tmp_path: Path) -> None:
    trainer = Spy(
        str(model_folder()),
        arguments(tmp_path / "run"),
        coreset=coreset_config("craig", budget=3, weighted=True),
        train_dataset=(pool := weighed(tmp_path / "p.jsonl", [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])).dataset,
        rows=pool,
        processing_class=tiny_tokenizer(),
    )
    state = trainer.select()
    chosen = state.coreset.indices
    both, coreset_alone, own = (
        loss_weights(state, weights, weighted)[chosen]
        for weights, weighted in ((pool.weight, True), (None, True), (pool.weight, False))
    )
    np.testing.assert_allclose(both, coreset_alone * own)
    np.testing.assert_allclose(own, pool.weight[chosen])


def test_what_cannot_be_weighed_is_refused_for_rows_with_weights(tmp_path: Path) -> None:
    pool = weighed(tmp_path / "p.jsonl", [1.0, 2.0, 1.0, 1.0])
    given: SFTConfig = arguments(tmp_path / "run", label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match="weighted needs loss_type nll without label smoothing"):
        Spy(
            str(model_folder()),
            given,
            coreset=coreset_config("random", budget=2),
            train_dataset=pool.dataset,
            rows=pool,
            processing_class=tiny_tokenizer(),
        )
    rows = [{**row, "input_ids": [1, 5, 6], "labels": [-100, 5, 6], "weight": 0} for row in make_rows(2)]
    with pytest.raises(ValueError, match="row r0 has weight 0, which multiplies its loss"):
        PreparedRows.of(datasets.Dataset.from_list(rows))

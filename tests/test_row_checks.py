"""Rows that cannot be trained are named, left out and counted, before the first step."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_run import arguments, coreset_config, corpus, model_folder, trainer
from tiny_tokenizer import tiny_tokenizer
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from coretune.rounds.sampler import PreparedRows
from coretune.training.row_checks import refuse_strange_rows
from coretune.training.train import CoresetSFTTrainer, CoresetTrainer


def tokenised() -> datasets.Dataset:
    return corpus().dataset.remove_columns("example_id")


def with_last(column: str, row: int, value: int) -> datasets.Dataset:
    """The rows with the last token, or label, of one of them changed."""

    def changed(example: dict[str, Any], index: int) -> dict[str, Any]:
        return {column: [*example[column][:-1], value if index == row else example[column][-1]]}

    return tokenised().map(changed, with_indices=True)


@pytest.mark.parametrize(
    ("place", "column", "value", "message"),
    [
        ("train_dataset", "input_ids", 300, "row 7: token 300 in train_dataset, and LlamaForCausalLM has an"),
        ("train_dataset", "input_ids", -100, "row 7: token -100 in train_dataset"),
        (
            "train_dataset",
            "labels",
            300,
            "row 7: label 300 in train_dataset, and LlamaForCausalLM has an output",
        ),
        ("eval_dataset", "input_ids", 300, "row 7: token 300 in eval_dataset"),
        ("named", "input_ids", 300, r"row 7: token 300 in eval_dataset\['hard'\]"),
        ("eval_dataset", "labels", -1, "row 7: label -1 in eval_dataset"),
        ("target", "input_ids", 5000, "row 7: token 5000 in target"),
    ],
)
def test_a_token_that_the_model_has_not_is_named_before_the_first_step(
    tmp_path: Path, place: str, column: str, value: int, message: str
) -> None:
    rows = with_last(column, 7, value)
    given: dict[str, Any] = {"train_dataset": tokenised(), place: rows}
    if place == "named":
        given = {"train_dataset": tokenised(), "eval_dataset": {"easy": tokenised(), "hard": rows}}
    if place == "target":
        given["target"] = PreparedRows.of(rows)
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, coreset_config("less" if place == "target" else "random"), rows=None, **given)


def test_the_last_entry_of_the_embedding_is_known(tmp_path: Path) -> None:
    trainer(tmp_path, coreset_config("random"), rows=None, train_dataset=with_last("input_ids", 7, 299))


@pytest.mark.parametrize(
    ("model", "positions"),
    [
        (GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, n_positions=30, vocab_size=300)), 30),
        (
            OPTForCausalLM(
                OPTConfig(
                    hidden_size=8,
                    ffn_dim=8,
                    num_hidden_layers=1,
                    num_attention_heads=2,
                    max_position_embeddings=30,
                    vocab_size=300,
                    word_embed_proj_dim=8,
                )
            ),
            30,
        ),
        (AutoModelForCausalLM.from_pretrained(model_folder()), None),  # computed: 96 are no end
    ],
)
def test_a_row_longer_than_a_learnt_table_of_positions_is_named(model: Any, positions: int | None) -> None:
    long = list(range(10, 41)) if positions else list(range(100))
    rows = PreparedRows.of(
        datasets.Dataset.from_dict({"id": ["short", "long"], "input_ids": [[5], long], "labels": [[5], long]})
    )
    if positions is None:
        refuse_strange_rows(model, rows, "train_dataset")
        return
    with torch.no_grad(), pytest.raises(IndexError):
        model(torch.tensor([long]))
    with pytest.raises(
        ValueError, match="row long of train_dataset has 31 tokens, and the model has learnt 30"
    ):
        refuse_strange_rows(model, rows, "train_dataset")


# ------------------------------------------------------------------------------------- rows without a label


def unlabelled(count: int, but_the_first: bool = False) -> datasets.Dataset:
    def changed(example: dict[str, Any], index: int) -> dict[str, Any]:
        kept = 1 if but_the_first else 0
        ignored = [*example["input_ids"][:kept], *[-100] * (len(example["labels"]) - kept)]
        return {"labels": ignored if index < count else example["labels"]}

    return tokenised().map(changed, with_indices=True)


@pytest.mark.parametrize("kind", [CoresetSFTTrainer, CoresetTrainer])
@pytest.mark.parametrize("but_the_first", [False, True])
def test_rows_without_a_label_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: Any, but_the_first: bool
) -> None:
    """Nor is a label of the first token one, which nothing predicts."""
    with caplog.at_level(logging.WARNING, logger="coretune"):
        made = trainer(
            tmp_path,
            coreset_config("random"),
            rows=None,
            train_dataset=unlabelled(3, but_the_first),
            kind=kind if kind is CoresetSFTTrainer else plain,
        )
    assert "left out 3 of 48 rows of train_dataset, none of their tokens has a label: 0, 1, 2" in caplog.text
    assert made.pool_rows.ids == [str(row) for row in range(3, 48)]  # by the names they had
    assert len(made.train_dataset) == 45
    assert made.train_dataset[0]["input_ids"] == tokenised()[3]["input_ids"]


def plain(*, args: Any, model: str, **settings: Any) -> CoresetTrainer:
    args.remove_unused_columns = False
    return CoresetTrainer(AutoModelForCausalLM.from_pretrained(model), args, **settings)


def test_where_no_row_or_no_row_of_the_target_has_a_label_nothing_is_trained(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="no row of train_dataset has a token that the loss counts: the labels"
    ):
        trainer(tmp_path, rows=None, train_dataset=unlabelled(48))
    target = PreparedRows.of(unlabelled(2))
    with pytest.raises(ValueError, match="row 0 of target has no token that the loss counts, nor 1 more"):
        trainer(tmp_path, coreset_config("less"), target=target)
    with pytest.raises(ValueError, match="row 0 of train_dataset has no token that the loss counts"):
        trainer(tmp_path, rows=target, train_dataset=unlabelled(2))  # whose places both must agree on


def test_a_row_of_fewer_labels_than_tokens_is_named(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"id": ["a", "b"], "input_ids": [[5], [6, 7]], "labels": [[5], [7]]})
    with pytest.raises(ValueError, match="row b has 2 input_ids and 1 labels: give each token a label"):
        PreparedRows.of(rows)


# ----------------------------------------------------------------------------------------- other datasets


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            lambda: tokenised().to_iterable_dataset(),
            "train_dataset is a stream .IterableDataset., and a coreset",
        ),
        (lambda: datasets.DatasetDict(train=tokenised()), "is a DatasetDict of the splits train: give one"),
        (
            lambda: [{"input_ids": [5, 6], "labels": [5, 6]}],
            "is a list: give a datasets.Dataset, as Dataset.fr",
        ),
        (
            lambda: torch.utils.data.TensorDataset(torch.zeros(3)),
            "is a TensorDataset: give a datasets.Dataset",
        ),
    ],
)
@pytest.mark.parametrize("kind", [CoresetSFTTrainer, CoresetTrainer])
def test_what_is_no_dataset_of_rows_is_refused_by_name_before_a_model_is_loaded(
    tmp_path: Path, given: Callable[[], Any], message: str, kind: Any
) -> None:
    with pytest.raises(ValueError, match=message):
        kind("no/such/model", arguments(tmp_path), coreset=coreset_config("random"), train_dataset=given())


# ----------------------------------------------------------------------------------- before training begins


@pytest.mark.parametrize("training", [{}, {"packing": True, "max_length": 96}])
def test_a_batch_and_a_row_can_be_read_before_training(tmp_path: Path, training: dict[str, Any]) -> None:
    """As people do to see what a collator makes of their rows; the run is the same afterwards."""
    made = trainer(tmp_path / "looked", coreset_config("random"), kind=CoresetSFTTrainer, **training)
    batch = next(iter(made.get_train_dataloader()))
    known = {token for row in corpus().tokens(np.arange(48)) for token in row.tolist()}
    assert set(batch["input_ids"].unique().tolist()) <= known | {tiny_tokenizer().pad_token_id}
    loss = made.compute_loss(made.model, batch)
    assert torch.isfinite(loss)
    assert made.train_dataset[0]["input_ids"] == corpus().tokens([0])[0].tolist()
    assert made.train_dataset[np.int64(47)]["labels"] == corpus().labels([47])[0].tolist()
    assert len(list(made.train_dataset)) == 48
    made.train()
    other = trainer(tmp_path / "not", coreset_config("random"), kind=CoresetSFTTrainer, **training)
    other.train()
    assert made.coreset_state.coreset.indices.tolist() == other.coreset_state.coreset.indices.tolist()


# ----------------------------------------------------------------------------------- what is given as a model


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    model = AutoModelForCausalLM.from_pretrained(model_folder())
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_a_model_of_which_nothing_is_trained_is_refused(tmp_path: Path, adapter: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(model_folder())
    with pytest.raises(ValueError, match=r"requires a gradient: unfreeze .* is_trainable=True"):
        trainer(tmp_path, coreset_config("random"), model=PeftModel.from_pretrained(base, adapter))
    alive = AutoModelForCausalLM.from_pretrained(model_folder())
    going_on = PeftModel.from_pretrained(alive, adapter, is_trainable=True)
    trainer(tmp_path, coreset_config("random"), model=going_on)

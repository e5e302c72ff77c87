"""The trainer: what it really trains on, with which loss, what it refuses; a resumed run is the same run."""

from __future__ import annotations

import inspect
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from peft import LoraConfig
from tiny_run import Spy, arguments, coreset_config, corpus, model_folder, trainer, weights
from tiny_tokenizer import tiny_tokenizer
from transformers import Trainer
from trl import SFTTrainer
from watched_run import names, watched

from coretune.filters.cooldown import Cooldown
from coretune.filters.neighbours import Neighbours
from coretune.rounds.order import Order, round_order
from coretune.rounds.sampler import PreparedRows, RoundSampler, with_positions
from coretune.training.refusals import can_weigh
from coretune.training.train import CoresetSFTTrainer

needs_weights = pytest.mark.skipif(not can_weigh(version("trl")), reason="TRL < 1.16 has no loss per token")
VERSIONS = f"transformers {version('transformers')}, trl {version('trl')}"


# ------------------------------------------------------------------------------------ what is trained on


@pytest.mark.parametrize(
    ("settings", "accumulate", "coresets"),
    [
        ({"warmup": 0.1, "refresh_every": 2}, 1, 4),
        ({"warmup": 0.1, "refresh_every": 2}, 2, 4),
        ({"refresh_every": "never", "warmup": 0.1}, 1, 2),
        ({"budget": "200 tokens", "refresh_every": 3}, 1, 3),
    ],
)
def test_the_rows_trained_on_are_the_rows_of_the_rounds(
    tmp_path: Path, settings: dict[str, Any], accumulate: int, coresets: int
) -> None:
    config = coreset_config("grace", **settings)
    made, states = watched(tmp_path, config, gradient_accumulation_steps=accumulate, max_steps=7)
    handed_out = [name for state in states for name in names(made, round_order(state, made.schedule, 0).rows)]
    trained = [name for batch in made.trained for name in batch]
    assert trained == handed_out[: len(trained)]
    assert len(trained) == 7 * 4 * accumulate
    assert [state.round for state in states] == list(range(len(states)))
    assert len({tuple(state.coreset.indices) for state in states}) == coresets


def test_a_random_coreset_changes_too_and_full_is_the_whole_pool(tmp_path: Path) -> None:
    made, states = watched(tmp_path / "random", coreset_config("random", refresh_every=2), max_steps=6)
    assert len({tuple(state.coreset.indices) for state in states}) == 3
    whole = coreset_config("random", budget="100%", refresh_every="never")
    made, states = watched(tmp_path / "full", whole, max_steps=24)
    everyone = sorted(made.pool_rows.ids)
    assert sorted(name for batch in made.trained[:12] for name in batch) == everyone
    assert sorted(name for batch in made.trained[12:] for name in batch) == everyone


def test_filters_that_compare_neighbours_have_a_graph_with_a_method_that_reads_none(tmp_path: Path) -> None:
    filters = (Neighbours(pairs=8, min_loss_ratio=0.0), Cooldown(by="loss"))
    config = coreset_config("random", filters=filters)
    _, states = watched(tmp_path, config, max_steps=6)
    assert config.needs == ("loss", config.refresh.embedding)
    assert states[-1].pool.graph is not None
    assert states[-1].coreset.figures["filtered_cooldown"] > 0


def test_what_is_done_once_an_epoch_is_done_once_a_coreset(tmp_path: Path) -> None:
    settings = {"eval_strategy": "epoch", "save_strategy": "epoch", "eval_dataset": corpus(12, 1).dataset}
    made = trainer(tmp_path, coreset_config("random", refresh_every=2), max_steps=5, **settings)
    made.train()
    assert [entry["step"] for entry in made.state.log_history if "eval_loss" in entry] == [2, 4, 5]
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [
        f"checkpoint-{n}" for n in (2, 4, 5)
    ]


def test_the_sampler_has_one_length_and_the_rows_of_the_moment() -> None:
    order = Order(np.array([3, 1, 2]), np.arange(1, 4))
    sampler = RoundSampler(lambda: order, 3)
    assert (len(sampler), list(sampler)) == (3, [3, 1, 2])
    order = Order(np.array([9, 8, 7]), np.arange(1, 4))
    assert (len(sampler), list(sampler)) == (3, [9, 8, 7])
    assert all(type(row) is int for row in sampler)


def test_an_epoch_is_a_pass_over_the_coreset_after_the_warmup(tmp_path: Path) -> None:
    config = coreset_config("loss", budget="25%", warmup=0.2, refresh_every="never")
    made = trainer(tmp_path, config, max_steps=-1, num_train_epochs=3.0)
    assert made.args.max_steps == 3 + 3 * 3  # 10 warm-up rows and 12 coreset rows, in steps of 4
    made.train()
    after = [name for batch in made.trained[3:] for name in batch]
    chosen = names(made, made.coreset_state.coreset.indices)
    assert sorted(after) == sorted(chosen * 3)


def test_bookkeeping_agrees_with_what_was_trained(tmp_path: Path) -> None:
    config = coreset_config("grace", warmup=0.1, refresh_every=2, anchors="priority", anchor_share=0.2)
    made = trainer(tmp_path, config, max_steps=6, eval_dataset=corpus(12, 1).dataset)
    made.train()
    made.evaluate()
    costs, per_row = made.ledger.by_phase(), dict(zip(made.pool_rows.ids, made.pool_rows.length, strict=True))
    tokens = [sum(per_row[name] for name in batch) for batch in made.trained]
    assert costs["warm-up"].rows == 8
    assert costs["warm-up"].tokens == sum(tokens[:2])
    assert costs["training"].rows == 16
    assert costs["training"].tokens == sum(tokens[2:])
    assert costs["measurement"].rows == 48 + 10
    assert costs["evaluation"].rows == 12
    assert costs["evaluation"].tokens == corpus(12, 1).length.sum()
    assert all(costs[name].seconds > 0 for name in ("warm-up", "measurement", "training", "evaluation"))
    assert all(costs[name].flops for name in ("warm-up", "measurement", "training", "evaluation"))
    saved = json.loads((tmp_path / "_coretune" / "ledger.json").read_text())
    assert [entry["round"] for entry in saved["rounds"]] == [1, 2]


# ----------------------------------------------------------------------------------------- weighted loss


def run_of_equal_rows(folder: Path, weighted: bool, accumulate: int) -> Spy:
    config = coreset_config("random", weighted=weighted)
    made = trainer(folder, config, gradient_accumulation_steps=accumulate, max_steps=4, learning_rate=1e-3)
    made.train()
    return made


@needs_weights
@pytest.mark.parametrize("accumulate", [1, 3])
def test_weights_of_one_are_the_stock_loss(tmp_path: Path, accumulate: int) -> None:
    plain = run_of_equal_rows(tmp_path / "plain", False, accumulate)
    weighted = run_of_equal_rows(tmp_path / "weighted", True, accumulate)
    assert plain.trained == weighted.trained
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(weighted)[name], value, rtol=1e-5, atol=1e-6, msg=name)
    losses = [run.state.log_history[-1]["train_loss"] for run in (plain, weighted)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.fixture
def one_batch(tmp_path: Path) -> Any:
    """(gradient of each parameter, loss) of one batch of four rows with the given weights."""
    made = trainer(tmp_path, coreset_config("random", weighted=True), max_steps=1)
    made.create_optimizer_and_scheduler(1)
    made.begin_round(0)
    batch = next(iter(made.get_train_dataloader()))

    def gradient(weight: list[float], only: int | None = None) -> tuple[torch.Tensor, float]:
        made._weights[batch["example_id"]] = torch.tensor(weight)
        inputs = {name: value.clone() for name, value in batch.items()}
        if only is not None:
            inputs["labels"][torch.arange(4) != only] = -100
        made.model.zero_grad()
        tokens = (batch["labels"][:, 1:] != -100).sum()
        loss = made.training_step(made.model, inputs, tokens)
        parts = [p.grad.flatten() for p in made.model.parameters() if p.grad is not None]
        return torch.cat(parts).clone(), float(loss)

    return gradient


@needs_weights
def test_a_weight_scales_its_rows_loss_and_gradient(one_batch: Any) -> None:
    """Through the real training step: the whole is the weighted sum of the rows' own parts."""
    weight = [0.5, 2.0, 0.0, 1.5]
    parts = [one_batch([1.0] * 4, only=row) for row in range(4)]
    whole, loss = one_batch(weight)
    expected = sum(w * part for w, (part, _) in zip(weight, parts, strict=True))
    torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-6)
    assert loss == pytest.approx(sum(w * part for w, (_, part) in zip(weight, parts, strict=True)), rel=1e-5)
    assert all(part.abs().max() > 0 for part, _ in parts)


@needs_weights
def test_weights_reach_the_loss_whatever_the_dataset_calls_its_columns(tmp_path: Path) -> None:
    """Without a corpus, with unused columns kept, and with a column of our name that means something else."""
    rows = corpus().dataset.remove_columns("example_id")
    rows = rows.add_column("example_id", [0] * len(rows))
    for settings in ({}, {"remove_unused_columns": False}):
        config = coreset_config("craig", weighted=True)
        made = trainer(tmp_path / str(len(settings)), config, rows=None, train_dataset=rows, **settings)
        seen: list[list[int]] = []
        stock = made.compute_loss

        def spied(
            model: Any, inputs: dict[str, Any], *args: Any, seen: Any = seen, stock: Any = stock, **kw: Any
        ) -> Any:
            seen.append(inputs["example_id"].tolist())
            return stock(model, inputs, *args, **kw)

        made.compute_loss = spied
        made.train()
        assert [[str(row) for row in batch] for batch in seen] == made.trained
        assert made.coreset_state.coreset.weights.std() > 0


# ------------------------------------------------------------------------------------------ the dataset


def test_prepared_rows_are_those_of_the_corpus() -> None:
    known = corpus()
    found = PreparedRows.of(known.dataset.add_column("id", known.ids))
    assert found.ids == known.ids
    np.testing.assert_array_equal(found.length, known.length)
    np.testing.assert_array_equal(found.prompt_length, known.prompt_length)
    np.testing.assert_array_equal(found.response_length, known.response_length)
    for ours, theirs in zip(found.tokens(np.array([5, 0])), known.tokens([5, 0]), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert PreparedRows.of(known.dataset).ids == [str(row) for row in range(48)]
    with pytest.raises(ValueError, match="has input_ids and labels, this one has"):
        PreparedRows.of(known.dataset.remove_columns("labels"))


def test_a_row_without_a_response_is_all_prompt() -> None:
    rows = datasets.Dataset.from_dict({"input_ids": [[1, 2, 3], [4, 5]], "labels": [[-100] * 3, [4, 5]]})
    assert PreparedRows.of(rows).prompt_length.tolist() == [3, 0]
    assert with_positions(rows)["example_id"][:] == [0, 1]


def test_the_stock_preparation_and_lora(tmp_path: Path) -> None:
    """As somebody with their own script would: texts in, TRL prepares them, an adapter is trained."""
    rows = datasets.Dataset.from_list([{"prompt": f"say {i}: ", "completion": f"{i} {i}"} for i in range(24)])
    made = CoresetSFTTrainer(
        str(model_folder()),
        arguments(tmp_path, dataset_kwargs=None, max_steps=4, save_strategy="steps", save_steps=4),
        coreset=coreset_config("grace"),
        train_dataset=rows,
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"]),
    )
    made.train()
    assert len(made.pool_rows.ids) == 24
    assert (made.pool_rows.prompt_length > 0).all()
    assert made.cost.adapter_parameters == sum(p.numel() for p in made.model.parameters() if p.requires_grad)
    assert (tmp_path / "checkpoint-4" / "adapter_model.safetensors").exists()


# ------------------------------------------------------------------------------------------- the seams


@pytest.mark.parametrize(
    ("owner", "method", "parameters"),
    [
        (Trainer, "_get_train_sampler", ["self", "train_dataset"]),
        (Trainer, "_set_signature_columns_if_needed", ["self"]),
        (SFTTrainer, "_set_signature_columns_if_needed", ["self"]),
        (Trainer, "_save_checkpoint", ["self", "model", "trial"]),
        (SFTTrainer, "_save_checkpoint", ["self", "model", "trial"]),
        (Trainer, "_save_rng_state", ["self", "output_dir"]),
        (Trainer, "get_total_train_batch_size", ["self", "args"]),
        (Trainer, "_get_output_dir", ["self", "trial"]),
        (
            SFTTrainer,
            "_prepare_dataset",
            ["self", "dataset", "processing_class", "args", "packing", "formatting_func", "dataset_name"],
        ),
        (Trainer, "pop_callback", ["self", "callback"]),
        (SFTTrainer, "compute_loss", ["self", "model", "inputs", "return_outputs", "num_items_in_batch"]),
    ],
)
def test_the_methods_we_override_are_there(owner: type, method: str, parameters: list[str]) -> None:
    assert method in vars(owner), f"{owner.__name__}.{method} is gone ({VERSIONS})"
    found = list(inspect.signature(vars(owner)[method]).parameters)
    assert found == parameters, f"{owner.__name__}.{method} takes {found} ({VERSIONS})"


@needs_weights
def test_the_methods_we_override_are_called_as_we_think(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("_get_train_sampler", "_set_signature_columns_if_needed", "_save_checkpoint"):
        ours = getattr(CoresetSFTTrainer, name)

        def counted(self: Any, *args: Any, name: str = name, ours: Any = ours, **kwargs: Any) -> Any:
            calls.append(name)
            return ours(self, *args, **kwargs)

        monkeypatch.setattr(CoresetSFTTrainer, name, counted)
    rounds: list[int] = []
    begin = CoresetSFTTrainer.begin_round
    monkeypatch.setattr(
        CoresetSFTTrainer, "begin_round", lambda self, step: (rounds.append(step), begin(self, step))[1]
    )
    settings = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6}
    trainer(tmp_path, coreset_config("random", weighted=True, refresh_every=2), **settings).train()
    assert calls.count("_get_train_sampler") == 1, VERSIONS
    assert calls.count("_set_signature_columns_if_needed") >= 1, VERSIONS
    assert calls.count("_save_checkpoint") == 2, VERSIONS
    assert rounds == [0, 2, 4], f"on_epoch_begin no longer begins every round ({VERSIONS})"


@needs_weights
def test_trl_still_gives_the_loss_per_token(tmp_path: Path) -> None:
    """What the weighted loss multiplies: log_probs (batch, tokens) of a dataclass, 0 where not counted."""
    made = trainer(tmp_path, coreset_config("random"))
    made.begin_round(0)
    batch = next(iter(made.get_train_dataloader()))
    outputs = made.model(**{**batch, "fused_lm_head": True})
    labels = batch["labels"][:, 1:]
    assert outputs.log_probs.shape == labels.shape, VERSIONS
    assert (outputs.log_probs[labels == -100] == 0).all(), VERSIONS
    assert (outputs.log_probs[labels != -100] < 0).all(), VERSIONS


# ---------------------------------------------------------------------------------------------- select


@pytest.mark.parametrize("warmup", [0.0, 0.2])
def test_select_is_the_first_selection_of_train(tmp_path: Path, warmup: float) -> None:
    """The learning rate's schedule, too, is that of the whole run."""
    config = coreset_config("grace", warmup=warmup)
    selected = trainer(tmp_path / "select", config, max_steps=9, warmup_steps=2).select()
    _, states = watched(tmp_path / "train", config, max_steps=9, warmup_steps=2)
    first = next(state for state in states if state.selections == 1)
    np.testing.assert_array_equal(selected.coreset.indices, first.coreset.indices)
    for name, value in selected.pool.features.items():
        np.testing.assert_array_equal(value, first.pool.features[name], err_msg=name)

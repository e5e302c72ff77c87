"""Rows in packs, in flattened batches, in batches of like length: chosen whole, kept apart, counted."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from tiny_run import LENGTH, Spy, arguments, coreset_config, corpus, model_folder, trainer, weights
from tiny_tokenizer import tiny_tokenizer

from coretune.rounds.order import round_order
from coretune.rounds.sampler import PackedRows, row_lengths
from coretune.training.refusals import can_weigh
from coretune.training.train import CoresetSFTTrainer

needs_weights = pytest.mark.skipif(not can_weigh(version("trl")), reason="TRL < 1.16 has no loss per token")


class Joined(Spy):
    """As Spy, of batches in which rows are joined."""

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        ids, ends = inputs["input_ids"][0], np.cumsum(row_lengths(inputs))
        rows = [tuple(row.tolist()) for row in np.split(ids.numpy(), ends[:-1])]
        self.trained.append([self.name_of[row] for row in rows])
        self.widths.append(len(ids))
        return CoresetSFTTrainer.training_step(self, model, inputs, *args, **kwargs)

    @property
    def widths(self) -> list[int]:
        return self.__dict__.setdefault("_widths", [])


def joined(folder: Path, config: Any, **settings: Any) -> Joined:
    return trainer(folder, config, kind=Joined, **settings)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("weighted", [False, pytest.param(True, marks=needs_weights)])
def test_a_flattened_batch_trains_as_the_padded_one(tmp_path: Path, weighted: bool, attention: str) -> None:
    """No row sees another, and weights go with their rows."""
    config = coreset_config("craig", weighted=weighted)
    usual = {"max_steps": 4, "learning_rate": 1e-3, "model_init_kwargs": {"attn_implementation": attention}}
    padded = trainer(tmp_path / "padded", config, **usual)
    padded.train()
    flat = joined(tmp_path / "flat", config, padding_free=True, max_length=None, **usual)
    flat.train()
    assert flat.trained == padded.trained
    assert not weighted or flat.coreset_state.coreset.weights.std() > 0
    for name, value in weights(padded).items():
        torch.testing.assert_close(weights(flat)[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_a_round_is_packed_after_it_was_chosen(tmp_path: Path) -> None:
    states: list[Any] = []

    def seen(made: Any) -> None:
        begin = made.begin_round
        made.begin_round = lambda step: states.append(begin(step)) or states[-1]

    config = coreset_config("grace", refresh_every=3, warmup=0.2)
    made = joined(
        tmp_path, config, packing=True, max_length=LENGTH, per_device_train_batch_size=2, max_steps=7
    )
    seen(made)
    made.train()
    assert made.schedule.density > 1
    orders = [round_order(state, made.schedule, 0) for state in states]
    handed_out = [made.pool_rows.ids[row] for order in orders for row in order.rows]
    trained = [name for batch in made.trained for name in batch]
    assert trained == handed_out[: len(trained)]
    assert len(made.trained) == 7
    assert all(LENGTH < width <= 2 * LENGTH for width in made.widths)
    last = states[-1]
    assert set(trained[-3:]) <= {made.pool_rows.ids[row] for row in last.coreset.indices}
    costs = made.ledger.by_phase()
    length = dict(zip(made.pool_rows.ids, made.pool_rows.length, strict=True))
    assert costs["warm-up"].tokens + costs["training"].tokens == sum(length[name] for name in trained)
    assert costs["warm-up"].rows + costs["training"].rows == len(trained)
    assert sum(made.widths) == sum(length[name] for name in trained)


@needs_weights
def test_packs_keep_weights_with_their_rows(tmp_path: Path) -> None:
    """One step on packs is the weighted loss of the same rows, each in a batch of its own."""
    config = coreset_config("craig", weighted=True, refresh_every="never")
    made = joined(
        tmp_path, config, packing=True, max_length=LENGTH, per_device_train_batch_size=2, max_steps=1
    )
    made.begin_round(0)
    batch = next(iter(made.get_train_dataloader()))
    rows = batch["example_id"].tolist()
    made.model.train()
    tokens = (batch["labels"][:, 1:] != -100).sum()
    whole = made.compute_loss(made.model, dict(batch), num_items_in_batch=tokens)
    single = 0.0
    for row in rows:
        alone = {name: torch.tensor([made.pool_rows.dataset[row][name]]) for name in ("input_ids", "labels")}
        alone |= {"attention_mask": torch.ones_like(alone["input_ids"]), "example_id": torch.tensor([row])}
        single += float(made.compute_loss(made.model, alone, num_items_in_batch=tokens))
    assert len(rows) > 4
    assert float(whole) == pytest.approx(single, rel=1e-5)


def test_trl_prepares_the_rows_and_we_pack_them(tmp_path: Path) -> None:
    """As somebody with their own script would; the evaluation set is packed by TRL."""
    rows = datasets.Dataset.from_list([{"prompt": f"say {i}: ", "completion": f"{i} {i}"} for i in range(24)])
    made = CoresetSFTTrainer(
        str(model_folder()),
        arguments(tmp_path, packing=True, max_length=40, max_steps=3, dataset_kwargs=None),
        coreset=coreset_config("random"),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tiny_tokenizer(),
    )
    assert isinstance(made.train_dataset, PackedRows)
    assert len(made.pool_rows.ids) == 24
    assert "seq_lengths" in made.eval_dataset.column_names
    made.train()
    assert np.isfinite(made.evaluate()["eval_loss"])


def test_grouping_by_length_trains_the_same_rows_with_less_padding(tmp_path: Path) -> None:
    config = coreset_config("random", budget="100%", refresh_every="never")
    runs = []
    for strategy in ("random", "group_by_length"):
        made = trainer(tmp_path / strategy, config, max_steps=12, train_sampling_strategy=strategy)
        made.train()
        length = dict(zip(made.pool_rows.ids, made.pool_rows.length, strict=True))
        padding = sum(
            max(length[n] for n in rows) * len(rows) - sum(length[n] for n in rows) for rows in made.trained
        )
        runs.append((sorted(name for rows in made.trained for name in rows), padding))
    assert runs[0][0] == runs[1][0] == sorted(corpus().ids)
    assert runs[1][1] < 0.6 * runs[0][1]


def test_a_packed_run_resumes_as_itself(tmp_path: Path) -> None:
    config = coreset_config("grace", refresh_every=4, anchors="priority", warmup=0.3)
    usual = {"packing": True, "max_length": LENGTH, "per_device_train_batch_size": 2, "max_steps": 7}
    whole = joined(tmp_path, config, save_strategy="steps", save_steps=3, **usual)
    whole.train()
    assert whole.schedule.steps in (2, 4)  # so that step 3 is inside a round
    resumed = joined(tmp_path / "again", config, **usual)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.trained == whole.trained[3:]
    for name, value in weights(whole).items():
        assert torch.equal(weights(resumed)[name], value), name
    other = joined(tmp_path / "other", config, **{**usual, "per_device_train_batch_size": 1})
    with pytest.raises(ValueError, match="packed for 2 packs a step: keep the product"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))

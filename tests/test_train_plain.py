"""transformers' own Trainer on a coreset, and what both trainers do for the end of a run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_run import coreset_config, corpus, model_folder, trainer, weights
from tiny_tokenizer import tiny_tokenizer
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForSeq2Seq,
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from coretune.measure.settings import MeasureSettings
from coretune.training.card import BEGIN
from coretune.training.train import CoresetTrainer
from coretune.training.weighting import CHUNK, weighted_loss
from coretune.types import Budget, Coreset, Pool


def settings(folder: Path, **training: Any) -> dict[str, Any]:
    """What a stock Trainer takes, without a coreset."""
    usual = {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return {
        "model": AutoModelForCausalLM.from_pretrained(model_folder()),
        "args": TrainingArguments(str(folder), **{**usual, **training}),
        "train_dataset": corpus().dataset,
        "data_collator": DataCollatorForSeq2Seq(tiny_tokenizer()),
        "processing_class": tiny_tokenizer(),
    }


class Seen(CoresetTrainer):
    """Keeps what every step was given."""

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        self.__dict__.setdefault("batches", []).append(
            {name: value.clone() for name, value in inputs.items()}
        )
        return super().training_step(model, inputs, *args, **kwargs)


def lora(model: Any) -> Any:
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"]))


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("adapted", [False, True])
def test_weights_of_one_are_the_stock_trainers_loss(tmp_path: Path, accumulate: int, adapted: bool) -> None:
    """Against a stock Trainer that is fed the very batches, with weights and without."""
    runs: dict[str, Any] = {}
    for name, weighted in (("plain", False), ("weighted", True)):
        given = settings(tmp_path / name, gradient_accumulation_steps=accumulate)
        given["model"] = lora(given["model"]) if adapted else given["model"]
        runs[name] = Seen(**given, coreset=coreset_config("random", weighted=weighted))
        runs[name].train()
    rows = [row for batch in runs["weighted"].batches for row in batch["example_id"].tolist()]
    given = settings(tmp_path / "stock", gradient_accumulation_steps=accumulate)
    given["train_dataset"] = given["train_dataset"].select(rows)
    given["model"] = lora(given["model"]) if adapted else given["model"]
    given["args"].train_sampling_strategy = "sequential"
    runs["stock"] = Trainer(**given)
    runs["stock"].train()
    for name in ("plain", "weighted"):
        for weight, value in weights(runs["stock"]).items():
            torch.testing.assert_close(weights(runs[name])[weight], value, rtol=1e-5, atol=1e-6, msg=weight)
        losses = [run.state.log_history[-1]["train_loss"] for run in (runs["stock"], runs[name])]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("tokens", [7, 2 * CHUNK + 5])
def test_the_weighted_loss_is_the_sum_of_its_rows(tokens: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, tokens, 11, requires_grad=True)
    labels = torch.randint(0, 11, (3, tokens))
    labels[0, :3] = labels[2] = -100
    weight = torch.tensor([0.5, 2.0, 1.0])
    found = weighted_loss(logits, labels, weight, 10)
    log_p = torch.log_softmax(logits[:, :-1].double(), -1)
    expected = sum(
        -weight[row].item() * log_p[row, t, labels[row, t + 1]]
        for row in range(3)
        for t in range(tokens - 1)
        if labels[row, t + 1] != -100
    )
    assert float(found) == pytest.approx(float(expected) / 10, rel=1e-5)
    found.backward()
    assert logits.grad is not None
    assert (logits.grad[2] == 0).all()
    nothing = weighted_loss(logits, torch.full_like(labels, -100), weight, None)
    assert float(nothing) == 0.0
    nothing.backward()
    with pytest.raises(ValueError, match="a batch of 2 examples has become 3 rows, and which weight"):
        weighted_loss(logits, labels, weight[:2], None)


def test_a_plain_trainer_trains_on_the_coreset_with_its_weights(tmp_path: Path) -> None:
    made = Seen(**settings(tmp_path, max_steps=5), coreset=coreset_config("craig", weighted=True))
    made.train()
    chosen = made.coreset_state.coreset
    assert chosen.weights.std() > 0
    assert set(made.batches[-1]["example_id"].tolist()) <= set(chosen.indices.tolist())
    assert made.ledger.by_phase()["measurement"].rows >= 48
    resumable = settings(tmp_path / "saved", max_steps=5, save_strategy="steps", save_steps=2)
    whole = Seen(**resumable, coreset=coreset_config("craig", weighted=True))
    whole.train()
    again = Seen(**settings(tmp_path / "again", max_steps=5), coreset=coreset_config("craig", weighted=True))
    again.train(resume_from_checkpoint=str(tmp_path / "saved" / "checkpoint-2"))
    for name, value in weights(whole).items():
        assert torch.equal(weights(again)[name], value), name


@pytest.mark.parametrize(
    ("given", "coreset", "message"),
    [
        ({"processing_class": None}, {}, "this method measures rows, and needs a tokenizer's padding"),
        ({"compute_loss_func": len}, {"weighted": True}, "weighted needs the stock loss"),
        ({"model": None, "model_init": len}, {}, "model_init makes the model anew in train"),
        ({}, {"online_signals": True}, "use CoresetSFTTrainer"),
    ],
)
def test_what_a_plain_trainer_cannot_do_is_refused(
    tmp_path: Path, given: dict[str, Any], coreset: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        CoresetTrainer(**{**settings(tmp_path), **given}, coreset=coreset_config(**coreset))


def test_a_method_that_measures_nothing_needs_no_tokenizer(tmp_path: Path) -> None:
    given = {**settings(tmp_path), "processing_class": None}
    CoresetTrainer(**given, coreset=coreset_config("random")).train()
    assert (tmp_path / "_coretune" / "pool.parquet").exists()


def test_experts_are_balanced_by_the_models_own_loss(tmp_path: Path) -> None:
    given = settings(tmp_path)
    given["model"].config.output_router_logits = True
    with pytest.raises(ValueError, match="weighted replaces the model's own loss, which balances experts"):
        CoresetTrainer(**given, coreset=coreset_config("random", weighted=True))


# --------------------------------------------------------------------------------------------- both trainers


def test_early_stopping_and_the_best_model(tmp_path: Path) -> None:
    """A learning rate that ruins the model: the first evaluation is the best, the run stops two later."""
    made = trainer(
        tmp_path,
        coreset_config("grace", warmup=0.1),
        eval_dataset=corpus(12, 1).dataset,
        callbacks=[EarlyStoppingCallback(2)],
        learning_rate=1.0,
        lr_scheduler_type="constant",
        max_steps=40,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        save_total_limit=1,
    )
    made.train()
    losses = [entry["eval_loss"] for entry in made.state.log_history if "eval_loss" in entry]
    best = 2 * (losses.index(min(losses)) + 1)
    assert made.state.global_step == best + 4 < 40
    assert made.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    assert made.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-5)


def test_an_epoch_of_evaluation_and_saving_is_a_round(tmp_path: Path) -> None:
    made = trainer(
        tmp_path,
        coreset_config("random", refresh_every="never"),
        eval_dataset=corpus(12, 1).dataset,
        eval_strategy="epoch",
        save_strategy="epoch",
        max_steps=-1,
        num_train_epochs=2,
    )
    made.train()
    assert made.schedule.steps == 3
    assert made.state.global_step == 6
    assert [entry["step"] for entry in made.state.log_history if "eval_loss" in entry] == [3, 6]
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-6"}


def test_several_evaluation_sets_are_booked_once_each_and_predictions_are_made(tmp_path: Path) -> None:
    sets = {"small": corpus(12, 1).dataset, "smaller": corpus(5, 2).dataset}
    made = trainer(tmp_path, coreset_config("random"), eval_dataset=sets, max_steps=2)
    made.train()
    made.evaluate()
    assert made.ledger.by_phase()["evaluation"].rows == 17
    assert np.isfinite(made.predict(sets["small"]).metrics["test_loss"])


def test_figures_of_a_selection_reach_every_logger(tmp_path: Path) -> None:
    class Logger(TrainerCallback):
        logged: list[dict[str, float]] = []  # noqa: RUF012

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            self.logged.append(dict(logs))

    made = Seen(**settings(tmp_path), coreset=coreset_config("random"), callbacks=[Logger()])
    made.train()
    figures = [entry for entry in Logger.logged if "coreset/round" in entry]
    assert len(figures) == 2
    assert figures[0]["coreset/rows"] == 12


def test_a_selector_of_ones_own_goes_with_the_trainer(tmp_path: Path) -> None:
    from dataclasses import dataclass, replace

    @dataclass(frozen=True)
    class Longest:
        needs: tuple[str, ...] = ()

        def select(self, pool: Pool, budget: Budget, rng: Any) -> Coreset:
            chosen = (-pool.cost).argsort(kind="stable")[: budget.amount]
            ones = 0.0 * chosen + 1.0
            return Coreset(chosen, ones, ones)

    made = Seen(**settings(tmp_path), coreset=replace(coreset_config("random"), selector=Longest()))
    made.train()
    lengths = sorted(made.pool_rows.length)[-12:]
    trained = {int(mask.sum()) for batch in made.batches for mask in batch["attention_mask"]}
    assert trained == set(lengths)


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Liger's place taken, for it runs on GPUs alone: it renames norms; its fused loss makes no logits."""
    done: list[str] = []

    def fused(self: Any, input_ids: Any = None, labels: Any = None, **inputs: Any) -> Any:
        items = inputs.pop("num_items_in_batch", None)
        hidden = self.model(input_ids, **inputs).last_hidden_state
        logits = self.lm_head(hidden)
        if labels is None or not self.training:
            return CausalLMOutputWithPast(logits=logits)
        loss = self.loss_function(logits, labels, self.config.vocab_size, num_items_in_batch=items)
        return CausalLMOutputWithPast(loss=loss)

    def apply(model: Any, fused_linear_cross_entropy: bool = True) -> None:
        LlamaRMSNorm.__name__ = "LigerRMSNorm"
        if fused_linear_cross_entropy:
            model.forward = MethodType(fused, model)
        done.append("fused" if fused_linear_cross_entropy else "layers")

    package = SimpleNamespace(_apply_liger_kernel_to_instance=apply)
    monkeypatch.setitem(sys.modules, "liger_kernel", SimpleNamespace(transformers=package))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", package)
    monkeypatch.setattr("transformers.integrations.liger.is_liger_kernel_available", lambda: True)
    before = LlamaRMSNorm.__name__
    yield done
    LlamaRMSNorm.__name__ = before


@pytest.mark.parametrize("kind", ["plain", "sft"])
def test_liger_without_weights_changes_nothing(tmp_path: Path, liger: list[str], kind: str) -> None:
    """Measurements between steps, gradients of the model's norms among them, are those without Liger."""
    runs = []
    for use in (False, True):
        signals = MeasureSettings(parameters="trainable", last_blocks=None)
        folder, config = tmp_path / str(use), coreset_config("gradient_norm", signals=signals)
        if kind == "plain":
            given = settings(folder, use_liger_kernel=use)
            runs.append(CoresetTrainer(**given, coreset=config))
        else:
            runs.append(trainer(folder, config, use_liger_kernel=use, max_steps=4))
        runs[-1].train()
    assert len(liger) == 1
    assert liger == ["fused"] or kind == "sft"  # TRL 1.16 asks for the layers alone, 1.14 for both
    plain, with_liger = runs
    assert np.array_equal(plain.coreset_state.coreset.indices, with_liger.coreset_state.coreset.indices)
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(with_liger)[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_liger_with_weights_is_refused_by_name(tmp_path: Path) -> None:
    given = settings(tmp_path, use_liger_kernel=True)
    with pytest.raises(ValueError, match="weighted needs per-token losses, which Liger may hide"):
        CoresetTrainer(**given, coreset=coreset_config("random", weighted=True))


def test_weights_of_rows_that_nobody_names_are_refused(tmp_path: Path) -> None:
    given = settings(tmp_path)
    given["train_dataset"] = given["train_dataset"].remove_columns("example_id")
    made = CoresetTrainer(**given, rows=corpus(), coreset=coreset_config("random", weighted=True))
    with pytest.raises(ValueError, match="a batch does not say which rows it holds, which weights need"):
        made.train()


# ------------------------------------------------------------------------------------------------ model card


def test_the_card_says_method_budget_and_cost_and_is_pushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed: dict[str, Any] = {}

    def upload(**given: Any) -> None:
        pushed.update(given, card=(Path(given["folder_path"]) / "README.md").read_text(encoding="utf-8"))

    hub = SimpleNamespace(
        create_repo=lambda name, **_: SimpleNamespace(repo_id=f"me/{name}"), upload_folder=upload
    )
    monkeypatch.setattr("transformers.trainer.hf_api", lambda: hub)
    made = trainer(tmp_path, coreset_config("grace"), max_steps=4, save_strategy="steps", save_steps=2)
    made.train()
    made.push_to_hub(commit_message="done")
    assert pushed["commit_message"] == "done"
    assert pushed["repo_id"] == f"me/{tmp_path.name}"
    card = pushed["card"]
    assert card.count(BEGIN) == 1
    assert "chosen by Grace" in card
    assert "| budget | 25 % |" in card
    assert "| refresh_every | 2 |" in card
    assert "| measurement | " in card
    assert "12 of 48 examples" in card
    assert card.startswith("---\n")  # TRL's own, whole
    assert "SFT" in card

"""Weights that have other names in files than in memory come back as they were."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from four_steps import TOKENIZER, a_trainer
from tiny_run import corpus, weights
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    TrainerCallback,
)

from coretune.measure.snapshots import read_weights
from coretune.training.identity import tensors_fingerprint

SHAPE = {
    "vocab_size": len(TOKENIZER),
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 96,
    "pad_token_id": TOKENIZER.pad_token_id,
    "eos_token_id": TOKENIZER.eos_token_id,
    "tie_word_embeddings": False,
}


EXPERTS = {"num_key_value_heads": 2, "num_experts_per_tok": 2}


RENAMED: dict[str, Callable[[], Any]] = {
    "GPT-NeoX": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPE)),
    "Mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SHAPE, **EXPERTS, num_local_experts=4)),
    "Qwen2-MoE": lambda: Qwen2MoeForCausalLM(
        Qwen2MoeConfig(
            **SHAPE, **EXPERTS, num_experts=4, moe_intermediate_size=8, shared_expert_intermediate_size=8
        )
    ),
}


def fresh(kind: str) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return RENAMED[kind]()


class KeptAtSave(TrainerCallback):
    """The weights in memory when step 2 is saved."""

    def __init__(self, kept: dict[str, torch.Tensor]) -> None:
        self.kept = kept

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == 2:
            self.kept |= {name: value.detach().clone() for name, value in model.named_parameters()}


@pytest.mark.parametrize("kind", RENAMED)
def test_a_model_with_other_names_in_its_files_goes_on_with_its_own_weights(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole, at_step_2 = a_trainer(tmp_path / "whole", model=fresh(kind)), {}
    whole.add_callback(KeptAtSave(at_step_2))
    whole.train()
    resumed = a_trainer(tmp_path / "resumed", model=fresh(kind))
    with caplog.at_level(logging.WARNING, logger="coretune"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for name, value in weights(whole).items():
        assert torch.equal(weights(resumed)[name], value), name
    assert "weights otherwise than the model" in caplog.text
    read = read_weights(tmp_path / "whole" / "checkpoint-2", fresh(kind))  # as those of a warm-up run are
    assert {name: tensors_fingerprint({"": weight}) for name, weight in read.items()} == {
        name: tensors_fingerprint({"": weight.detach()}) for name, weight in at_step_2.items()
    }


def test_the_best_model_is_loaded_under_its_own_names_too(tmp_path: Path) -> None:
    settings = {
        "model": fresh("GPT-NeoX"),
        "load_best_model_at_end": True,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "eval_dataset": corpus(12, 1).dataset,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": True,  # so the checkpoint at step 2
    }
    best = a_trainer(tmp_path, **settings)
    best.train()
    assert str(best.state.best_model_checkpoint).endswith("checkpoint-2")
    saved = GPTNeoXForCausalLM.from_pretrained(tmp_path / "checkpoint-2")
    for name, value in saved.state_dict().items():
        assert torch.equal(weights(best)[name], value), name


def test_weights_that_do_not_come_back_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_trainer(tmp_path, model=fresh("GPT-NeoX")).train()
    monkeypatch.setattr("coretune.training.verified_checkpoints.read_weights", lambda *_: {})
    resumed = a_trainer(tmp_path / "resumed", model=fresh("GPT-NeoX"))
    with pytest.raises(ValueError, match=r"1 of \d+ trained weights are not .* lm_head.weight"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))

"""What measures a run's pool is made of model, rows and settings; no trainer is needed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_method import ByCheckpoints
from peft import LoraConfig
from tiny_run import arguments, coreset_config, corpus, model_folder, trainer
from tiny_tokenizer import tiny_tokenizer
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM
from trl import SFTTrainer

from coretune.select import SELECTORS
from coretune.training.processes import Processes
from coretune.training.run_signals import Live, RunSignals
from coretune.training.warmup_run import Setup


def run_signals(folder: Path, coreset: Any = None, obstacle: str | None = None, split: bool = False) -> Any:
    model, pool = AutoModelForCausalLM.from_pretrained(model_folder()), corpus()
    settings = dict.fromkeys(("data_collator", "compute_loss_func", "optimizer_cls_and_kwargs"))
    setup = Setup(SFTTrainer, model, arguments(folder), pool.dataset, pool, tiny_tokenizer(), settings, split)
    live = Live(step=lambda: 0, rate=lambda: 1.0, optimizer=lambda: None)
    return RunSignals(
        coreset or coreset_config(),
        setup,
        live,
        Processes(0, 1, 60.0),
        targets=(),
        store=folder / "signals",
        obstacle=obstacle,
    )


def test_the_first_measurement_and_later_ones_agree_under_the_same_weights(tmp_path: Path) -> None:
    made, everyone = run_signals(tmp_path), np.arange(48)
    first, later = made.measurement.first.measure(everyone), made.measurement.measure(everyone)
    assert first.keys() == later.keys() == set(made.config.needs)
    for name, value in later.items():
        np.testing.assert_allclose(first[name], value, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        made.setup.model.get_output_embeddings().weight.mul_(1.5)
    assert not np.allclose(made.measurement.measure(everyone)["loss"], later["loss"])


def test_why_steps_show_nothing_is_said_and_nothing_is_taken_from_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run_signals(tmp_path).measurement.online is not None
    with caplog.at_level(logging.WARNING, logger="coretune"):
        assert run_signals(tmp_path, obstacle="packing is on").measurement.online is None
    assert "packing is on" in caplog.text


def test_a_sharded_model_takes_no_warm_up_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SELECTORS, "by_checkpoints", ByCheckpoints)
    alone = {"anchors": "all", "propagate": "none", "repair": "none", "warmup": 0.5}
    with pytest.raises(ValueError, match="FSDP and DeepSpeed split it"):
        run_signals(tmp_path, coreset_config("by_checkpoints", **alone), split=True)


def test_layers_that_only_a_pass_shows_to_be_unreadable_are_refused_before_a_warm_up_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As LoRA on all linear layers puts one on the router of fused experts, which nobody calls."""
    monkeypatch.setitem(SELECTORS, "by_checkpoints", ByCheckpoints)
    config = MixtralConfig(
        vocab_size=len(tiny_tokenizer()),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
    )
    alone = {"anchors": "all", "propagate": "none", "repair": "none", "warmup": 0.5}
    with pytest.raises(ValueError, match=r"gate.* took no part .* give LoRA the attention's layers"):
        trainer(
            tmp_path,
            coreset_config("by_checkpoints", refresh_every="never", **alone),
            model=MixtralForCausalLM(config),
            peft_config=LoraConfig(r=2, target_modules="all-linear"),
        )

"""What is read off a model and its rows for the FLOP formulas, against counting and against the formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_run import corpus, model_folder
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM

from coretune.ledger import ModelShape, measurement_flops, training_flops
from coretune.measure.settings import MeasureSettings
from coretune.training.model_cost import ModelCost, model_shape

EVERYONE = np.arange(48)


def tiny_llama(lora: bool = False) -> Any:
    model = AutoModelForCausalLM.from_pretrained(model_folder(), attn_implementation="eager")
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])) if lora else model


def cost(model: Any, *signals: str, target: Any = None, **settings: Any) -> ModelCost:
    return ModelCost.of(model, corpus(), signals, MeasureSettings(**settings), target, False)


def test_the_shape_is_the_models() -> None:
    model = tiny_llama()
    layers = model.model.layers
    matrices = sum(p.numel() for p in layers.parameters() if p.ndim == 2)
    shape = ModelShape(matrices, model.lm_head.weight.numel(), 2, 32)
    assert model_shape(model) == shape
    assert model_shape(tiny_llama(lora=True)) == shape
    wide = Qwen3Config(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=16)
    wide.num_hidden_layers, wide.intermediate_size, wide.vocab_size = 1, 64, 50
    assert model_shape(Qwen3ForCausalLM(wide)).attention_width == 64
    narrow = GPT2Config(n_embd=24, n_head=3, n_layer=2, vocab_size=50, n_positions=32)
    assert model_shape(GPT2LMHeadModel(narrow)).attention_width == 24


def test_a_step_costs_what_pytorch_counts() -> None:
    """Rows of one length, so that nothing is padded."""
    model, rows = tiny_llama(), corpus()
    length = np.bincount(rows.length).argmax()
    alike = np.flatnonzero(rows.length == length)
    tokens = torch.from_numpy(np.stack(rows.tokens(alike)))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens, labels=tokens).loss.backward()
    assert cost(model).training(alike) == pytest.approx(counter.get_total_flops(), rel=0.02)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=tokens)
    assert cost(model).evaluation(rows.length[alike]) == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_frozen_weights_are_an_adapters() -> None:
    model = tiny_llama(lora=True)
    adapter = sum(p.numel() for p in model.parameters() if p.requires_grad)
    found = cost(model)
    assert found.adapter_parameters == adapter
    expected = training_flops(found.shape, corpus().length, adapter_parameters=adapter)
    assert found.training(EVERYONE) == expected
    assert cost(tiny_llama()).adapter_parameters is None


def test_a_measurement_counts_the_blocks_and_parameters_that_take_part() -> None:
    rows, model = corpus(), tiny_llama()
    responses = rows.response_length
    for blocks, chosen in ((1, 1), (2, 2), (None, 2)):
        found = cost(model, "gradient_norm", "loss", last_blocks=blocks)
        expected = measurement_flops(
            found.shape,
            rows.length,
            responses,
            ["gradient_norm", "loss"],
            blocks=blocks or 2,
            chosen_parameters=chosen * 32 * 32,  # o_proj of each block
        )
        assert found.measurement(EVERYONE) == expected
    assert cost(model, "loss").chosen_parameters == 0


def test_reference_rows_are_rows_too() -> None:
    model, rows = tiny_llama(), corpus()
    nobody = EVERYONE[:0]
    assert cost(model, "gradient").measurement(nobody) == 0
    whole = cost(model, "gradient").measurement(EVERYONE)
    compared = cost(model, "target_cosine", target=rows)
    assert compared.measurement(nobody) == whole
    assert compared.measurement(EVERYONE) == 2 * whole


def test_a_trajectory_is_a_gradient_pass_over_every_snapshot_and_target() -> None:
    model, rows = tiny_llama(), corpus()
    whole = cost(model, "gradient").measurement(EVERYONE)
    found = cost(model, "trajectory")
    assert [found.measurement(EVERYONE, snapshots) for snapshots in (1, 4)] == [whole, 4 * whole]
    both = cost(model, "trajectory", "loss")
    assert both.measurement(EVERYONE, 4) == 4 * whole + cost(model, "loss").measurement(EVERYONE)
    settings = MeasureSettings()
    aimed = ModelCost.of(model, rows, ["trajectory"], settings, rows, False, pursued=[rows, rows])
    assert aimed.measurement(EVERYONE, 4) == pytest.approx(4 * 3 * whole)
    assert ModelCost.of(model, rows, ["loss"], settings, rows, False, pursued=[rows]).pursued == 0


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(ValueError, match="no FLOP formula for los"):
        cost(tiny_llama(), "los").measurement(EVERYONE)
    with pytest.raises(ValueError, match="last_blocks is 3 but the model has 2 blocks"):
        cost(tiny_llama(), "gradient", last_blocks=3)

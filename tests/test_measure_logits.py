"""Models that scale or cap their logits: what is measured equals the batch-1 loop over the model's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from measure_oracle import BOS, PAD, VOCABULARY, assert_close, flat_gradients, oracle, random_rows, stacked
from transformers import (
    Cohere2Config,
    Cohere2ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    NanoChatConfig,
    NanoChatForCausalLM,
)

from coretune.measure.logits import LogitRule
from coretune.measure.settings import MeasureSettings
from coretune.measure.signals import measurer

SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
KINDS = {
    "gemma2": (Gemma2Config, Gemma2ForCausalLM, {"final_logit_softcapping": 3.0}, LogitRule(1.0, 3.0)),
    "cohere2": (Cohere2Config, Cohere2ForCausalLM, {"logit_scale": 0.25}, LogitRule(0.25)),
    "granite": (GraniteConfig, GraniteForCausalLM, {"logits_scaling": 4.0}, LogitRule(0.25)),
    "nanochat": (NanoChatConfig, NanoChatForCausalLM, {"final_logit_softcapping": 2.0}, LogitRule(1.0, 2.0)),
}
SIGNALS = ("loss", "unconditional_loss", "response_embedding", "gradient_norm", "head_gradient")


def tiny(kind: str, size: float = 1.0) -> Any:
    config, model, settings, _ = KINDS[kind]
    torch.manual_seed(0)
    known = {name: value for name, value in SMALL.items() if name in vars(config())}
    made = model(config(**known, **settings))
    for parameter in made.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    made.get_output_embeddings().weight.data.mul_(size)
    return made.train()


def measure(model: Any, names: tuple[str, ...] = SIGNALS, **settings: Any) -> dict[str, np.ndarray]:
    rows = random_rows(6, seed=1)
    chosen = MeasureSettings(**{"projection_dim": 40_000, "factor_dim": 1_000, **settings})
    return measurer(model, rows, names, chosen, pad_token_id=PAD, bos_token_id=BOS)(np.arange(6))


@pytest.mark.parametrize(
    ("parameters", "last_blocks"), [("adapter_or_attention", 2), ("trainable", 2), ("trainable", None)]
)
@pytest.mark.parametrize("kind", ["gemma2", "cohere2", "granite"])
def test_signals_equal_the_batch_1_loop(kind: str, parameters: str, last_blocks: int | None) -> None:
    """Also the head's own weight, which is the embedding's too."""
    model, rows, choice = tiny(kind), random_rows(6, seed=1), (last_blocks, parameters)
    assert LogitRule.of(model) == KINDS[kind][3]
    found = measure(model, last_blocks=last_blocks, parameters=parameters)
    expected = oracle(model, rows, *choice)
    for name in ("loss", "unconditional_loss", "response_embedding"):
        assert_close(found[name], stacked(expected, name))
    assert_close(found["gradient_norm"], np.linalg.norm(flat_gradients(expected), axis=1))


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_heads_own_gradient_goes_through_the_rule(kind: str) -> None:
    model, rows = tiny(kind), random_rows(6, seed=1)
    if kind != "nanochat":
        model.get_output_embeddings().weight = torch.nn.Parameter(model.get_output_embeddings().weight.data)
    wide = measure(model, ("head_gradient",))["head_gradient"]
    model.eval()
    gradients = []
    for tokens, labels in zip(rows.token_rows, rows.label_rows, strict=True):
        ids, targets = torch.from_numpy(tokens).long()[None], torch.from_numpy(labels)[None]
        weight = model.get_output_embeddings().weight
        (gradient,) = torch.autograd.grad(model(input_ids=ids, labels=targets).loss, [weight])
        gradients.append(gradient.flatten().numpy())
    expected = np.stack(gradients)
    size = np.linalg.norm(expected, axis=1)
    gap = (wide @ wide.T - expected @ expected.T) / (size * size[:, None])
    assert np.abs(gap).max() < 0.05  # what 848 entries in 40,000 buckets cost


def test_a_cap_that_the_configuration_does_not_name_is_refused_though_logits_are_small() -> None:
    """While it does not show yet: it would when the model has learnt."""
    model = tiny("granite", size=1e-3)
    stock = model.forward

    def capped(*args: Any, **kwargs: Any) -> Any:
        output = stock(*args, **kwargs)
        output.logits = torch.tanh(output.logits / 20.0) * 20.0
        return output

    model.forward = capped
    with pytest.raises(ValueError, match="GraniteForCausalLM changes its logits behind the output head"):
        measure(model, ("loss",))


def test_what_a_model_does_behind_its_head_is_checked_once() -> None:
    model, rows = tiny("granite"), random_rows(6, seed=1)
    passes: list[int] = []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    for _ in range(2):  # a measurer of its own each
        measurer(model, rows, ["loss"], MeasureSettings(), pad_token_id=PAD, bos_token_id=BOS)(np.arange(6))
    assert len(passes) == 2 + 2

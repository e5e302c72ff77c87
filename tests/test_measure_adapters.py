"""Gradient signals of adapters of every kind: of the parameters that are trained, or refused by name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import peft
import pytest
import torch
from measure_oracle import BOS, PAD, assert_close, random_rows, tiny_model
from peft import get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch.nn import functional

from coretune.measure.parameters import choose
from coretune.measure.settings import MeasureSettings
from coretune.measure.signals import measurer
from coretune.measure.snapshots import read_weights
from coretune.training.row_signals import RowSignals

ATTENTION: dict[str, Any] = {"target_modules": ["q_proj", "o_proj"]}
QUERIES: dict[str, Any] = {"target_modules": ["q_proj"]}  # of kinds that take layers of one shape
TOKENS: dict[str, Any] = {"num_virtual_tokens": 2}
#: Settings of each kind that fit a small model; {}: its own defaults do.
SMALL: dict[str, dict[str, Any]] = {
    "ADALORA": {"init_r": 2, "target_r": 1, "total_step": 10, "tfinal": 1, "tinit": 1, **ATTENTION},
    "ADAPTION_PROMPT": {"adapter_len": 2, "adapter_layers": 2},
    "BOFT": {"boft_block_size": 4, **ATTENTION},
    "C3A": {"block_size": 4, **ATTENTION},
    "CARTRIDGE": TOKENS,
    "CPT": TOKENS,
    "FOURIERFT": {"n_frequency": 4, **ATTENTION},
    "GRALORA": {"r": 4, **ATTENTION},
    "IA3": {"feedforward_modules": [], **ATTENTION},
    "LN_TUNING": {},
    "MISS": {"r": 2, **ATTENTION},
    "OFT": {"oft_block_size": 4, **ATTENTION},
    "PREFIX_TUNING": TOKENS,
    "PROMPT_TUNING": TOKENS,
    "PSOFT": {"r": 2, **ATTENTION},
    "PVERA": QUERIES,
    "P_TUNING": TOKENS,
    "RANDLORA": {"r": 2, **QUERIES},
    "ROAD": {"group_size": 4, **ATTENTION},
    "SHADOW": {},
    "SHIRA": {"r": 2, **ATTENTION},
    "TRAINABLE_TOKENS": {"token_indices": [3, 4]},
    "VBLORA": {"num_vectors": 4, "vector_length": 8, "topk": 2, **ATTENTION},
    "VERA": {"r": 2, **QUERIES},
    "WAVEFT": {"n_frequency": 4, **ATTENTION},
}
READ = {"LN_TUNING", "LORA"}
#: Kinds that need another package, a task number in each row, or other adapters, and are never trained here.
NOT_HERE = {"ADAMSS", "MULTITASK_PROMPT_TUNING", "POLY", "SHADOW", "XLORA"}
KINDS = sorted({str(kind.value) for kind in PEFT_TYPE_TO_CONFIG_MAPPING} - NOT_HERE)
#: LoRA's own kinds: fields, and whether A and B are read.
LORAS: dict[str, tuple[dict[str, Any], bool]] = {
    "rsLoRA": ({"use_rslora": True}, True),
    "DoRA": ({"use_dora": True}, True),
    "DoRA on a tied head": ({"use_dora": True, "modules_to_save": ["lm_head"]}, True),
    "biases": ({"lora_bias": True}, True),
    "KaSA": ({"kasa_config": peft.tuners.lora.config.KasaConfig()}, True),
    "embedding": ({"target_modules": ["embed_tokens", "q_proj"]}, True),
    "aLoRA": ({"alora_invocation_tokens": [5]}, False),
    "MonteCLoRA": ({"monteclora_config": peft.tuners.lora.config.MontecloraConfig()}, False),
    "parameters": ({"target_modules": [], "target_parameters": ["q_proj.weight"]}, False),
}


def adapted(config: Any) -> Any:
    model = get_peft_model(tiny_model("llama"), config)
    for parameter in model.parameters():
        if parameter.requires_grad:  # many begin as no change at all
            parameter.data.add_(
                0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
            )
    return model.train()


def norms(model: Any, names: list[str]) -> np.ndarray:
    """(n,) by autograd, a row at a time."""
    rows, found = random_rows(5, seed=1), []
    leaves = [parameter for name, parameter in model.named_parameters() if name in names]
    assert len(leaves) == len(names)
    model.eval()
    for tokens, start in zip(rows.token_rows, rows.prompt_length, strict=True):
        ids, start = torch.from_numpy(tokens).long()[None], max(int(start), 1)
        loss = functional.cross_entropy(model(input_ids=ids).logits[0, start - 1 : -1], ids[0, start:])
        gradients = torch.autograd.grad(loss, leaves)
        found.append(float(torch.cat([gradient.flatten() for gradient in gradients]).norm()))
    model.train()
    return np.array(found)


def measured(model: Any) -> np.ndarray:
    rows = random_rows(5, seed=1)
    measure = measurer(model, rows, ["gradient_norm"], MeasureSettings(), pad_token_id=PAD, bos_token_id=BOS)
    return measure(np.arange(5))["gradient_norm"]


def config_of(kind: str) -> Any:
    made = PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind)]
    return made(task_type="CAUSAL_LM", **SMALL.get(kind, ATTENTION))


def checked(model: Any, signal: str = "gradient_norm") -> None:
    """What a trainer does before its first step."""
    rows: Any = random_rows(5, seed=1)
    tokenizer: Any = SimpleNamespace(pad_token_id=PAD, bos_token_id=BOS, eos_token_id=BOS)
    RowSignals(model, rows, [signal], MeasureSettings(), tokenizer, tuple).check()


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradients_of_an_adapter_are_those_of_what_is_trained_or_refused_by_its_name(kind: str) -> None:
    """Of every kind that PEFT has. Never is a frozen weight read in their place."""
    model = adapted(config_of(kind))
    if kind not in READ:
        with pytest.raises(ValueError, match=rf"^{kind}: .*as grace by its defaults$"):
            checked(model)
        return
    checked(model)
    names = choose(model, 2, "adapter_or_attention").names
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert names == [name for name in trained if ".layers.0." not in name and ".layers." in name]
    assert_close(measured(model), norms(model, names))


@pytest.mark.parametrize("kind", list(LORAS))
def test_a_and_b_are_read_of_lora_of_every_kind_or_it_is_refused(kind: str) -> None:
    fields, read = LORAS[kind]
    model = adapted(peft.LoraConfig(r=2, task_type="CAUSAL_LM", **{**ATTENTION, **fields}))
    if not read:
        with pytest.raises(ValueError, match=r"^LORA: no gradient of a row can be read: layer .*lora_A"):
            checked(model)
        return
    checked(model)
    names = choose(model, 2, "adapter_or_attention").names
    assert all("lora_A" in name or "lora_B" in name for name in names)
    assert len(names) == sum(
        ("lora_A" in name or "lora_B" in name) and name.endswith("weight") and ".layers.0." not in name
        for name, _ in model.named_parameters()
    )
    assert_close(measured(model), norms(model, names))


@pytest.mark.parametrize("signal", ["loss", "gradient_norm"])
def test_a_model_that_fails_on_a_row_is_refused_in_one_line(signal: str) -> None:
    """As where PEFT has put LoRA on a router that gives a pair."""
    model = tiny_model("llama")
    model.model.layers[0].mlp.forward = lambda hidden: (hidden, hidden)
    with pytest.raises(ValueError, match=r"^the model fails on a row \(TypeError: .*try other layers"):
        checked(model, signal)


def test_an_adapter_whose_gradients_cannot_be_read_still_has_losses() -> None:
    checked(adapted(config_of("IA3")), "loss")


def test_magnitudes_of_dora_have_no_gradients_by_example() -> None:
    model = adapted(peft.LoraConfig(r=2, task_type="CAUSAL_LM", use_dora=True, **ATTENTION))
    with pytest.raises(ValueError, match=r"DoRA's magnitudes .* set parameters to adapter_or_attention"):
        choose(model, 2, "trainable")


PROMPTS = {kind for kind, fields in SMALL.items() if fields is TOKENS}  # refused where rows are measured


@pytest.mark.parametrize("kind", [*sorted(set(KINDS) - PROMPTS), "DoRA"])
def test_the_snapshot_of_an_adapter_has_all_that_is_trained(kind: str, tmp_path: Path) -> None:
    dora = peft.LoraConfig(use_dora=True, modules_to_save=["lm_head"], task_type="CAUSAL_LM", **ATTENTION)
    model = adapted(dora if kind == "DoRA" else config_of(kind))
    model.save_pretrained(tmp_path)
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    found = read_weights(tmp_path, model)
    assert trained
    assert found.keys() == trained.keys()
    assert all(torch.equal(found[name], value) for name, value in trained.items())


@pytest.mark.parametrize(
    ("family", "frozen", "read"),
    [
        ("llama-lora", "lora_A", "lora_B"),  # LoRA-FA
        ("llama", "self_attn", "layers"),  # all but attention
        ("llama", "q_proj", "o_proj"),
    ],
)
def test_what_is_frozen_by_hand_is_not_read(family: str, frozen: str, read: str) -> None:
    model = tiny_model(family)
    for name, parameter in model.named_parameters():
        if frozen in name:
            parameter.requires_grad_(False)
    names = choose(model, 2, "adapter_or_attention").names
    assert names
    assert all(read in name and frozen not in name for name in names)
    assert_close(measured(model), norms(model, names))


def test_where_the_last_blocks_are_frozen_it_is_said() -> None:
    model = tiny_model("llama")
    model.model.layers.requires_grad_(False)
    with pytest.raises(
        ValueError, match="no parameter requires a gradient in the last blocks; unfreeze some, or"
    ):
        choose(model, 2, "adapter_or_attention")

"""Gradient signals of adapters of every kind: of the parameters that are trained, or refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import peft
import pytest
import torch
from measure_oracle import BOS, PAD, assert_close, random_rows, tiny_model
from peft import get_peft_model
from torch.nn import functional

from coretune.measure.parameters import choose
from coretune.measure.settings import MeasureSettings
from coretune.measure.signals import measurer

LINEAR = {"target_modules": ["q_proj", "o_proj"], "task_type": "CAUSAL_LM"}
READ = {
    "LNTuning": peft.LNTuningConfig(task_type="CAUSAL_LM"),
    "LoRA": peft.LoraConfig(r=2, **LINEAR),
}
REFUSED = {
    "IA3": peft.IA3Config(feedforward_modules=[], **LINEAR),
    "LOHA": peft.LoHaConfig(r=2, **LINEAR),
    "LOKR": peft.LoKrConfig(r=2, **LINEAR),
    "VERA": peft.VeraConfig(r=2, **{**LINEAR, "target_modules": ["q_proj"]}),
    "OFT": peft.OFTConfig(oft_block_size=4, **LINEAR),
    "BOFT": peft.BOFTConfig(boft_block_size=4, **LINEAR),
    "RANDLORA": peft.RandLoraConfig(r=2, **{**LINEAR, "target_modules": ["q_proj"]}),
    "ADALORA": peft.AdaLoraConfig(init_r=2, target_r=1, total_step=10, tfinal=1, tinit=1, **LINEAR),
    "FOURIERFT": peft.FourierFTConfig(n_frequency=4, **LINEAR),
    "HRA": peft.HRAConfig(r=2, **LINEAR),
    "VBLORA": peft.VBLoRAConfig(r=2, num_vectors=4, vector_length=8, topk=2, **LINEAR),
    "MISS": peft.MissConfig(r=2, **LINEAR),
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


@pytest.mark.parametrize("kind", list(READ))
def test_the_trained_parameters_of_the_last_blocks_are_read(kind: str) -> None:
    model = adapted(READ[kind])
    names = choose(model, 2, "adapter_or_attention").names
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert names == [name for name in trained if ".layers.0." not in name and ".layers." in name]
    assert_close(measured(model), norms(model, names))


@pytest.mark.parametrize("kind", list(REFUSED))
def test_a_kind_whose_gradients_cannot_be_read_is_refused_by_name(kind: str) -> None:
    """Never is a frozen weight read in their place."""
    model = adapted(REFUSED[kind])
    with pytest.raises(
        ValueError, match=f"^{kind}: the last blocks have neither LoRA weights nor .* layer '"
    ):
        choose(model, 2, "adapter_or_attention")
    measurer(model, random_rows(2, 0), ["loss"], MeasureSettings(), pad_token_id=PAD, bos_token_id=BOS)


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

"""Fingerprints: the same for the same content, another for any change of it, wherever it was loaded from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_run import corpus, model_folder
from tiny_tokenizer import tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from coretune.rounds.sampler import PreparedRows
from coretune.training import identity


def model(modules: tuple[str, ...] = ("q_proj", "v_proj"), **lora: object) -> torch.nn.Module:
    base = AutoModelForCausalLM.from_pretrained(model_folder())
    torch.manual_seed(0)
    return get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules=list(modules), **lora))


def test_one_weight_changes_the_models_fingerprint() -> None:
    one, other = model(), model()
    assert identity.weights_fingerprint(one) == identity.weights_fingerprint(other)
    with torch.no_grad():
        next(iter(other.parameters())).view(-1)[3] += 1e-3
    assert identity.weights_fingerprint(one) != identity.weights_fingerprint(other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_of_any_dtype_name_and_shape_count(dtype: torch.dtype) -> None:
    tensor = torch.tensor([[0, 1], [1, 0]]).to(dtype)
    found = {
        identity.tensors_fingerprint(tensors)
        for tensors in (
            {"a": tensor},
            {"b": tensor},
            {"a": tensor.reshape(4)},
            {"a": tensor.flip(0)},
            {"a": tensor, "b": tensor},
            {"a": torch.tensor(1).to(dtype)},
        )
    }
    assert len(found) == 6
    assert identity.tensors_fingerprint({"a": tensor.t().contiguous().t()}) in found


def test_an_adapters_settings_count_though_its_weights_are_alike() -> None:
    found = identity.adapter_fingerprint(model(lora_alpha=8))
    assert identity.adapter_fingerprint(model(lora_alpha=16)) != found
    assert identity.adapter_fingerprint(model(("v_proj", "q_proj"), lora_alpha=8)) == found
    assert identity.adapter_fingerprint(AutoModelForCausalLM.from_pretrained(model_folder())) == "none"


def test_an_adapter_loaded_again_is_the_same(tmp_path: Path) -> None:
    made = model(lora_alpha=8)
    made.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_folder()), tmp_path)
    assert identity.adapter_fingerprint(again) == identity.adapter_fingerprint(made)


def test_a_tokenizer_is_its_content_and_not_where_it_was_loaded_from(tmp_path: Path) -> None:
    made = tiny_tokenizer()
    made.save_pretrained(tmp_path / "here")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "here")
    assert identity.tokenizer_fingerprint(made) == identity.tokenizer_fingerprint(loaded)
    assert identity.tokenizer_fingerprint(tiny_tokenizer(None)) != identity.tokenizer_fingerprint(made)
    loaded.pad_token = loaded.eos_token
    assert identity.tokenizer_fingerprint(loaded) != identity.tokenizer_fingerprint(made)


def test_rows_are_their_tokens_ids_prompts_and_order() -> None:
    rows = PreparedRows.of(corpus(12).dataset)
    everyone = np.arange(12)
    assert identity.rows_fingerprint(rows) == identity.drawn_fingerprint(rows, everyone)
    assert identity.drawn_fingerprint(rows, everyone[::-1]) != identity.drawn_fingerprint(rows, everyone)
    assert identity.rows_fingerprint(corpus(12)) == corpus(12).fingerprint

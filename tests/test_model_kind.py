"""Models that no coreset of text can be trained on are refused by name, before their weights are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
from peft import LoraConfig, get_peft_model
from tiny_run import coreset_config, trainer
from tiny_tokenizer import tiny_tokenizer
from transformers import AutoModelForCausalLM, PreTrainedConfig

from coretune.training.model_kind import refuse_other_models

TINY = {"vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
TINY |= {"intermediate_size": 8}
BOTH = r"with an encoder and a decoder, .*give a causal language model"
NO_HEAD = r"which has no causal language model's head: give a model that AutoModelForCausalLM loads"
OTHERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "T5ForConditionalGeneration": ("T5Config", {"d_model": 8, "d_ff": 8, "num_layers": 1}, BOTH),
    "BartForConditionalGeneration": ("BartConfig", {"d_model": 8, "encoder_layers": 1}, BOTH),
    "BertForMaskedLM": ("BertConfig", TINY, NO_HEAD),
    "LlamaForSequenceClassification": ("LlamaConfig", TINY, NO_HEAD),
    "LlamaModel": ("LlamaConfig", TINY, NO_HEAD),
}


def of(name: str) -> PreTrainedConfig:
    kind, settings, _ = OTHERS[name]
    made: PreTrainedConfig = getattr(transformers, kind)(**settings)
    made.architectures = [name]
    return made


@pytest.mark.parametrize("name", OTHERS)
def test_a_folder_of_another_kind_is_refused_by_name_without_its_weights(tmp_path: Path, name: str) -> None:
    of(name).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=rf"model is a {name}, {OTHERS[name][2]}"):
        trainer(tmp_path / "run", coreset_config("random"), model=str(tmp_path / "model"))


def test_a_loaded_model_of_another_kind_is_refused_under_an_adapter_too(tmp_path: Path) -> None:
    made = transformers.LlamaForSequenceClassification(of("LlamaForSequenceClassification"))
    adapted = get_peft_model(made, LoraConfig(r=2, target_modules=["q_proj"]))
    for model in (adapted, made):
        with pytest.raises(ValueError, match=rf"model is a LlamaForSequenceClassification, {NO_HEAD}"):
            trainer(tmp_path / "run", coreset_config("random"), model=model)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("GPT2Config", {"n_embd": 8, "n_layer": 1, "n_head": 2}),
        ("BloomConfig", {"hidden_size": 8, "n_layer": 1, "n_head": 2}),
        ("MambaConfig", {"hidden_size": 8, "num_hidden_layers": 1}),
    ],
)
def test_a_language_model_passes_whatever_its_class_is_called(kind: str, settings: dict[str, Any]) -> None:
    config = getattr(transformers, kind)(vocab_size=40, **settings)
    refuse_other_models(AutoModelForCausalLM.from_config(config))


def test_a_class_that_comes_with_the_model_is_nobodys_to_judge(tmp_path: Path) -> None:
    made = of("LlamaModel")
    made.architectures = ["TheirOwnModel"]
    made.save_pretrained(tmp_path)
    refuse_other_models(tmp_path)
    refuse_other_models(str(tmp_path / "not there"))


def test_experts_that_trl_cannot_balance_are_refused_and_trained_without_that(tmp_path: Path) -> None:
    """GraniteMoe's config calls their number otherwise than TRL 1.16 asks for it at the first step."""
    sizes = {"hidden_size": 16, "num_key_value_heads": 2, "vocab_size": len(tiny_tokenizer())}
    model = AutoModelForCausalLM.from_config(transformers.GraniteMoeConfig(**{**TINY, **sizes}))
    with pytest.raises(
        ValueError, match=r"experts of granitemoe, .* no num_experts: set router_aux_loss_coef"
    ):
        trainer(tmp_path, coreset_config("random"), model=model)
    trainer(tmp_path, coreset_config("random"), model=model, router_aux_loss_coef=0.0, max_steps=1).train()


def test_a_model_in_which_trl_finds_no_decoder_is_refused(tmp_path: Path) -> None:
    """Of Llama 4's language model transformers' base_model is the model itself."""
    sizes = {"hidden_size": 16, "num_key_value_heads": 2, "intermediate_size_mlp": 8, "num_local_experts": 2}
    sizes["vocab_size"] = len(tiny_tokenizer())
    config = transformers.Llama4TextConfig(**{**TINY, **sizes}, head_dim=8, pad_token_id=0)
    with pytest.raises(ValueError, match=r"finds no decoder in a Llama4ForCausalLM .* use CoresetTrainer"):
        trainer(tmp_path, coreset_config("random"), model=AutoModelForCausalLM.from_config(config))

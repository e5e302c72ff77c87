"""A decoder with a language model's head is trained; every other kind of model is refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from peft import PeftModel
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

#: What PEFT writes into an adapter's folder.
ADAPTER = "adapter_config.json"


def refuse_other_models(model: Any) -> None:
    """ValueError for a folder, hub id or loaded model that no coreset of text rows can be trained on."""
    refuse_adapter_folder(model)
    if isinstance(model, (str, Path)):
        config = _config_of(model)
        name = str((config.get("architectures") or [""])[0])
        _refuse(f"{model} is a {name}", name, bool(config.get("is_encoder_decoder")))
    elif model is not None:
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        if isinstance(base, PreTrainedModel):
            name = type(base).__name__
            _refuse(f"the model is a {name}", name, bool(getattr(base.config, "is_encoder_decoder", False)))


def refuse_adapter_folder(model: Any) -> None:
    """ValueError for a folder that holds an adapter where a model is expected."""
    if not isinstance(model, (str, Path)) or not (noted := Path(model) / ADAPTER).is_file():
        return
    try:
        base = json.loads(noted.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        base = "the model it was trained on"
    raise ValueError(
        f"{model} holds an adapter ({ADAPTER}) and no model of its own: give its base, {base}, to train a "
        f"new adapter; or merge both (coretune merge {model}), and give that; or in Python, to train the "
        "adapter on, AutoPeftModelForCausalLM.from_pretrained(…, is_trainable=True) as model"
    )


def _refuse(what: str, name: str, both: bool) -> None:
    if both:
        raise ValueError(
            f"{what}, with an encoder and a decoder, and coresets are of models that go on with one text: "
            "give a causal language model"
        )
    # A class of the user's own, which the config's auto_map brings, is nobody's to judge.
    if hasattr(transformers, name) and name not in _with_head():
        raise ValueError(
            f"{what}, which has no causal language model's head: give a model that AutoModelForCausalLM loads"
        )


def _with_head() -> set[str]:
    tables = (
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )
    found: set[str] = set()
    for table in tables:
        for names in table.values():
            found |= {names} if isinstance(names, str) else set(names)
    return found


def _config_of(model: str | Path) -> Mapping[str, Any]:
    """config.json; empty where there is none to be read, which loading the model then tells."""
    try:
        found: Mapping[str, Any] = PreTrainedConfig.get_config_dict(str(model))[0]
        return found
    except (OSError, ValueError):
        return {}

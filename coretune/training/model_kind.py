"""A decoder with a language model's head is trained; every other kind of model is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from peft import PeftModel
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from coretune.adapter_folder import base_of


def refuse_other_models(model: Any) -> None:
    """ValueError for a folder, hub id or loaded model that no coreset of text rows can be trained on."""
    if isinstance(model, (str, Path)):
        model = base_of(model)
        config = _config_of(model)
        name = str((config.get("architectures") or [""])[0])
        _refuse(f"{model} is a {name}", name, bool(config.get("is_encoder_decoder")))
    elif model is not None:
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        if isinstance(base, PreTrainedModel):
            name = type(base).__name__
            _refuse(f"the model is a {name}", name, bool(getattr(base.config, "is_encoder_decoder", False)))


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
    """config.json; empty where there is none to be read, which loading the model then reports."""
    try:
        found: Mapping[str, Any] = PreTrainedConfig.get_config_dict(str(model))[0]
        return found
    except (OSError, ValueError):
        return {}

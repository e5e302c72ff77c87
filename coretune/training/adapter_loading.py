"""An adapter as a model: its base, with the adapter on it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from trl.trainer.utils import create_model_from_path

from coretune.adapter_folder import ADAPTER, base_of, holds_adapter, located
from coretune.escaping import first_line
from coretune.training.model_kind import refuse_other_models
from coretune.training.tokenizers import load_tokenizer
from coretune.yaml_text import ConfigError


def trained_on(model: Any, args: Any) -> tuple[Any, Any]:
    """A model and its trainer's arguments: of an adapter, in a folder or on the hub, its base, loaded as
    TRL's trainer loads a model, with the adapter to be trained on; any other model as it is given."""
    if not isinstance(model, (str, Path)):
        return model, args
    place, how = located(model, args and args.model_init_kwargs)
    if not holds_adapter(place):
        return model, args
    if args is None:
        raise ValueError(f"{model} holds an adapter: give args, which say how its base is loaded")
    refuse_other_models(place)
    folder = Path(place)
    if args.world_size > 1:
        how["device_map"] = None  # as TRL has it
    how.setdefault("trust_remote_code", args.trust_remote_code)
    config = adapter_config_of(folder)
    config.revision = how.get("revision")  # of the base: for who loads what is saved
    base = create_model_from_path(base_of(folder), **how)
    args = copy.copy(args)
    args.model_init_kwargs = how
    tokenizer = load_tokenizer(str(folder), args)
    args.model_init_kwargs = None  # TRL would say that they are ignored
    return with_adapter(base, folder, config, tokenizer, trainable=True), args


def adapter_config_of(folder: Path) -> Any:
    """Its PeftConfig. ConfigError where it is damaged."""
    try:
        return PeftConfig.from_pretrained(folder)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{folder / ADAPTER} cannot be read, restore it ({first_line(error)})") from None


def with_adapter(base: Any, folder: Path, config: Any, tokenizer: Any, *, trainable: bool) -> Any:
    """A PeftModel; ConfigError where the two do not fit. A template may have made the vocabulary larger."""
    if len(tokenizer) > base.get_input_embeddings().num_embeddings:
        base.resize_token_embeddings(len(tokenizer))
    try:
        return PeftModel.from_pretrained(base, str(folder), is_trainable=trainable, config=config)
    except (RuntimeError, ValueError, SafetensorError) as error:
        raise ConfigError(
            f"the adapter in {folder} does not fit its model, or is damaged: restore the files of both "
            f"({first_line(error)})"
        ) from None

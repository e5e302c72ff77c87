"""The model that a run, or a checkpoint of one, has written: whole weights, or an adapter on its base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from coretune.adapter_folder import base_of, holds_adapter
from coretune.escaping import first_line
from coretune.recording.run_files import RunFiles, checkpoints_of
from coretune.training.adapter_loading import adapter_config_of, with_adapter
from coretune.training.tokenizers import load_tokenizer, loaded_from, read_here
from coretune.yaml_text import ConfigError

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def load(folder: Path) -> tuple[Any, Any]:
    """Model and tokenizer; of an adapter a PeftModel. ConfigError where the folder has none."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    args = read_here(_training(folder))
    args.eos_token = args.pad_token = args.chat_template_path = None  # they are in the folder's tokenizer
    where = loaded_from(args)
    if not holds_adapter(folder):
        refuse_without_model(folder)
        return _base(str(folder), {**where, "revision": None}), load_tokenizer(str(folder), args)
    base = base_of(folder)
    config = adapter_config_of(folder)
    tokenizer = load_tokenizer(str(folder), args)
    return with_adapter(_base(base, where), folder, config, tokenizer, trainable=False), tokenizer


def refuse_without_model(folder: Path) -> None:
    """ConfigError where the folder has neither an adapter nor weights."""
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder; give the output_dir of a run, or a checkpoint")
    if any(path for pattern in WEIGHTS for path in folder.glob(pattern)):
        return
    last = [str(path) for path in checkpoints_of(folder)[-1:]]
    remedy = (
        f"; its last checkpoint is {last[0]}" if last else ": give the output_dir of a run that has ended"
    )
    raise ConfigError(f"{folder} holds no weights{remedy}")


def _training(folder: Path) -> dict[str, Any]:
    """The section of the run's config; {} where the folder is of no run."""
    for place in (folder, folder.parent):
        if found := RunFiles(place).config:
            return dict(found.get("training") or {})
    return {}


def _base(name: str, where: dict[str, Any]) -> Any:
    given = {key: value for key, value in where.items() if value is not None}
    try:
        return AutoModelForCausalLM.from_pretrained(name, dtype="auto", **given).eval()
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ConfigError(f"no model can be loaded from {name}: {first_line(error)}") from None

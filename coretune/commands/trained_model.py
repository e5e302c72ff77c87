"""The model that a run, or a checkpoint of one, has written: whole weights, or an adapter on its base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from coretune.adapter_folder import OF_A_REPOSITORY, base_of, holds_adapter, located
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
    run = _config(folder)
    args = read_here(dict(run.get("training") or {}))
    args.eos_token = args.pad_token = args.chat_template_path = None  # they are in the folder's tokenizer
    if not holds_adapter(folder):
        refuse_without_model(folder)
        return _base(str(folder), {**loaded_from(args), "revision": None}), load_tokenizer(str(folder), args)
    base = base_of(folder)
    given = dict(args.model_init_kwargs or {})
    if run.get("model_name_or_path") != base:  # then these are of an adapter that the run went on from
        given = {key: value for key, value in given.items() if key not in OF_A_REPOSITORY}
    _, args.model_init_kwargs = located(folder, given)
    config = adapter_config_of(folder)
    tokenizer = load_tokenizer(str(folder), args)
    adapted = with_adapter(_base(base, loaded_from(args)), folder, config, tokenizer, trainable=False)
    return adapted, tokenizer


def folder_of(run: Path) -> Path:
    """Where a run's model lies: a folder as it is, of an adapter on the hub that in the hub's cache."""
    return Path(located(run, None)[0])


def refuse_without_model(folder: Path) -> None:
    """ConfigError where the folder has neither an adapter nor weights."""
    if not folder.is_dir():
        raise ConfigError(
            f"{folder} is no folder, and no adapter on the hub that can be reached; give the output_dir of a "
            "run, or a checkpoint"
        )
    if any(path for pattern in WEIGHTS for path in folder.glob(pattern)):
        return
    last = [str(path) for path in checkpoints_of(folder)[-1:]]
    remedy = (
        f"; its last checkpoint is {last[0]}" if last else ": give the output_dir of a run that has ended"
    )
    raise ConfigError(f"{folder} holds no weights{remedy}")


def _config(folder: Path) -> Mapping[str, Any]:
    """The run's config; empty where the folder is of no run."""
    return RunFiles(folder).config or RunFiles(folder.parent).config or {}


def _base(name: str, where: dict[str, Any]) -> Any:
    given = {key: value for key, value in where.items() if value is not None}
    try:
        return AutoModelForCausalLM.from_pretrained(name, dtype="auto", **given).eval()
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ConfigError(f"no model can be loaded from {name}: {first_line(error)}") from None

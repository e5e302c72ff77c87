"""The model that a run, or a checkpoint of one, has written: whole weights, or an adapter on its base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from coretune.escaping import first_line
from coretune.recording.run_files import RunFiles, checkpoints_of
from coretune.training.model_kind import ADAPTER
from coretune.training.tokenizers import load_tokenizer, loaded_from, read_here
from coretune.yaml_text import ConfigError

ADAPTER_WEIGHTS = "adapter_model.*"
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
    base = str(adapter_of(folder).base_model_name_or_path)
    if not Path(base).is_dir() and base.count("/") != 1:
        raise ConfigError(
            f"{folder} is an adapter of {base}, and there is no such folder: start the command where "
            f"training was started, or correct base_model_name_or_path in {folder / ADAPTER}"
        )
    has_tokenizer = any(folder.glob("tokenizer*"))
    tokenizer = load_tokenizer(str(folder) if has_tokenizer else base, args)
    model = _base(base, where)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:  # a template's tokens were added
        model.resize_token_embeddings(len(tokenizer))
    return _adapted(model, folder), tokenizer


def holds_adapter(folder: Path) -> bool:
    return (folder / ADAPTER).is_file()


def adapter_of(folder: Path) -> Any:
    """Its PeftConfig. ConfigError where it is damaged, or its weights are not there."""
    if not any(folder.glob(ADAPTER_WEIGHTS)):
        raise ConfigError(f"{folder} holds an adapter's {ADAPTER} and no weights of it: restore them")
    try:
        return PeftConfig.from_pretrained(folder)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{folder / ADAPTER} cannot be read, restore it ({first_line(error)})") from None


def _adapted(model: Any, folder: Path) -> Any:
    try:
        return PeftModel.from_pretrained(model, str(folder))
    except (RuntimeError, ValueError, SafetensorError) as error:
        raise ConfigError(
            f"the adapter in {folder} does not fit its model, or is damaged: restore the files of both "
            f"({first_line(error)})"
        ) from None


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

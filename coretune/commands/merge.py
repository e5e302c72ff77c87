"""`coretune merge`: an adapter and its base as one model, which any program loads. Whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from coretune.adapter_folder import ADAPTER, holds_adapter
from coretune.commands.trained_model import folder_of, load, refuse_without_model
from coretune.files import PART, disk_full, free_bytes, sync_folder, writing
from coretune.training.adapter_loading import adapter_config_of
from coretune.yaml_text import ConfigError

REMEDY = "make room and merge again"


def merge(run: Path, output: Path | None) -> Path:
    """Write the merged model and its tokenizer into `output`, a folder that is not there yet or empty.

    output  None: the folder `merged` in the run's

    Raises ConfigError: no adapter, one that cannot be merged, `output` is taken; OSError: a full disk, of
    which nothing is left behind.
    """
    folder = folder_of(run)
    _refuse_unmergeable(folder)
    if output is None and folder != run:
        raise ConfigError(f"{run} is an adapter on the hub: give --output, the folder of the merged model")
    output = output or run / "merged"
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{output} is there already: remove it, or give another --output")
    adapted, tokenizer = load(folder)
    model = adapted.merge_and_unload(safe_merge=True)
    needed = sum(one.numel() * one.element_size() for one in model.parameters())
    part = output.with_name(output.name + PART)
    shutil.rmtree(part, ignore_errors=True)  # what a killed merge left
    if free_bytes(part) < needed:
        raise disk_full(output, f"about {needed:,} bytes", REMEDY)
    try:
        with writing(part, needed, REMEDY):
            model.save_pretrained(part)
            tokenizer.save_pretrained(part)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    os.replace(part, output)
    sync_folder(output.absolute().parent)
    return output


def _refuse_unmergeable(run: Path) -> None:
    if not holds_adapter(run):
        refuse_without_model(run)
        raise ConfigError(
            f"{run} holds no adapter ({ADAPTER}): its weights are whole already, use it as it is"
        )
    config = adapter_config_of(run)
    if config.is_prompt_learning:
        raise ConfigError(
            f"{run} is an adapter of type {config.peft_type.value}, which adds tokens and changes no "
            "weights: it cannot be merged, load it with peft"
        )

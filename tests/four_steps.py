"""A run of four steps with checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_run import Spy, coreset_config, trainer
from tiny_tokenizer import tiny_tokenizer

SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}


def a_trainer(folder: Path, **settings: Any) -> Spy:
    return trainer(folder, coreset_config("random"), **{**SAVING, **settings})


TOKENIZER = tiny_tokenizer()

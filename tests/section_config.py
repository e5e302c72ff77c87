"""A config with a given section `training`."""

from __future__ import annotations

from typing import Any

from tiny_run import model_folder

from coretune.config import RunConfig, check_config


def made(training: dict[str, Any] | None = None, **top: Any) -> RunConfig:
    raw = {
        "model_name_or_path": str(model_folder()),
        "train_data": "pool.jsonl",
        "output_dir": "runs/x",
        "coreset": {"method": "grace", "budget": "10%"},
        "training": {"bf16": False, **(training or {})},
    }
    return check_config({**raw, **top})

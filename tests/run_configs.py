"""A small run's data and config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_run import model_folder, records, write_jsonl

from coretune.config import RunConfig, check_config

CORESET = {
    "method": "grace",
    "budget": "25%",
    "refresh_every": 2,
    # noise detection is off with this model, and it is measured all the same
    "refresh": {"warmup": 0.1, "k": 4, "audit_every": 2, "defer_first_measurement": False},
}


TRAINING = {
    "max_steps": 8,
    "per_device_train_batch_size": 4,
    "learning_rate": 1.0e-2,
    "bf16": False,
    "save_steps": 4,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}


def written_data(folder: Path) -> Path:
    write_jsonl(folder / "pool.jsonl", records(48))
    write_jsonl(folder / "eval.jsonl", records(12, seed=1))
    write_jsonl(folder / "target.jsonl", records(8, seed=2))
    return folder


def raw_config(data: Path, out: Path, **top: Any) -> dict[str, Any]:
    return {
        "model_name_or_path": str(model_folder()),
        "train_data": str(data / "pool.jsonl"),
        "eval_data": str(data / "eval.jsonl"),
        "columns": {"prompt": "prompt", "completion": "completion"},
        "output_dir": str(out),
        "seed": 0,
        "coreset": CORESET,
        "training": TRAINING,
        "peft": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
        **top,
    }


def config(data: Path, out: Path, **top: Any) -> RunConfig:
    return check_config(raw_config(data, out, **top))

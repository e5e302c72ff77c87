"""A line of the table of bench/cost.py, and the run that its parts measure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

MICRO = 4  # rows of one forward pass
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
TUNINGS = ("full", "LoRA")


@dataclass(frozen=True)
class Asked:
    """model and pool are folders; home is a scratch folder."""

    model: Path
    pool: Path
    home: Path
    quick: bool


@dataclass(frozen=True)
class Figure:
    """One ratio, or seconds.

    goal      at most so much; None: no goal
    measured  what it was measured on, and what stands beside it
    """

    work: str
    value: float
    goal: float | None = None
    unit: str = "×"
    measured: str = ""

    @property
    def met(self) -> bool | None:
        return None if self.goal is None else self.value <= self.goal

    @property
    def cells(self) -> tuple[str, str, str]:
        said = {True: "met", False: "MISSED", None: ""}[self.met]
        return self._said(self.value), "" if self.goal is None else f"≤ {self._said(self.goal)}", said

    @property
    def miss(self) -> str:
        return f"{self.work}: {self.cells[0]}, goal {self.cells[1]}"

    def _said(self, value: float) -> str:
        return f"{value:.0%}" if self.unit == "%" else f"{value:.3g} {self.unit}"


def section(
    asked: Asked, lora: bool, train_data: Path, out: Path, coreset: dict[str, Any], **training: Any
) -> dict[str, Any]:
    """The configuration of a run; gradients of `training["rows"]` rows are added up in a step."""
    rows = training.pop("rows", 4 * MICRO)
    micro = min(MICRO, rows)
    return {
        "model_name_or_path": str(asked.model),
        "train_data": str(train_data),
        "output_dir": str(out),
        "skip_bad_rows": True,
        "coreset": coreset,
        "peft": dict(LORA) if lora else None,
        "training": {
            "per_device_train_batch_size": micro,
            "gradient_accumulation_steps": rows // micro,
            "learning_rate": 1e-4,
            "bf16": True,
            "gradient_checkpointing": False,
            "model_init_kwargs": {"attn_implementation": "eager"},
            "save_strategy": "no",
            "logging_strategy": "no",
            "disable_tqdm": True,
            "report_to": "none",
            "dataloader_pin_memory": False,
            **training,
        },
    }

"""Optimisers without Adam's moments are refused by what they keep, before anything is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import arguments, coreset_config, trainer

from coretune.measure.settings import MeasureSettings
from coretune.training.optimizer_check import refuse_optimizer


def having(
    folder: Path, optim: str = "adamw_torch", optimizer: Any = None, made: Any = None
) -> tuple[Any, Any, Any, Any]:
    return optimizer, made, arguments(folder, optim=optim), torch.nn.Linear(2, 2)


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
def test_adam_is_read(tmp_path: Path, optim: str) -> None:
    refuse_optimizer(*having(tmp_path, optim), "adam")
    weights = [torch.nn.Parameter(torch.zeros(3))]
    refuse_optimizer(*having(tmp_path, optimizer=torch.optim.Adam(weights, amsgrad=True)), "linear")
    refuse_optimizer(*having(tmp_path, made=(torch.optim.AdamW, {"lr": 1e-3})), "adam")


@pytest.mark.parametrize(
    ("optim", "message"),
    [
        (
            "sgd",
            "which reads Adam's moments, and SGD keeps no state: set optim to adamw_torch",
        ),
        ("adafactor", "Adafactor keeps RMS, exp_avg_sq_col, exp_avg_sq_row, step: set optim"),
        ("rmsprop", "RMSprop keeps square_avg, step: set optim"),
        ("adagrad", "Adagrad keeps step, sum: set optim"),
    ],
)
def test_others_are_refused_by_what_they_keep(tmp_path: Path, optim: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        refuse_optimizer(*having(tmp_path, optim), "adam")


def test_those_given_by_hand_are_checked_too(tmp_path: Path) -> None:
    weights = [torch.nn.Parameter(torch.zeros(3))]
    with pytest.raises(ValueError, match="SGD keeps momentum_buffer"):
        refuse_optimizer(*having(tmp_path, optimizer=torch.optim.SGD(weights, lr=0.1, momentum=0.9)), "adam")
    with pytest.raises(ValueError, match="Adamax keeps exp_avg, exp_inf, step"):
        refuse_optimizer(*having(tmp_path, made=(torch.optim.Adamax, {})), "adam")
    galore = {"params": [{"params": weights, "rank": 2}]}
    with pytest.raises(ValueError, match="AdamW keeps moments of something else than each weight"):
        refuse_optimizer(*having(tmp_path, made=(torch.optim.AdamW, galore)), "adam")
    with pytest.raises(ValueError, match=r"LBFGS keeps nothing that could be found out .TypeError"):
        refuse_optimizer(*having(tmp_path, made=(torch.optim.LBFGS, {})), "adam")


def test_brief_is_refused_before_its_warm_up_run(tmp_path: Path) -> None:
    brief = coreset_config("brief", warmup=0.5, refresh_every="never")
    with pytest.raises(ValueError, match=r"preconditioner is adam, .* and SGD keeps no state"):
        trainer(tmp_path / "sgd", brief, optim="sgd")
    assert not list((tmp_path / "sgd").rglob("checkpoint-*"))
    trainer(tmp_path, replace(brief, signals=MeasureSettings()), optim="sgd")
    trainer(tmp_path, coreset_config("random"), optim="sgd")
    live = MeasureSettings(preconditioner="linear")
    with pytest.raises(ValueError, match="preconditioner is linear"):
        trainer(tmp_path, coreset_config("gradmatch", warmup=0.2, signals=live), optim="adafactor")

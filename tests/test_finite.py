"""A run whose numbers are not finite any more stops with one line and keeps its last whole checkpoint."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_run import Spy, coreset_config, corpus, trainer
from transformers import TrainerCallback

from coretune.ledger import Ledger
from coretune.rounds.measurement import Measurement
from coretune.rounds.transitions import empty_pool
from coretune.training.finite import broken_weights


class Breaks(TrainerCallback):
    """Puts a NaN into the weights when a step has ended."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == self.step:
            model.get_decoder().layers[0].mlp.down_proj.weight.data[0, 0] = torch.nan


@pytest.mark.parametrize(
    ("method", "broken", "message"),
    [
        ("random", 3, "step 4: the loss is nan, and training stops before the weights become so too"),
        ("grace", 4, "is not finite for any of the"),  # at the measurement that follows
        ("random", 4, "after step 4 the weights are not finite, as model.layers.0.mlp.down_proj.weight"),
        ("random", 6, "after step 6 the weights are not finite"),  # the last one
    ],
)
def test_a_run_that_breaks_stops_with_a_line_and_keeps_its_last_checkpoint(
    tmp_path: Path, method: str, broken: int, message: str
) -> None:
    config = coreset_config(method, refresh_every=2, **({"anchors": "all"} if method == "grace" else {}))
    settings = {"save_strategy": "steps", "save_steps": 2 if method == "random" else 3, "save_total_limit": 1}
    made = trainer(tmp_path, config, callbacks=[Breaks(broken)], **settings)
    with pytest.raises(ValueError, match=message) as stopped:
        made.train()
    assert "resume_from_checkpoint" in str(stopped.value)
    assert "\n" not in str(stopped.value)
    (kept,) = tmp_path.glob("checkpoint-*")
    assert all(tensor.isfinite().all() for tensor in load_file(kept / "model.safetensors").values())
    if method == "random":
        assert f"the last whole checkpoint, {kept}, is kept" in str(stopped.value)


def test_a_learning_rate_that_is_far_too_high_is_found_at_once(tmp_path: Path) -> None:
    made = trainer(tmp_path, coreset_config("random"), learning_rate=1e30)
    with pytest.raises(
        ValueError, match=r"step [23]: the loss is .*; no checkpoint is kept yet: lower learning_rate"
    ):
        made.train()


def test_weights_that_are_broken_from_the_start_are_no_selection(tmp_path: Path) -> None:
    made = trainer(tmp_path, coreset_config("loss"))
    made.model.get_decoder().norm.weight.data[3] = torch.inf
    assert broken_weights(made.model) == "model.norm.weight"
    with pytest.raises(
        ValueError, match="loss is not finite for any of the 48 rows measured: the model's weights"
    ):
        made.select()


@pytest.mark.parametrize(("rows", "broken", "stops"), [(20, 20, True), (20, 19, False), (3, 3, False)])
def test_a_few_rows_may_be_broken_by_themselves(rows: int, broken: int, stops: bool) -> None:
    def measure(asked: Any) -> dict[str, Any]:
        loss = np.where(np.arange(len(asked)) < broken, np.nan, 1.0)
        return {"prompt_embedding": np.ones((len(asked), 4)), "loss": loss}

    measurement = Measurement(measure, lambda rows: 0.0)
    pool, asked = empty_pool(np.ones(30, np.int64)), np.arange(rows)
    if stops:
        with pytest.raises(ValueError, match="loss is not finite for any of the 20 rows measured"):
            measurement.signals(asked, pool, Ledger(), "measurement")
    else:
        assert np.isnan(measurement.signals(asked, pool, Ledger(), "measurement")["loss"]).sum() == broken


def test_an_evaluation_that_is_not_finite_is_named_and_chooses_no_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Spy):
        def prediction_step(self, *given: Any, **named: Any) -> Any:
            loss, logits, labels = super().prediction_step(*given, **named)
            return loss * (torch.nan if self.state.global_step == 2 else 1), logits, labels

    steps = {"strategy": "steps", "steps": 2}
    settings = {f"{what}_{name}": value for what in ("save", "eval") for name, value in steps.items()}
    made = trainer(
        tmp_path,
        coreset_config("random"),
        kind=Broken,
        eval_dataset=corpus(8, 1).dataset,
        load_best_model_at_end=True,
        max_steps=4,
        **settings,
    )
    with caplog.at_level(logging.WARNING, logger="coretune"):
        made.train()
    assert "evaluation after step 2: eval_loss is nan, and nothing is chosen by it" in caplog.text
    assert "evaluation after step 4" not in caplog.text
    assert made.state.best_model_checkpoint == str(tmp_path / "checkpoint-4")

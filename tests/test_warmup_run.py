"""The warm-up run before the training: made, found, resumed or refused; training is the same after it."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_method import ByCheckpoints
from peft import LoraConfig
from tiny_run import Spy, coreset_config, trainer, weights
from torch import nn

from coretune.recording.run_files import WARMUP_RUN
from coretune.rounds.coreset_config import CoresetConfig
from coretune.select import SELECTORS
from coretune.training import warmup_run
from coretune.training.refusals import can_weigh
from coretune.training.warmup_run import WarmupPlan, restored

pytestmark = pytest.mark.skipif(not can_weigh(version("trl")), reason="TRL < 1.16 has no loss per token")

ALONE = {"anchors": "all", "propagate": "none", "repair": "none", "warmup": 0.25, "weighted": True}
MODULES = ["q_proj", "v_proj"]
LORA = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules=MODULES, task_type="CAUSAL_LM")
KEPT = {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt"}


def by_checkpoints(**settings: Any) -> CoresetConfig:
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(SELECTORS, "by_checkpoints", ByCheckpoints)
        return coreset_config("by_checkpoints", **{"refresh_every": "never", **ALONE, **settings})


def warmed(folder: Path, coreset: CoresetConfig | None = None, **settings: Any) -> Spy:
    return trainer(folder, coreset or by_checkpoints(), **{"max_steps": 4, **settings})


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def rates(checkpoint: Path) -> dict[int, float]:
    """The learning rate of each step that was logged."""
    log = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry["learning_rate"] for entry in log if "learning_rate" in entry}


def test_a_warm_up_run_has_a_share_of_the_pool_in_evenly_spaced_parts() -> None:
    plan = WarmupPlan.of(by_checkpoints(warmup=0.5), n=48, batch=4, checkpoints=4)
    assert (len(plan.rows), plan.marks) == (24, (1, 3, 4, 6))
    assert len(np.unique(plan.rows)) == 24
    assert np.array_equal(plan.rows[:12], WarmupPlan.of(by_checkpoints(), n=48, batch=4, checkpoints=1).rows)
    with pytest.raises(
        ValueError, match=r"4 checkpoints .* on 12 rows takes 3 steps: raise coreset.refresh.warmup"
    ):
        WarmupPlan.of(by_checkpoints(), n=48, batch=4, checkpoints=4)


class Buffered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("seen", torch.zeros(2))


def _use(model: Buffered) -> None:
    with restored(model):
        with torch.no_grad():
            model.layer.weight.add_(1)
            model.seen.add_(1)
        model.layer.weight.grad = torch.ones(2, 2)
        model.layer.forward = lambda x: x  # type: ignore[method-assign]
        model.prepared = True  # type: ignore[assignment]
        model.eval()
        raise RuntimeError("interrupted")


def test_a_model_that_was_lent_comes_back_as_it_was() -> None:
    model = Buffered()
    before, forward = {k: v.clone() for k, v in model.state_dict().items()}, model.layer.forward
    with pytest.raises(RuntimeError, match="interrupted"):
        _use(model)
    assert_same(before, dict(model.state_dict()))
    assert model.layer.weight.grad is None
    assert model.training
    assert "prepared" not in vars(model)
    assert model.layer.forward == forward


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run that made its warm-up run, with the weights it began with. Dropout is on."""
    run = warmed(tmp_path_factory.mktemp("first"), by_checkpoints(warmup=0.5), peft_config=LORA)
    start = weights(run)
    run.train()
    return run, start


def with_warmup_of(run: Spy, folder: Path) -> Path:
    shutil.copytree(Path(run.args.output_dir) / WARMUP_RUN, folder / WARMUP_RUN)
    return folder


def test_a_run_that_finds_its_checkpoints_is_the_run_that_made_them(first: Any, tmp_path: Path) -> None:
    """A random state that the warm-up run has used up would show in the dropout of the training after it."""
    made, start = first
    note = with_warmup_of(made, tmp_path) / WARMUP_RUN / "warmup.json"
    before = note.stat().st_mtime_ns
    again = warmed(tmp_path, by_checkpoints(warmup=0.5), peft_config=LORA)
    assert_same(start, weights(again))
    again.train()
    assert note.stat().st_mtime_ns == before
    assert again.trained == made.trained
    assert_same(weights(made), weights(again))
    costs = [run.ledger.by_phase()["warm-up"] for run in (made, again)]
    assert (costs[0].rows, costs[0].flops) == (costs[1].rows, costs[1].flops)
    assert costs[0].rows == 24
    assert costs[1].seconds < costs[0].seconds


def test_it_is_a_stock_run_on_those_rows_and_leaves_checkpoints_with_their_optimizer(first: Any) -> None:
    run, _ = first
    folder = Path(run.args.output_dir) / WARMUP_RUN
    kept = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert kept == ["checkpoint-3", "checkpoint-6"]
    for name in kept:
        assert {path.name for path in (folder / name).iterdir()} >= KEPT
    assert sorted(rates(folder / "checkpoint-6")) == [1, 2, 3, 4, 5, 6]
    assert run.coreset_state.coreset.weights.std() > 0


def test_checkpoints_of_a_folder_of_the_users_are_measured_at(first: Any, tmp_path: Path) -> None:
    made, _ = first
    config = by_checkpoints()
    selector = ByCheckpoints(checkpoints_from=str(Path(made.args.output_dir) / WARMUP_RUN))
    given = replace(config, selector=selector, refresh_every="never", weighted=True, seed=0)
    other = warmed(tmp_path / "two", given, peft_config=LORA)
    other.train()
    assert not (tmp_path / "two" / WARMUP_RUN).exists()
    assert_same(weights(made), weights(other))
    assert other.ledger.by_phase()["warm-up"].rows == 0
    nowhere = CoresetConfig(
        ByCheckpoints(checkpoints_from=str(tmp_path)), config.refresh, config.budget, refresh_every="never"
    )
    with pytest.raises(ValueError, match="holds 0 checkpoint-N folders, 2 are asked for"):
        warmed(tmp_path / "three", nowhere)


def test_a_warm_up_run_killed_half_way_is_resumed(
    first: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = first
    with monkeypatch.context() as patched:
        patched.setattr(
            warmup_run._SavesAtMarks, "on_step_end", _killed(warmup_run._SavesAtMarks.on_step_end)
        )
        broken = warmed(tmp_path, by_checkpoints(warmup=0.5), peft_config=LORA)
        before = weights(broken)
        with pytest.raises(KeyboardInterrupt):
            broken.train()
        assert_same(before, weights(broken))
    note = tmp_path / WARMUP_RUN / "warmup.json"
    assert not json.loads(note.read_text())["finished"]
    again = warmed(tmp_path, by_checkpoints(warmup=0.5), peft_config=LORA)
    again.select()
    assert json.loads(note.read_text())["finished"]
    end = Path(WARMUP_RUN) / "checkpoint-6" / "adapter_model.safetensors"
    assert (tmp_path / end).read_bytes() == (Path(whole.args.output_dir) / end).read_bytes()
    assert np.array_equal(again.coreset_state.coreset.indices, whole.coreset_state.coreset.indices)


def _killed(stock: Any) -> Any:
    def on_step_end(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        stock(self, args, state, control, **more)
        if state.global_step == 4:
            raise KeyboardInterrupt

    return on_step_end


@pytest.mark.parametrize(("step", "name"), [(6, "adapter_model.safetensors"), (3, "optimizer.pt")])
def test_a_finished_warm_up_run_with_a_changed_byte_is_made_again_from_there(
    first: Any, tmp_path: Path, step: int, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    made, _ = first
    damaged = with_warmup_of(made, tmp_path) / WARMUP_RUN / f"checkpoint-{step}" / name
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    again = warmed(tmp_path, by_checkpoints(warmup=0.5), peft_config=LORA)
    with caplog.at_level(logging.WARNING, logger="coretune"):
        again.select()
    assert f"checkpoint-{step} is not whole and is made again: {name} is damaged" in caplog.text
    for mark in (3, 6):
        file = Path(WARMUP_RUN) / f"checkpoint-{mark}" / "adapter_model.safetensors"
        assert (tmp_path / file).read_bytes() == (Path(made.args.output_dir) / file).read_bytes()
    assert np.array_equal(again.coreset_state.coreset.indices, made.coreset_state.coreset.indices)


def test_a_warm_up_run_of_something_else_is_refused_and_what_differs_is_named(
    first: Any, tmp_path: Path
) -> None:
    with_warmup_of(first[0], tmp_path)
    for settings, named in (
        ({"learning_rate": 1e-3}, r"training.learning_rate is 0.01 there and 0.001 here"),
        ({"peft_config": None}, r"weights is .* there and .* here; adapter is .* there and none here"),
        ({"coreset": by_checkpoints()}, r"rows is .*marks is 3 6 there and 1 3 here"),
    ):
        run = warmed(tmp_path, **{"coreset": by_checkpoints(warmup=0.5), "peft_config": LORA, **settings})
        with pytest.raises(ValueError, match=f"warmup holds a warm-up run of something else: .*{named}"):
            run.select()


def test_what_is_only_logged_or_saved_does_not_make_another_warm_up_run(first: Any, tmp_path: Path) -> None:
    with_warmup_of(first[0], tmp_path)
    shown = {"logging_steps": 3, "run_name": "other", "save_strategy": "steps", "save_steps": 2}
    run = warmed(tmp_path, by_checkpoints(warmup=0.5), peft_config=LORA, max_steps=6, **shown)
    assert run.select().selections == 1


def test_an_optimizer_of_the_users_cannot_be_lent(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="needs an optimizer of its own: give optimizer_cls_and_kwargs"):
        warmed(tmp_path, optimizers=(torch.optim.AdamW(model.parameters()), None))


def test_the_schedule_is_the_runs_own_on_the_length_of_the_warm_up_run(tmp_path: Path) -> None:
    run = warmed(
        tmp_path,
        by_checkpoints(warmup=0.5),
        max_steps=40,
        warmup_steps=20,
        lr_scheduler_type="constant_with_warmup",
    )
    run.select()
    log = json.loads((tmp_path / WARMUP_RUN / "checkpoint-6" / "trainer_state.json").read_text())[
        "log_history"
    ]
    rates = [entry["learning_rate"] for entry in log if "learning_rate" in entry]
    assert np.allclose(rates, 0.01 * np.minimum(np.arange(6) / 3, 1))

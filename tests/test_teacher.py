"""The teacher beside the training: made, found, gone on with or refused; and the training none the wiser."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from taught import Pupil
from tiny_run import Spy, coreset_config, corpus, trainer, weights
from torch import nn

from coretune import teacher
from coretune.measure.settings import MeasureSettings
from coretune.schedule import CoresetConfig
from coretune.select import SELECTORS
from coretune.teacher import Lesson, lent

ALONE = {"anchors": "all", "propagate": "none", "repair": "none", "warmup": 0.25, "weighted": True}
MODULES = ["q_proj", "v_proj"]
LORA = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules=MODULES, task_type="CAUSAL_LM")
KEPT = {"model.safetensors", "optimizer.pt", "scheduler.pt"}


@pytest.fixture(autouse=True)
def _pupil(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SELECTORS, "pupil", Pupil)


def pupil(**settings: Any) -> CoresetConfig:
    return coreset_config("pupil", **{"refresh_every": "never", **ALONE, **settings})


def taught(folder: Path, coreset: CoresetConfig | None = None, **settings: Any) -> Spy:
    settings = {"measuring": MeasureSettings(projection_dim=16), "max_steps": 4, **settings}
    return trainer(folder, coreset or pupil(), **settings)


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def rates(checkpoint: Path) -> dict[int, float]:
    """The learning rate of each step that was logged."""
    log = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry["learning_rate"] for entry in log if "learning_rate" in entry}


def test_a_lesson_is_a_share_of_the_pool_in_evenly_spaced_parts() -> None:
    lesson = Lesson.of(pupil(warmup=0.5), n=48, batch=4, checkpoints=4)
    assert (len(lesson.rows), lesson.marks) == (24, (1, 3, 4, 6))
    assert len(np.unique(lesson.rows)) == 24
    assert np.array_equal(lesson.rows[:12], Lesson.of(pupil(), n=48, batch=4, checkpoints=1).rows)
    with pytest.raises(ValueError, match=r"4 checkpoints .* on 12 rows takes 3 steps: raise coreset.warmup"):
        Lesson.of(pupil(), n=48, batch=4, checkpoints=4)


class Buffered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("seen", torch.zeros(2))


def _use(model: Buffered) -> None:
    with lent(model):
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


@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
def test_a_run_that_makes_its_teacher_is_the_run_that_finds_it(tmp_path: Path, lora: Any) -> None:
    """Dropout is on, so that a random state that the teacher has used up would show."""
    first = taught(tmp_path / "one", peft_config=lora)
    start = weights(first)
    first.train()
    shutil.copytree(tmp_path / "one" / "teacher", tmp_path / "two" / "teacher")
    made = (tmp_path / "two" / "teacher" / "teacher.json").stat().st_mtime_ns
    again = taught(tmp_path / "two", peft_config=lora)
    assert_same(start, weights(again))
    again.train()
    assert (tmp_path / "two" / "teacher" / "teacher.json").stat().st_mtime_ns == made
    assert again.trained == first.trained
    assert_same(weights(first), weights(again))
    costs = [run.ledger.by_phase()["warm-up"] for run in (first, again)]
    assert (costs[0].rows, costs[0].flops) == (costs[1].rows, costs[1].flops)
    assert costs[0].rows == 12
    assert costs[1].seconds < costs[0].seconds


def test_it_is_a_stock_run_on_those_rows_and_leaves_checkpoints_with_their_optimizer(tmp_path: Path) -> None:
    run = taught(tmp_path, pupil(warmup=0.5))
    run.select()
    folder = tmp_path / "teacher"
    kept = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert kept == ["checkpoint-3", "checkpoint-6"]
    for name in kept:
        assert {"model.safetensors", "optimizer.pt", "scheduler.pt"} <= {
            p.name for p in (folder / name).iterdir()
        }
    log = json.loads((folder / "checkpoint-6" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in log if "learning_rate" in entry] == [1, 2, 3, 4, 5, 6]
    assert run.trained == []
    assert run.coreset_state is not None
    assert run.coreset_state.coreset.weights.std() > 0


def test_a_teacher_killed_half_way_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = taught(tmp_path / "whole", pupil(warmup=0.5), peft_config=LORA)
    whole.select()
    bar = teacher._Lesson
    with monkeypatch.context() as patched:
        patched.setattr(bar, "on_step_end", _killed(bar.on_step_end))
        broken = taught(tmp_path / "cut", pupil(warmup=0.5), peft_config=LORA)
        before = weights(broken)
        with pytest.raises(KeyboardInterrupt):
            broken.train()
        assert_same(before, weights(broken))
    assert not json.loads((tmp_path / "cut" / "teacher" / "teacher.json").read_text())["finished"]
    again = taught(tmp_path / "cut", pupil(warmup=0.5), peft_config=LORA)
    again.select()
    ends = [tmp_path / run / "teacher" / "checkpoint-6" for run in ("whole", "cut")]
    for name in ("adapter_model.safetensors",):
        assert (ends[0] / name).read_bytes() == (ends[1] / name).read_bytes()
    assert np.array_equal(again.coreset_state.coreset.indices, whole.coreset_state.coreset.indices)


def _killed(stock: Any) -> Any:
    def on_step_end(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        stock(self, args, state, control, **more)
        if state.global_step == 4:
            raise KeyboardInterrupt

    return on_step_end


def test_a_teacher_of_something_else_is_refused_and_what_differs_is_named(tmp_path: Path) -> None:
    taught(tmp_path).select()
    for settings, named in (
        ({"learning_rate": 1e-3}, r"training.learning_rate is 0.01 there and 0.001 here"),
        (
            {"peft_config": LORA},
            r"weights is [0-9a-f]{32} there and [0-9a-f]{32} here; adapter is none there",
        ),
        ({"coreset": pupil(warmup=0.5)}, r"rows is .*marks is 1 3 there and 3 6 here"),
    ):
        with pytest.raises(ValueError, match=f"teacher holds a teacher of something else: .*{named}"):
            taught(tmp_path, **settings).select()
    longer = taught(tmp_path, max_steps=6, logging_steps=3, run_name="other")
    assert longer.select().selections == 1


def test_a_folder_of_the_users_is_looked_through(tmp_path: Path) -> None:
    first = taught(tmp_path / "one")
    first.train()
    given = coreset_config("pupil", refresh_every="never", **ALONE)
    selector = Pupil(teacher=str(tmp_path / "one" / "teacher"))
    other = taught(
        tmp_path / "two", CoresetConfig(selector, given.refresh, given.budget, "never", weighted=True)
    )
    other.train()
    assert not (tmp_path / "two" / "teacher").exists()
    assert np.array_equal(other.coreset_state.coreset.indices, first.coreset_state.coreset.indices)
    assert_same(weights(first), weights(other))
    assert other.ledger.by_phase()["warm-up"].rows == 0
    nowhere = CoresetConfig(Pupil(teacher=str(tmp_path)), given.refresh, given.budget, "never")
    with pytest.raises(ValueError, match="holds 0 checkpoint-N folders, 2 are asked for"):
        taught(tmp_path / "three", nowhere)


def test_an_optimizer_of_the_users_cannot_be_lent(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="needs an optimizer of its own: give optimizer_cls_and_kwargs"):
        taught(tmp_path, optimizers=(torch.optim.AdamW(model.parameters()), None))


def test_the_schedule_is_the_runs_own_on_the_teachers_length(tmp_path: Path) -> None:
    run = taught(
        tmp_path, pupil(warmup=0.5), max_steps=40, warmup_steps=20, lr_scheduler_type="constant_with_warmup"
    )
    run.select()
    log = json.loads((tmp_path / "teacher" / "checkpoint-6" / "trainer_state.json").read_text())[
        "log_history"
    ]
    rates = [entry["learning_rate"] for entry in log if "learning_rate" in entry]
    assert np.allclose(rates, 0.01 * np.minimum(np.arange(6) / 3, 1))


def test_a_dynamic_taught_method_looks_at_the_live_model_later(tmp_path: Path) -> None:
    run = taught(tmp_path, pupil(refresh_every=2), peft_config=LORA)
    run.train()
    assert [entry.rows_measured for entry in run.ledger.rounds] == [48, 48]
    assert len(corpus().ids) == 48

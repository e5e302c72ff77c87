"""Snapshots: read by name and shape from real checkpoints, put into the model and taken out bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from measure_oracle import VOCABULARY, tiny_model
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainingArguments

from coretune.measure.snapshots import Snapshot, find_snapshots, learning_rate, read_snapshots, swapped

STEPS, SAVE = 6, 2


def trained(folder: Path, family: str, **arguments) -> torch.nn.Module:
    """The model after six steps of a falling learning rate, a checkpoint every second one."""
    model = tiny_model(family)
    rng = np.random.default_rng(0)
    ids = rng.integers(2, VOCABULARY, (12, 8)).tolist()
    settings = {
        "max_steps": STEPS,
        "save_steps": SAVE,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 2,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        **arguments,
    }
    trainer = Trainer(
        model,
        TrainingArguments(str(folder), **settings),
        train_dataset=Dataset.from_dict({"input_ids": ids, "labels": ids}),
    )
    trainer.train()
    return model


@pytest.fixture(scope="module", params=["llama-lora", "qwen2"])
def snapshots_run(request, tmp_path_factory):
    """A folder of checkpoints of an adapter, and of a whole model with a tied head; the model at its end."""
    folder = tmp_path_factory.mktemp(request.param)
    return folder, trained(folder, request.param), request.param


def own(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_the_last_snapshot_is_the_model_at_the_end_and_the_first_is_not(snapshots_run):
    folder, model, family = snapshots_run
    first, last = read_snapshots(find_snapshots(folder, 3), model)[:: STEPS // SAVE - 1]
    trainable = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    assert set(first.weights) == set(last.weights) == set(trainable)
    assert all(torch.equal(last.weights[name], trainable[name]) for name in trainable)
    assert any(not torch.equal(first.weights[name], trainable[name]) for name in trainable)
    fresh = tiny_model(family, seed=5)
    ids = torch.arange(2, 12)[None]
    with torch.no_grad(), swapped(fresh, last):
        inside = own(fresh)
    assert all(torch.equal(inside[name], trainable[name]) for name in trainable)
    model.eval()
    assert torch.isfinite(model(input_ids=ids).logits).all()


def test_the_models_own_weights_come_back_bit_for_bit_even_after_an_exception(snapshots_run):
    folder, _, family = snapshots_run
    model = tiny_model(family, seed=3)
    with torch.no_grad():  # bits that arithmetic would not keep: minus zero, and a NaN
        next(p for p in model.parameters() if p.requires_grad).flatten()[:2] = torch.tensor([-0.0, torch.nan])
    before, tensors = own(model), [p.data_ptr() for p in model.parameters()]
    snapshot = Snapshot.read(find_snapshots(folder, 1)[0], model)
    changed: dict[str, torch.Tensor] = {}

    def interrupted():
        with swapped(model, snapshot):
            changed.update(own(model))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert any(not torch.equal(changed[name], before[name]) for name in snapshot.weights)
    for name, p in model.named_parameters():
        assert torch.equal(p.detach().view(torch.int32), before[name].view(torch.int32)), name
    assert tensors == [p.data_ptr() for p in model.parameters()]


def test_a_live_snapshot_changes_nothing():
    model = tiny_model("llama")
    before = own(model)
    with swapped(model, Snapshot("live", {}, 0.1)):
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize(("count", "steps"), [(1, [6]), (2, [2, 6]), (3, [2, 4, 6])])
def test_snapshots_are_evenly_spaced_and_the_last_is_among_them(snapshots_run, count, steps):
    folder, _, _ = snapshots_run
    assert [path.name for path in find_snapshots(folder, count)] == [f"checkpoint-{step}" for step in steps]


def test_more_snapshots_than_there_are_is_one_line(snapshots_run, tmp_path):
    with pytest.raises(ValueError, match="nowhere, and there is no such folder"):
        find_snapshots(tmp_path / "nowhere", 1)
    with pytest.raises(ValueError, match="holds 3 checkpoint-N folders, 4 are asked for"):
        find_snapshots(snapshots_run[0], 4)


def test_checkpoints_sort_by_number_and_unfinished_ones_do_not_count(tmp_path):
    for step in (1000, 200, 90):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-2000").mkdir()
    (tmp_path / "checkpoint-final").mkdir()
    assert [path.name for path in find_snapshots(tmp_path, 3)] == [
        "checkpoint-90",
        "checkpoint-200",
        "checkpoint-1000",
    ]


def test_moments_come_along_when_asked_for(snapshots_run):
    folder, model, _ = snapshots_run
    path = find_snapshots(folder, 1)[0]
    assert Snapshot.read(path, model).moments is None
    moments = Snapshot.read(path, model, with_moments=True).moments
    assert moments.step == STEPS
    assert set(moments.first) == {name for name, p in model.named_parameters() if p.requires_grad}


# ------------------------------------------------------------------------------------------ learning rate


def test_the_rate_is_the_mean_of_the_steps_since_the_last_snapshot(snapshots_run):
    """A linear schedule from 1e-2 to 0 over 6 steps: step s takes 1e-2 · (7 − s) / 6."""
    folder, model, _ = snapshots_run
    rates = [1e-2 * (7 - step) / 6 for step in range(1, 7)]
    found = [s.learning_rate for s in read_snapshots(find_snapshots(folder, 2), model)]
    np.testing.assert_allclose(found, [np.mean(rates[:2]), np.mean(rates[2:])])
    alone = Snapshot.read(folder / "checkpoint-6", model).learning_rate  # since checkpoint-4
    np.testing.assert_allclose(alone, np.mean(rates[4:]))


def checkpoint(folder: Path, step: int, logged: dict[int, float], following: float | None) -> Path:
    folder.mkdir()
    history = [{"step": s, "learning_rate": rate, "loss": 1.0} for s, rate in logged.items()]
    history.append({"step": step, "eval_loss": 1.0})
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": history}))
    if following is not None:
        torch.save({"_last_lr": [following, 9.0], "last_epoch": step}, folder / "scheduler.pt")
    return folder


@pytest.mark.parametrize(
    ("logged", "following", "expected"),
    [
        ({5: 6.0, 10: 1.0}, 0.0, (6 + 6 + 6 + 6 + 6 + 5 + 4 + 3 + 2 + 1) / 10),  # held, then interpolated
        ({5: 6.0}, 0.0, (5 * 6 + 5 + 4 + 3 + 2 + 1) / 10),  # to the next step's rate, which is logged nowhere
        ({5: 6.0}, None, 6.0),
        ({}, 2.5, 2.5),
    ],
)
def test_what_is_not_logged_is_interpolated(tmp_path, logged, following, expected):
    folder = checkpoint(tmp_path / "checkpoint-10", 10, logged, following)
    assert learning_rate(folder, 0) == pytest.approx(expected)


def test_no_learning_rate_is_one_line_with_the_remedy(tmp_path):
    folder = checkpoint(tmp_path / "checkpoint-10", 10, {}, None)
    with pytest.raises(ValueError, match=r"no learning rate in .*logging_steps=1"):
        learning_rate(folder, 0)


def test_a_snapshot_that_counts_for_nothing_is_refused():
    with pytest.raises(ValueError, match=r"learning rate of snapshot checkpoint-9 is 0\.0"):
        Snapshot("checkpoint-9", {}, 0.0)


# ------------------------------------------------------------------------------------------------ refusals


@pytest.fixture
def damaged(snapshots_run, tmp_path):
    """A copy of a checkpoint whose weights may be changed."""
    folder, _, family = snapshots_run
    copy = shutil.copytree(folder / "checkpoint-2", tmp_path / "checkpoint-2")
    return copy, next(copy.glob("*model.safetensors")), tiny_model(family)


def test_a_missing_parameter_is_named(damaged):
    folder, file, model = damaged
    weights = load_file(file)
    gone = next(iter(weights))
    save_file({key: value for key, value in weights.items() if key != gone}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 of the \d+ parameters of the model, as '.*weight'"):
        Snapshot.read(folder, model)


def test_another_shape_is_named_with_both(damaged):
    folder, file, model = damaged
    weights = load_file(file)
    key = next(iter(weights))
    shape = tuple(weights[key].shape)
    save_file({**weights, key: torch.zeros(2, 2)}, file, metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=rf"has shape \(2, 2\) in .* and \({shape[0]}, {shape[1]}\) in the mod"
    ):
        Snapshot.read(folder, model)


def test_a_folder_without_weights_or_state_is_named(tmp_path):
    with pytest.raises(ValueError, match="it has no trainer_state"):
        Snapshot.read(tmp_path, tiny_model("llama"))
    folder = checkpoint(tmp_path / "checkpoint-3", 3, {1: 1.0}, None)
    with pytest.raises(ValueError, match=r"has neither adapter_model\.safetensors nor model\.safetensors"):
        Snapshot.read(folder, tiny_model("llama"))


def test_an_adapters_snapshot_does_not_go_into_another_model(snapshots_run):
    folder, model, _ = snapshots_run
    snapshot = Snapshot.read(folder / "checkpoint-2", model)
    other = tiny_model("gpt2")
    before = own(other)
    with pytest.raises(ValueError, match="the model lacks"), swapped(other, snapshot):
        pass
    assert all(torch.equal(p, before[name]) for name, p in other.named_parameters())


def test_weights_in_shards_are_found_by_their_index(tmp_path):
    model = tiny_model("llama")
    folder = checkpoint(tmp_path / "checkpoint-3", 3, {1: 1.0}, None)
    model.save_pretrained(folder, max_shard_size="4KB")
    assert (folder / "model.safetensors.index.json").is_file()
    found = Snapshot.read(folder, model).weights
    assert all(torch.equal(found[name], p) for name, p in model.named_parameters())


def test_a_module_trained_whole_beside_an_adapter_is_found(tmp_path):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    model = get_peft_model(tiny_model("llama"), config)
    folder = checkpoint(tmp_path / "checkpoint-3", 3, {1: 1.0}, None)
    model.save_pretrained(folder)
    found = Snapshot.read(folder, model).weights
    assert any("lm_head" in name for name in found)
    for name, p in model.named_parameters():
        assert not p.requires_grad or torch.equal(found[name], p), name

"""Scans of the pool: through live weights or snapshots, kept on disk, gone on with, of nothing else."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import coreset_config, corpus, model_folder, trainer
from tiny_tokenizer import tiny_tokenizer
from transformers import AutoModelForCausalLM

from coretune.measure import signals
from coretune.measure.mismatched import Mismatched
from coretune.measure.settings import MeasureSettings
from coretune.measure.snapshots import Snapshot
from coretune.rounds.targets import Target, targets_of
from coretune.training import row_signals
from coretune.training.row_signals import FirstScan, RowSignals, StoredScan
from coretune.types import Array, Rows

EVERYONE = np.arange(48)
SETTINGS = MeasureSettings(projection_dim=8, last_blocks=None)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(model_folder())


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_signals, "BLOCK", 16)


def moved(model: Any, seed: int, rate: float) -> Snapshot:
    """A state of the model that is not its own."""
    draw = torch.Generator().manual_seed(seed)
    weights = {
        name: value.detach() + 0.01 * torch.randn(value.shape, generator=draw)
        for name, value in model.named_parameters()
    }
    return Snapshot(f"checkpoint-{seed}", weights, rate)


def a_look(
    model: Any,
    signals: Sequence[str] = ("gradient", "loss"),
    snapshots: Sequence[Snapshot] = (Snapshot("now", {}, 1.0),),
    targets: Any = None,
    settings: MeasureSettings = SETTINGS,
) -> RowSignals:
    return RowSignals(
        model,
        corpus(),
        signals,
        settings,
        tiny_tokenizer(),
        lambda: snapshots,
        targets_of(targets),
        bar=False,
    )


class Counted:
    """A stored measurement, with the number of rows it measured and a place to stop it."""

    def __init__(self, look: RowSignals, folder: Path, stop_after: int = 1000, **parts: str) -> None:
        self.measured, self.stop_after = 0, stop_after
        self.first = FirstScan(look)
        self.stored = StoredScan(
            self.first, self.measure, self.first.close, folder, lambda snapshots: {"weights": "w", **parts}
        )

    def measure(self, rows: Rows) -> Mapping[str, Array]:
        if self.measured >= self.stop_after:
            raise KeyboardInterrupt
        self.measured += len(rows)
        return self.first(rows)

    def __call__(self) -> Mapping[str, Array]:
        return self.stored(EVERYONE)


def test_a_stored_measurement_is_the_measurement_from_private_maps_of_its_files(
    model: Any, tmp_path: Path
) -> None:
    counted = Counted(a_look(model), tmp_path)
    found = counted()
    straight = a_look(model)(EVERYONE)
    assert found.keys() == straight.keys()
    for name, value in straight.items():
        assert isinstance(found[name], np.memmap)
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-5)
    assert counted.first.snapshots == ()
    (kept,) = tmp_path.iterdir()
    before = (kept / "loss.npy").read_bytes()
    found["loss"][:] = 0
    assert (kept / "loss.npy").read_bytes() == before


def test_what_is_through_is_not_measured_again_and_what_was_cut_goes_on(
    model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = Counted(a_look(model), tmp_path / "whole")()
    cut = Counted(a_look(model), tmp_path / "cut", stop_after=32)
    with pytest.raises(KeyboardInterrupt):
        cut()
    assert cut.first.snapshots == ()
    again = Counted(a_look(model), tmp_path / "cut")
    with caplog.at_level(logging.WARNING, logger="coretune"):
        found = again()
    assert again.measured == 16
    assert "32 of 48 rows were measured before" in caplog.text
    for name, value in whole.items():
        assert np.array_equal(found[name], value)
    third = Counted(a_look(model), tmp_path / "cut")
    third()
    assert third.measured == 0


def test_anything_that_decides_a_signal_makes_it_another_store(model: Any, tmp_path: Path) -> None:
    Counted(a_look(model), tmp_path)()
    for other, parts in (
        (a_look(model, settings=MeasureSettings(projection_dim=8, last_blocks=None, seed=1)), {}),
        (a_look(model, settings=MeasureSettings(projection_dim=8)), {}),
        (a_look(model, signals=("loss",)), {}),
        (a_look(model), {"weights": "others"}),
    ):
        counted = Counted(other, tmp_path, **parts)
        counted()
        assert counted.measured == 48
    assert len(list(tmp_path.iterdir())) == 5


def test_a_scan_of_some_rows_has_a_store_of_its_own(model: Any, tmp_path: Path) -> None:
    some = np.arange(1, 48, 4)
    found = Counted(a_look(model), tmp_path).stored(some)
    np.testing.assert_allclose(found["loss"], a_look(model)(some)["loss"], rtol=1e-3, atol=1e-5)
    again = Counted(a_look(model), tmp_path)
    again()
    assert again.measured == 48


def test_trajectories_are_kept_and_their_targets_have_shares(model: Any, tmp_path: Path) -> None:
    snapshots = [moved(model, 1, 0.5), moved(model, 2, 0.1)]
    own = {name: value.clone() for name, value in model.state_dict().items()}
    some = corpus(12, seed=1)
    look = a_look(model, ("trajectory",), snapshots, [Target(some, 0.75), Target(corpus(), 0.25)])
    found = Counted(look, tmp_path)()["trajectory"]
    assert found.shape == (48, 16)
    references = look.references()
    assert references["share"].tolist() == [0.75, 0.25]
    np.testing.assert_allclose(references["trajectory"][1], found.mean(axis=0), rtol=1e-2, atol=1e-5)
    assert a_look(model, ("trajectory",), snapshots).references() == {}
    assert a_look(model, ("loss",), targets=some).references() == {}
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())


def test_decoys_are_measured_under_the_weights_of_the_moment(model: Any) -> None:
    rows = corpus()
    decoys = Mismatched.of(rows, rows.length, 8, seed=0)
    look = dataclasses.replace(a_look(model, ("loss",)), pairs=decoys)
    before = look.references()
    assert before["mismatched_loss"].shape == (8,)
    own = look(decoys.responses)["loss"]
    np.testing.assert_allclose(
        before["matched_loss"], own, rtol=1e-4
    )  # the same responses, after their own prompts
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1.5)
    after = look.references()
    with torch.no_grad():
        model.get_output_embeddings().weight.div_(1.5)
    again = look.references()
    for name in ("mismatched_loss", "matched_loss"):
        assert not np.allclose(before[name], after[name])
        np.testing.assert_allclose(again[name], before[name], rtol=1e-4)


def test_a_response_is_compared_where_all_its_losses_are_finite(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = corpus()
    decoys = Mismatched.of(rows, rows.length, 5, seed=0)
    losses = {
        id(decoys): {"loss": np.float32([np.nan, 2, 3, 4, 9])},
        id(rows): {
            "loss": np.float32([5, 6, 7, np.inf, 9]),
            "empty_prompt_loss": np.float32([8, 8, 9, 8, np.nan]),
        },
    }
    monkeypatch.setattr(RowSignals, "_measured", lambda look, of, which, signals: losses[id(of)])
    look = a_look(model, ("loss", "empty_prompt_loss"))
    found = dataclasses.replace(look, rows=rows, pairs=decoys).references()
    assert found["mismatched_loss"].tolist() == [2, 3]
    assert found["matched_loss"].tolist() == [6, 7]
    assert found["unprompted_loss"].tolist() == [8, 9]
    own = decoys.responses[1:3]
    assert found["pair_tokens"].tolist() == (rows.length - rows.prompt_length)[own].tolist()


def test_what_cannot_be_measured_is_refused_before_anything_is_measured(model: Any) -> None:
    two = [Target(corpus(), 0.5), Target(corpus(), 0.5)]
    a_look(model, ("target_cosine",), targets=two).check()
    a_look(model, ("trajectory",), targets=two).check()
    with pytest.raises(ValueError, match="unknown signals"):
        a_look(model, ("los",)).check()
    a_look(model, settings=MeasureSettings(preconditioner="adam")).check()


def test_references_are_measured_once_for_all_blocks(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    of_target = signals._of_target

    def counted(*given: Any) -> Any:
        asked.append(1)
        return of_target(*given)

    monkeypatch.setattr(signals, "_of_target", counted)
    Counted(a_look(model, ("target_cosine",), targets=[Target(corpus(), 1.0)]), tmp_path)()
    assert len(asked) == 1


def test_runs_share_signals(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shared = tmp_path / "signals"
    settings = {"max_steps": 2, "signals_dir": shared}
    first = trainer(tmp_path / "one", coreset_config("craig"), **settings)
    first.train()
    with caplog.at_level(logging.WARNING, logger="coretune"):
        other = trainer(tmp_path / "two", coreset_config("craig", budget="50%"), **settings)
        other.train()
    assert f"48 of 48 rows were measured before, and are read from {shared}" in caplog.text
    assert len(list(shared.iterdir())) == 1
    costs = [run.ledger.by_phase()["measurement"] for run in (first, other)]
    assert costs[0].flops == costs[1].flops
    assert isinstance(first.coreset_state.pool.feature("gradient").base, np.memmap)

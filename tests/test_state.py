"""What a checkpoint keeps of a round, and that the round goes on from it as it would have."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pytest
from fake_model import FakeModel
from fake_run import ALONE, N, Run, assert_same, by_checkpoints, config

from coretune.filters.noise import Noise
from coretune.ledger import Ledger
from coretune.refresh import advance
from coretune.rounds.state import load, save
from coretune.rounds.transitions import without_unread_features
from coretune.select.grace import Grace
from coretune.types import NOISE_SCORE, TRAINED_AT


@pytest.mark.parametrize("rounds", [0, 1, 4])
def test_a_saved_round_is_the_same_and_goes_on_the_same(tmp_path: Path, rounds: int) -> None:
    run = Run(config(Grace(), warmup=0.1, anchors="priority"))
    run.model.broken = {7}
    run.go(rounds)
    save(run.state, tmp_path)
    resumed = load(tmp_path)
    assert_same(resumed, run.state)
    kept = dataclasses.replace(resumed)
    run.go(1)
    assert_same(advance(run.config, kept, run.schedule, run.measurement, Ledger()), run.state)


@pytest.mark.parametrize("anchors", ["all", "priority", "candidates"])
@pytest.mark.parametrize("propagate", ["average", "none"])
def test_noise_scores_go_through_a_checkpoint_known_or_not(
    tmp_path: Path, anchors: str, propagate: str
) -> None:
    """Rows measured while noise detection was off have none, before as after."""
    settings = {
        "anchors": anchors,
        "propagate": propagate,
        "defer_first_measurement": False,
        "anchor_share": 0.2,
    }
    model = FakeModel(N)
    model.mismatched = 0.1
    run = Run(config(Grace(), filters=(Noise(pairs=8),), **settings), model)
    for _ in range(3):
        save(run.go(1).state, tmp_path)
        resumed = load(tmp_path)
        assert_same(resumed, run.state)
        model.mismatched = 4.0
        run.go(1)
        assert_same(advance(run.config, resumed, run.schedule, run.measurement, Ledger()), run.state)
        model.mismatched = 0.1
    assert np.isnan(resumed.pool.features[NOISE_SCORE]).any()


def test_a_folder_without_a_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"holds no coreset_state\.json, so it is no checkpoint of a run"
    ):
        load(tmp_path)


def test_an_unreadable_state_is_not_half_read(tmp_path: Path) -> None:
    save(Run(config()).state, tmp_path)
    whole = (tmp_path / "coreset_state.npz").read_bytes()
    (tmp_path / "coreset_state.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadZipFile):
        load(tmp_path)


@pytest.mark.parametrize("settings", [{"refresh_every": "never"}, {"refresh_every": 1}])
def test_a_checkpoint_holds_no_wide_feature_that_nobody_reads_again(settings: dict[str, Any]) -> None:
    """And the run that goes on from it is the run."""
    alone = {**ALONE, **settings}
    whole = Run(by_checkpoints(**alone)).go(1)
    slim = without_unread_features(whole.config, whole.state)
    assert {name for name, value in slim.pool.features.items() if value.ndim > 1} == set()
    assert TRAINED_AT in slim.pool.features
    other = Run(by_checkpoints(**alone)).go(1)
    other.states[-1] = slim
    after = [run.go(3).state for run in (whole, other)]
    assert np.array_equal(after[0].coreset.indices, after[1].coreset.indices)
    assert np.array_equal(after[0].coreset.weights, after[1].coreset.weights)


def test_a_checkpoint_holds_what_rows_that_are_not_measured_again_keep() -> None:
    run = Run(config(refresh_every=1)).go(1)
    assert without_unread_features(run.config, run.state) is run.state


def test_a_checkpoint_holds_what_propagation_reads_again() -> None:
    run = Run(config(refresh_every=1, propagate="average")).go(1)
    assert without_unread_features(run.config, run.state) is run.state

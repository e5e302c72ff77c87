"""BRIEF and GTP as whole runs: config in, warm-up run, signals, weights, training from the base model out."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_configs import TRAINING, raw_config
from safetensors.torch import load_file
from tiny_run import records, write_jsonl

from coretune import run
from coretune.config import ConfigError, RunConfig, check_config
from coretune.coreset_section import spelled_out
from coretune.recording.run_files import OWN, POOL, SELECTION, SIGNALS, WARMUP_RUN
from coretune.training.refusals import can_weigh

pytestmark = pytest.mark.skipif(not can_weigh(version("trl")), reason="TRL < 1.16 has no loss per token")

WARM = {"budget": "25%", "refresh": {"warmup": 0.25}}
BRIEF = {"method": "brief", **WARM, "signals": {"projection_dim": 32, "last_blocks": 2}}
GTP = {"method": {"gtp": {"checkpoints": 2}}, **WARM, "signals": {"projection_dim": 32}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_jsonl(folder / "pool.jsonl", records(48))
    write_jsonl(folder / "math.jsonl", records(6, seed=2))
    write_jsonl(folder / "code.jsonl", records(6, seed=3))
    return folder


def config(data: Path, out: Path, section: dict[str, Any], **top: Any) -> RunConfig:
    training = {**TRAINING, "max_steps": 4, "save_steps": 2}
    return check_config(
        raw_config(data, out, coreset=section, training=training, **{"eval_data": None, **top})
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A whole run of BRIEF."""
    return run.train(config(data, tmp_path_factory.mktemp("brief") / "run", BRIEF))


def test_brief_trains_weighted_from_the_base_model(done: Any) -> None:
    weights = done.coreset_state.coreset.weights
    assert len(weights) == 12
    assert weights.mean() == pytest.approx(1)
    assert weights.std() > 0
    assert done.coreset_config.weighted
    assert done.coreset_state.coreset.figures["alpha"] >= 0
    costs = done.ledger.by_phase()
    assert (costs["warm-up"].rows, costs["measurement"].rows, costs["training"].rows) == (12, 48, 16)
    state = np.load(Path(done.args.output_dir) / "checkpoint-2" / "coreset_state.npz")
    assert not [name for name in state.files if name.endswith("_gradient")]


def test_brief_selected_alone_is_the_same_and_is_written_with_its_weights(
    done: Any, data: Path, tmp_path: Path
) -> None:
    """The signals are not measured again: they are those of the run, by content."""
    shared = str(Path(done.args.output_dir) / SIGNALS)
    chosen = lines(run.select(config(data, tmp_path, BRIEF, signals_dir=shared)))
    coreset = done.coreset_state.coreset
    assert [line["coretune"]["id"] for line in chosen] == [done.pool_rows.ids[r] for r in coreset.indices]
    assert [line["coretune"]["weight"] for line in chosen] == coreset.weights.tolist()
    assert len(list(Path(shared).iterdir())) == 1
    assert not (tmp_path / SIGNALS).exists()


def test_brief_resumed_is_brief(done: Any, data: Path, tmp_path: Path) -> None:
    before = Path(done.args.output_dir)
    shutil.copytree(before / "checkpoint-2", tmp_path / "checkpoint-2")
    (tmp_path / OWN).mkdir()
    for name in (SELECTION, POOL):
        shutil.copy(before / name, tmp_path / name)
    run.train(config(data, tmp_path, BRIEF, resume_from_checkpoint=True))
    assert not (tmp_path / WARMUP_RUN).exists()
    ends = [load_file(folder / "adapter_model.safetensors") for folder in (before, tmp_path)]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_gtp_for_two_targets_and_dynamic(data: Path, tmp_path: Path) -> None:
    targets = {str(data / "math.jsonl"): 0.75, str(data / "code.jsonl"): 0.25}
    section = {**GTP, "refresh_every": 2}
    made = run.train(config(data, tmp_path, section, target_data=targets))
    state = made.coreset_state
    assert made.coreset_state.selections == 2
    assert state.pool.references["trajectory"].shape == (2, 32)  # live: one snapshot
    np.testing.assert_allclose(state.pool.references["share"], [0.75, 0.25])
    assert state.pool.feature("trajectory").shape == (48, 32)
    assert [entry.rows_measured for entry in made.ledger.rounds] == [48, 48]
    everyone = np.arange(48)
    # The first measurement also has how near each row is to the examples.
    expected = made.measurement.first.flops(everyone) + made.cost.measurement(everyone)
    assert made.measurement.first.flops(everyone) > made.cost.measurement(everyone, 2)
    assert made.ledger.by_phase()["measurement"].flops == pytest.approx(expected)
    resolved = spelled_out(run.build_coreset(section, 0), section)
    assert (resolved["signals"]["preconditioner"], resolved["weighted"]) == ("linear", True)
    assert resolved["refresh"]["anchors"] == "all"


def test_the_shares_of_targets_sum_to_1(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the shares of target_data sum to 0\.5"):
        config(data, tmp_path, GTP, target_data={"a.jsonl": 0.5})


@pytest.mark.parametrize("method", ["brief", "gtp"])
def test_a_cascade_measures_gradients_at_the_checkpoints_of_few_rows(
    method: str, data: Path, tmp_path: Path
) -> None:
    section = {"brief": BRIEF, "gtp": GTP}[method]
    by = {"brief": "spread", "gtp": "target"}[method]
    narrow = {**section, "budget": 6, "filters": [{"narrow": {"times": 2, "by": by}}]}
    target = {"target_data": str(data / "math.jsonl")} if by == "target" else {}
    made = run.build_trainer(config(data, tmp_path, narrow, **target))
    chosen = made.select().coreset
    kept = np.flatnonzero(chosen.filtered == 0)
    assert len(kept) == 12
    assert set(chosen.indices) <= set(kept)
    cost, first = made.ledger.by_phase()["measurement"], made.measurement.first
    assert cost.rows == 48 + 12
    assert cost.flops == pytest.approx(first.flops(np.arange(48)) + first.rest.flops(kept))

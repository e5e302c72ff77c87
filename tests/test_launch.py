"""`coretune train --nproc`: really so many processes of one run, and their exit codes are the command's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny_run import model_folder, records, write_jsonl
from typer.testing import CliRunner

from coretune.cli import app
from coretune.commands import launch as launching
from coretune.commands.launch import launch
from coretune.ledger import Ledger
from coretune.recording.run_files import LEDGER
from coretune.yaml_text import ConfigError

pytestmark = pytest.mark.xdist_group("processes")
ROOT = Path(__file__).parents[1]


def config_file(folder: Path) -> Path:
    raw = {
        "model_name_or_path": str(model_folder()),
        "train_data": str(write_jsonl(folder / "pool.jsonl", records(40))),
        "output_dir": str(folder / "run"),
        "coreset": {"method": "random", "budget": 8, "refresh_every": 2},
        "training": {"max_steps": 2, "per_device_train_batch_size": 2, "save_strategy": "no"},
        "report": "never",
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def test_two_processes_on_cpus_are_two_ranks_of_one_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "coretune", "train", config_file(tmp_path), "--nproc", "2", "--json"]
    known = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    told = subprocess.run(list(map(str, command)), env=known, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr[-3000:]
    assert json.loads(told.stdout)["output_dir"] == str(tmp_path / "run")  # one document, of one process
    costs = Ledger.from_dict(json.loads((tmp_path / "run" / LEDGER).read_text())).by_phase()
    assert costs["training"].rows == 2 * 2 * 2  # steps × rows × processes


SCRIPT = """
import os, signal, sys, time
rank = int(os.environ["RANK"])
assert os.environ["WORLD_SIZE"] == "2"
if rank == 1:
    {fault}
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("fault", "code"),
    [("sys.exit(3)", 3), ("os.kill(os.getpid(), signal.SIGKILL)", 137), ("raise ValueError('x')", 1)],
)
def test_the_exit_code_is_that_of_the_process_that_failed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], fault: str, code: int
) -> None:
    """The others are stopped: they would sleep for a minute."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(fault=fault))
    arguments = launching._arguments(2, None, {})
    assert launching._run([*arguments, str(script)]) == code
    told = capfd.readouterr().err
    assert ("process 1 was ended by signal 9" in told) == (code == 137)
    assert "ChildFailedError" not in told


@pytest.mark.parametrize(
    ("kind", "processes", "several"),
    [("MULTI_CPU", None, True), ("NO", 2, True), ("NO", None, False), ("FSDP", 2, False)],
)
def test_a_configuration_for_cpus_goes_to_the_launcher_of_several(
    kind: str, processes: int | None, several: bool
) -> None:
    found = launching._arguments(processes, Path("a.yaml"), {"distributed_type": kind})
    assert ("--multi_gpu" in found) == several
    assert found[:2] == ["--config_file", "a.yaml"]
    assert ("--num_processes" in found) == (processes is not None)


def test_the_command_passes_on_what_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    monkeypatch.setattr(launching, "_run", lambda arguments: given.append(arguments) or 5)
    path = str(config_file(tmp_path))
    command = ["train", path, "seed=3", "--nproc", "2", "--accelerate_config", "zero2", "--quiet"]
    assert CliRunner().invoke(app, command).exit_code == 5
    (arguments,) = given
    at = arguments.index("--module")
    assert arguments[at:] == ["--module", "coretune", "train", path, "seed=3", "--quiet"]
    assert Path(arguments[arguments.index("--config_file") + 1]).name == "zero2.yaml"


def test_mistakes_are_named_before_a_process_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"there is no such file, and TRL has .*multi_gpu.* alone"):
        launch(["train"], 2, "nowhere.yaml", False)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 1)
    with pytest.raises(ConfigError, match="--nproc is 2, and the machine has 1 devices"):
        launch(["train"], 2, None, False)
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ConfigError, match=r"a launcher .* has started this process"):
        launch(["train"], 2, None, False)

"""The examples: accelerate takes every configuration, two processes start, the script is as its page says."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from coretune.ledger import Ledger
from coretune.recording.run_files import LEDGER, REPORT
from coretune.training.checkpoints import RECORD

EXAMPLES = Path(__file__).parents[1] / "examples"
CONFIGS = {
    "ddp": "MULTI_GPU",
    "ddp_cpu": "MULTI_GPU",  # accelerate's MULTI_CPU starts one process
    "fsdp": "FSDP",
    "zero2": "DEEPSPEED",
    "zero3": "DEEPSPEED",
}


@pytest.mark.parametrize("name", CONFIGS)
def test_accelerate_takes_the_configuration(name: str) -> None:
    path = EXAMPLES / "accelerate" / f"{name}.yaml"
    config = load_config_from_file(str(path))  # unknown keys are an error
    assert str(config.distributed_type).endswith(CONFIGS[name])
    assert config.num_processes == 2
    if name.startswith("zero"):
        assert config.deepspeed_config["zero_stage"] == int(name[-1])
    if name == "fsdp":
        assert config.fsdp_config["fsdp_version"] == 2


def test_every_configuration_is_named_here_and_in_the_documentation() -> None:
    assert {path.stem for path in (EXAMPLES / "accelerate").glob("*.yaml")} == set(CONFIGS)
    page = (EXAMPLES.parent / "docs" / "processes.md").read_text(encoding="utf-8")
    for name in CONFIGS:
        assert f"accelerate/{name}.yaml" in page


@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize(
    ("config", "around"), [("ddp_cpu", ()), ("fsdp", (EXAMPLES.parent / "bench" / "on_cpus.py",))]
)
def test_two_processes_of_the_script_on_cpus_make_one_run(
    tmp_path: Path, config: str, around: tuple[Path, ...]
) -> None:
    """As the page says: accelerate's launcher, which is torchrun's, the configuration and the script.

    fsdp.yaml asks for bfloat16: steps train in it although weights are frozen while the pool is measured.
    """
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", EXAMPLES / "accelerate" / f"{config}.yaml", "--main_process_port", "0"]
    command += [*around, EXAMPLES / "train.py", "--max-steps", "3", "--output-dir", tmp_path / "run"]
    known = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent)}
    told = subprocess.run(list(map(str, command)), env=known, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr[-3000:]
    note = json.loads((tmp_path / "run" / "checkpoint-3" / RECORD).read_text())
    assert note["batches"] == [8, 1, 2]
    assert {f"rng_state_{rank}.pth" for rank in range(2)} <= set(note["files"])
    ledger = Ledger.from_dict(json.loads((tmp_path / "run" / LEDGER).read_text()))
    costs = ledger.by_phase()
    assert costs["warm-up"].rows + costs["training"].rows == 3 * 16


def test_the_script_is_a_stock_script_with_one_argument_more() -> None:
    tree = ast.parse((EXAMPLES / "train.py").read_text(encoding="utf-8"))
    call = next(
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "CoresetSFTTrainer"
    )
    assert {keyword.arg for keyword in call.keywords} == {"model", "args", "train_dataset", "coreset"}


@pytest.mark.filterwarnings("ignore")
def test_the_notebook_runs_from_top_to_bottom(capsys: pytest.CaptureFixture[str]) -> None:
    """Its cells, in one namespace, as a kernel runs them; it is kept without outputs."""
    found = json.loads((EXAMPLES / "coreset.ipynb").read_text(encoding="utf-8"))
    assert found["nbformat"] == 4
    cells = [cell for cell in found["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    names: dict[str, object] = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    said = capsys.readouterr().out
    assert "20 of 100 rows, 20 different prompts" in said
    assert "training" in said
    assert (Path(str(names["output_dir"])) / REPORT).is_file()

"""A small real run in processes of its own, and what it is compared by: rows, losses, weights, selections.

The demo's model on a generated pool, with refreshes, a warm-up and a checkpoint every other step; see
`bench/kill.py` and `bench/parallel.py`.
"""

from __future__ import annotations

import json
import os
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from ways import DDP, arguments, as_devices, as_process, whole_weights

from coretune import run
from coretune.config import check_config
from coretune.playground import BASE_MODEL, make_pool
from coretune.recording.run_files import SELECTION
from coretune.rounds.sampler import EXAMPLE_ID
from coretune.training.checkpoints import newest_whole
from coretune.training.train import CoresetSFTTrainer

PATIENCE = 60  # seconds within which a process whose neighbour is gone has to stop
WEIGHTS, STEPS = "weights.safetensors", "steps.json"  # of the finished run, in its folder


@dataclass(frozen=True)
class Job:
    """One run: its data are in `home`, `processes` of them train it, its model shared in this `way`.

    adapter  LoRA; else all weights
    dropout  of LoRA, drawn by each process: two processes are not one then
    seed     of the pool
    """

    home: Path
    rows: int = 96
    steps: int = 12
    processes: int = 1
    way: str = DDP
    method: str = "grace"
    adapter: bool = True
    dropout: float = 0.1
    seed: int = 0

    def prepare(self) -> None:
        make_pool(self.seed, rows=self.rows, held_out=1).write(self.home / "data")

    def config(self, folder: Path, resume: bool) -> Any:
        return check_config(
            {
                "model_name_or_path": str(BASE_MODEL),
                "train_data": str(self.home / "data" / "pool.jsonl"),
                "output_dir": str(folder),
                "resume_from_checkpoint": resume,
                "coreset": self._coreset,
                "training": self._training,
                **({"peft": self._peft} if self.adapter else {}),
            }
        )

    @property
    def _peft(self) -> dict[str, Any]:
        return {"r": 4, "lora_dropout": self.dropout, "target_modules": ["q_proj", "v_proj"]}

    @property
    def _coreset(self) -> dict[str, Any]:
        drawn = {"anchors": "priority", "propagate": "average", "anchor_share": 0.3, "k": 5}
        refresh = {"warmup": 0.2, **drawn}
        return {
            "method": self.method,
            "budget": "25%",
            "refresh_every": 3,
            "weighted": True,
            "refresh": refresh,
        }

    @property
    def _training(self) -> dict[str, Any]:
        return {
            "max_steps": self.steps,
            "per_device_train_batch_size": 8 // self.processes,
            "learning_rate": 1e-3,
            "bf16": False,
            "gradient_checkpointing": False,
            "save_strategy": "steps",
            "save_steps": 2,
            "save_total_limit": 2,
            "logging_steps": 1,
            "report_to": "none",
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "ddp_timeout": PATIENCE,
            **arguments(self.way),
        }

    def train(self, folder: Path, rank: int, port: int) -> None:
        """One process of the run, from the newest whole checkpoint where there is one."""
        if self.processes > 1:
            as_process(rank, self.processes, port)
            as_devices(self.way)
        torch.set_num_threads(1)
        spoken = (folder / f"spoken-{rank}.txt").open("a", encoding="utf-8")
        trace = os.open(folder / f"trace-{rank}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        _trace_steps(trace, rank)
        resume = newest_whole(folder / "run")[0] is not None
        with redirect_stdout(spoken), redirect_stderr(spoken):
            run.quiet()
            trainer = run.build_trainer(self.config(folder / "run", resume))
            trainer.train(resume)
            trainer.save_model()
            weights = whole_weights(trainer.model)
        if rank == 0:
            save_file(weights, folder / WEIGHTS)
            told = [line for line in trainer.state.log_history if "grad_norm" in line]
            (folder / STEPS).write_text(json.dumps(told), encoding="utf-8")


def _trace_steps(file: int, rank: int) -> None:
    """A line a micro-batch, written at once: step, process, the ids of its examples."""
    stock = CoresetSFTTrainer.training_step

    def traced(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        ids = [self.pool_rows.ids[row] for row in inputs[EXAMPLE_ID].tolist()]
        os.write(file, (json.dumps([self.state.global_step, rank, ids]) + "\n").encode())
        return stock(self, model, inputs, *args, **kwargs)

    CoresetSFTTrainer.training_step = traced  # type: ignore[method-assign]


@dataclass(frozen=True)
class Outcome:
    """What a finished run is compared by.

    steps           (step, process) -> ids of its examples
    contradictions  steps that an attempt trained on other examples than an earlier one
    losses, norms   of every step: the loss, the gradient's norm
    """

    steps: dict[tuple[int, int], list[str]]
    weights: dict[str, torch.Tensor]
    selections: Any
    losses: list[float]
    norms: list[float]
    contradictions: int = 0

    @classmethod
    def of(cls, folder: Path, processes: int) -> Outcome:
        steps: dict[tuple[int, int], list[str]] = {}
        contradictions = 0
        for rank in range(processes):
            for line in (folder / f"trace-{rank}.jsonl").read_text(encoding="utf-8").splitlines():
                step, process, ids = json.loads(line)
                contradictions += steps.setdefault((step, process), ids) != ids
        told = json.loads((folder / STEPS).read_text(encoding="utf-8"))
        losses, norms = ([line[name] for line in told] for name in ("loss", "grad_norm"))
        weights, chosen = load_file(folder / WEIGHTS), pq.read_table(folder / "run" / SELECTION)
        return cls(steps, weights, chosen, losses, norms, contradictions)

    def rows(self) -> list[list[str]]:
        """The examples of every step, of all processes, by name."""
        steps: dict[int, list[str]] = {}
        for (step, _), ids in self.steps.items():
            steps.setdefault(step, []).extend(ids)
        return [sorted(steps[step]) for step in sorted(steps)]

    def differs(self, other: Outcome) -> list[str]:
        """What is not the very same."""
        same_weights = self.weights.keys() == other.weights.keys() and all(
            torch.equal(value, other.weights[name]) for name, value in self.weights.items()
        )
        faults = {
            "contradicting steps": self.contradictions > 0,
            "examples": self.steps != other.steps,
            "losses": self.losses != other.losses,
            "weights": not same_weights,
            "selection.parquet": not same_table(self.selections, other.selections),
        }
        return [name for name, fault in faults.items() if fault]


def same_table(ours: pa.Table, theirs: pa.Table) -> bool:
    """Whether all values are equal, NaN to NaN too, which Arrow's own `equals` says of no two."""
    return ours.schema == theirs.schema and all(
        repr(ours[name].to_pylist()) == repr(theirs[name].to_pylist()) for name in ours.column_names
    )

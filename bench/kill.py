"""Is a run that was killed and gone on with the very run it would have been?

    python bench/kill.py                        100 kills
    python bench/kill.py --processes 2          of one of two processes; the other has to stop by itself
    python bench/kill.py --quick --check        6 kills, under a minute; exit 1 names each target missed

A real run (the demo's model with LoRA and dropout on a generated pool, GRACE with weights, refreshes and a
warm-up, a checkpoint every other step) in processes that are killed (SIGKILL): half of the kills at any
moment, the others just after a phase drawn by lot has begun (measurement, graph, selection, warm-up, writing
a checkpoint), so that short phases are hit too. What is left goes on with resume_from_checkpoint, until the
run is through. It has diverged when anything differs from the run nobody killed: at any step the examples of
any process, in any attempt; any weight; any line of selection.parquet.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import platform
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from command import parser_of
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from coretune import run
from coretune.config import check_config
from coretune.ledger import Ledger
from coretune.playground import BASE_MODEL, make_pool
from coretune.recording.run_files import SELECTION
from coretune.rounds.sampler import EXAMPLE_ID
from coretune.training.checkpoints import newest_whole
from coretune.training.train import CoresetSFTTrainer

FORK = multiprocessing.get_context("fork")  # the libraries take longer to load than the run takes
PHASES = ("warm-up", "measurement", "graph", "selection", "checkpoint")
ANY = "at any moment"
MOST_KILLS = 3  # of one run
LONGEST = 1800  # seconds that the run nobody kills may take
PATIENCE = 60  # seconds within which a process whose neighbour is gone has to stop


@dataclass(frozen=True)
class Job:
    """One run: its data are in `home`, `processes` of them train it."""

    home: Path
    rows: int = 96
    steps: int = 12
    processes: int = 1

    def prepare(self) -> None:
        make_pool(0, rows=self.rows, held_out=1).write(self.home / "data")

    def config(self, folder: Path, resume: bool) -> Any:
        return check_config(
            {
                "model_name_or_path": str(BASE_MODEL),
                "train_data": str(self.home / "data" / "pool.jsonl"),
                "output_dir": str(folder),
                "resume_from_checkpoint": resume,
                "coreset": {
                    "method": "grace",
                    "budget": "25%",
                    "refresh_every": 3,
                    "weighted": True,
                    "refresh": {
                        "warmup": 0.2,
                        "anchors": "priority",
                        "propagate": "average",
                        "anchor_share": 0.3,
                        "k": 5,
                    },
                },
                "peft": {"r": 4, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"]},
                "training": {
                    "max_steps": self.steps,
                    "per_device_train_batch_size": 8 // self.processes,
                    "learning_rate": 1e-3,
                    "bf16": False,
                    "gradient_checkpointing": False,
                    "save_strategy": "steps",
                    "save_steps": 2,
                    "save_total_limit": 2,
                    "report_to": "none",
                    "disable_tqdm": True,
                    "use_cpu": True,
                    "dataloader_pin_memory": False,
                    "ddp_timeout": PATIENCE,
                },
            }
        )


class Watch:
    """How often each phase began, in memory that the killed process shares. No lock, which it would hold."""

    def __init__(self) -> None:
        self.begun = RawArray(ctypes.c_long, len(PHASES))

    def count(self, phase: str) -> int:
        return int(self.begun[PHASES.index(phase)])

    @contextmanager
    def on(self, phase: str) -> Iterator[None]:
        if phase in PHASES:
            self.begun[PHASES.index(phase)] += 1
        yield


def worker(job: Job, folder: Path, rank: int, port: int, watch: Watch) -> None:
    """One process of the run, from the newest whole checkpoint where there is one."""
    if job.processes > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(job.processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    torch.set_num_threads(1)
    spoken = (folder / f"spoken-{rank}.txt").open("a", encoding="utf-8")
    trace = os.open(folder / f"trace-{rank}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    _watch_phases(watch)
    _trace_steps(trace, rank)
    resume = newest_whole(folder / "run")[0] is not None
    with redirect_stdout(spoken), redirect_stderr(spoken):
        run.quiet()
        trainer = run.build_trainer(job.config(folder / "run", resume))
        trainer.train(resume)
        trainer.save_model()


def _watch_phases(watch: Watch) -> None:
    phase, warm_up, save = Ledger.phase, CoresetSFTTrainer.begin_step, CoresetSFTTrainer._save_checkpoint

    @contextmanager
    def watched_phase(self: Any, name: str, *args: Any, **kwargs: Any) -> Iterator[Any]:
        with watch.on(name), phase(self, name, *args, **kwargs) as visit:
            yield visit

    def watched_step(self: Any) -> None:
        if not self.coreset_state.selections:
            with watch.on("warm-up"):
                pass
        warm_up(self)

    def watched_save(self: Any, *args: Any) -> None:
        with watch.on("checkpoint"):
            save(self, *args)

    for owner, name, ours in (
        (Ledger, "phase", watched_phase),
        (CoresetSFTTrainer, "begin_step", watched_step),
        (CoresetSFTTrainer, "_save_checkpoint", watched_save),
    ):
        setattr(owner, name, ours)


def _trace_steps(file: int, rank: int) -> None:
    """A line a micro-batch, written at once: step, process, the ids of its examples."""
    stock = CoresetSFTTrainer.training_step

    def traced(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        ids = [self.pool_rows.ids[row] for row in inputs[EXAMPLE_ID].tolist()]
        os.write(file, (json.dumps([self.state.global_step, rank, ids]) + "\n").encode())
        return stock(self, model, inputs, *args, **kwargs)

    CoresetSFTTrainer.training_step = traced  # type: ignore[method-assign]


@dataclass
class Attempt:
    """The processes of one start of a job."""

    job: Job
    folder: Path
    watch: Watch = field(default_factory=Watch)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if newest_whole(self.folder / "run")[0] is None:
            shutil.rmtree(self.folder / "run", ignore_errors=True)  # nothing to go on from: anew
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.workers = [
            FORK.Process(target=worker, args=(self.job, self.folder, rank, port, self.watch))
            for rank in range(self.job.processes)
        ]
        for process in self.workers:
            process.start()

    def alive(self) -> bool:
        return all(process.exitcode is None for process in self.workers)

    def kill_after(self, phase: str, count: int, seconds: float, rank: int) -> bool:
        """Kill process `rank` seconds after the count-th beginning of the phase; False: it was through."""
        while self.alive() and phase != ANY and self.watch.count(phase) < count:
            time.sleep(0.0005)
        time.sleep(seconds)
        self.workers[rank].kill()
        self.workers[rank].join()
        return self.workers[rank].exitcode == -signal.SIGKILL

    def end(self, limit: float) -> tuple[list[int | None], int]:
        """Exit codes once all have stopped, and how many had to be stopped after `limit` seconds."""
        until = time.monotonic() + limit
        hung = 0
        for process in self.workers:
            process.join(max(0.0, until - time.monotonic()))
            if process.exitcode is None:
                hung += 1
                process.kill()
                process.join()
        return [process.exitcode for process in self.workers], hung


@dataclass(frozen=True)
class Outcome:
    """What a finished run is compared by."""

    steps: dict[tuple[int, int], list[str]]  # (step, process) -> ids of its examples
    weights: dict[str, torch.Tensor]
    selections: Any
    contradictions: int = 0  # steps that an attempt trained on other examples than an earlier one

    @classmethod
    def of(cls, folder: Path, processes: int) -> Outcome:
        steps: dict[tuple[int, int], list[str]] = {}
        contradictions = 0
        for rank in range(processes):
            for line in (folder / f"trace-{rank}.jsonl").read_text(encoding="utf-8").splitlines():
                step, process, ids = json.loads(line)
                contradictions += steps.setdefault((step, process), ids) != ids
        weights = load_file(folder / "run" / "adapter_model.safetensors")
        return cls(steps, weights, pq.read_table(folder / "run" / SELECTION), contradictions)

    def differs(self, other: Outcome) -> list[str]:
        same_weights = self.weights.keys() == other.weights.keys() and all(
            torch.equal(value, other.weights[name]) for name, value in self.weights.items()
        )
        faults = {
            "contradicting steps": self.contradictions > 0,
            "examples": self.steps != other.steps,
            "weights": not same_weights,
            "selection.parquet": not same_table(self.selections, other.selections),
        }
        return [name for name, fault in faults.items() if fault]


def same_table(ours: pa.Table, theirs: pa.Table) -> bool:
    """Whether all values are equal, NaN to NaN too, which Arrow's own `equals` says of no two."""
    return ours.schema == theirs.schema and all(
        repr(ours[name].to_pylist()) == repr(theirs[name].to_pylist()) for name in ours.column_names
    )


def kill_runs(job: Job, kills: int, seed: int, console: Console | None = None) -> tuple[Counter[str], float]:
    """Counts of what happened, and the seconds of the run nobody killed."""
    draw, counts = random.Random(seed), Counter[str]()
    job.prepare()
    began = time.perf_counter()
    whole = Attempt(job, job.home / "whole")
    codes, _ = whole.end(LONGEST)
    seconds = time.perf_counter() - began
    if any(codes):
        spoken = (job.home / "whole" / "spoken-0.txt").read_text(encoding="utf-8")
        raise RuntimeError(f"the run nobody kills ended with {codes}: {spoken[-3000:]}")
    limit = 2 * PATIENCE + 10 * seconds  # on a busy machine a run may take longer than the first did
    expected = Outcome.of(job.home / "whole", job.processes)
    times = {phase: whole.watch.count(phase) for phase in PHASES}
    while counts["kills"] < kills:
        folder = job.home / f"killed-{counts['runs']}"
        for _ in range(draw.randint(1, MOST_KILLS)):
            if counts["kills"] == kills:
                break
            phase = ANY if draw.random() < 0.5 else draw.choice([p for p in PHASES if times[p]])
            count = 1 if phase == ANY else draw.randint(1, times[phase])
            delay = draw.uniform(0, seconds if phase == ANY else 0.05)
            attempt = Attempt(job, folder)
            if attempt.kill_after(phase, count, delay, draw.randrange(job.processes)):
                counts["kills"] += 1
                counts[f"kills: {phase}"] += 1
            counts["hung"] += attempt.end(limit)[1]
            counts["left half-written"] += len(newest_whole(folder / "run")[1])
        codes, hung = Attempt(job, folder).end(limit)
        counts["runs"] += 1
        counts["hung"] += hung
        counts["exceptions"] += any(codes)
        faults = ["no end"] if any(codes) else Outcome.of(folder, job.processes).differs(expected)
        counts["divergent runs"] += bool(faults)
        if faults and console is not None:
            console.print(f"run {folder.name}: {', '.join(faults)}")
        if not faults:
            shutil.rmtree(folder)
    return counts, seconds


def report(job: Job, counts: Counter[str], seconds: float, console: Console) -> list[str]:
    """Prints the table; returns a line for each target missed."""
    title = f"{job.steps} steps, {job.processes} process(es); a run nobody kills takes {seconds:.1f} s"
    table = Table(title=title)
    table.add_column("what")
    table.add_column("count", justify="right")
    table.add_column("target", justify="right")
    for name in ("runs", "kills", *(f"kills: {phase}" for phase in (ANY, *PHASES)), "left half-written"):
        table.add_row(name, str(counts[name]), "")
    targets = ("divergent runs", "exceptions", "hung")
    for name in targets:
        table.add_row(name, str(counts[name]), "0")
    console.print(table)
    return [f"{name}: {counts[name]}, target 0" for name in targets if counts[name]]


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--folder", help="where the runs go for the while; default: the temporary directory")
    parser.add_argument("--keep", action="store_true", help="leave what is in the folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="6 kills")
    parser.add_argument("--check", action="store_true", help="exit 1 and name each target missed")
    options = parser.parse_args()
    console = Console()
    console.print(f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}")
    home = Path(tempfile.mkdtemp(prefix="coretune-kill-", dir=options.folder))
    try:
        job = Job(home, steps=options.steps, processes=options.processes)
        kills = 6 if options.quick else options.kills
        counts, seconds = kill_runs(job, kills, options.seed, console)
    finally:
        if not options.keep:
            shutil.rmtree(home, ignore_errors=True)
    missed = report(job, counts, seconds, console)
    for line in missed:
        console.print(f"missed  {line}")
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Is a run that was killed and gone on with the very run it would have been?

    python bench/kill.py                        100 kills
    python bench/kill.py --processes 2          of one of two processes, the other has to stop; or of both
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any

import torch
from command import parser_of, tell_missed
from job import PATIENCE, Job, Outcome
from rich.console import Console
from rich.table import Table
from ways import DDP, WAYS

from coretune.ledger import Ledger
from coretune.training.checkpoints import newest_whole
from coretune.training.train import CoresetSFTTrainer

FORK = multiprocessing.get_context("fork")  # the libraries take longer to load than the run takes
PHASES = ("warm-up", "measurement", "graph", "selection", "checkpoint")
ANY = "at any moment"
MOST_KILLS = 3  # of one run
LONGEST = 1800  # seconds that the run nobody kills may take


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
    """One process of the run, watched."""
    _watch_phases(watch)
    job.train(folder, rank, port)


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

    def kill_after(self, phase: str, count: int, seconds: float, ranks: Sequence[int]) -> bool:
        """Kill these processes seconds after the count-th beginning of the phase; False: all were through."""
        while self.alive() and phase != ANY and self.watch.count(phase) < count:
            time.sleep(0.0005)
        time.sleep(seconds)
        for rank in ranks:
            self.workers[rank].kill()
        for rank in ranks:
            self.workers[rank].join()
        return any(self.workers[rank].exitcode == -signal.SIGKILL for rank in ranks)

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
    every = list(range(job.processes))
    groups = [[rank] for rank in every] + ([every] if job.processes > 1 else [])
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
            ranks = draw.choice(groups)
            if attempt.kill_after(phase, count, delay, ranks):
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
    shared = f" ({job.way})" if job.processes > 1 else ""
    title = (
        f"{job.steps} steps, {job.processes} process(es){shared}; a run nobody kills takes {seconds:.1f} s"
    )
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
    parser.add_argument("--way", choices=WAYS, default=DDP, help="in which several processes share the model")
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
        job = Job(home, steps=options.steps, processes=options.processes, way=options.way)
        kills = 6 if options.quick else options.kills
        counts, seconds = kill_runs(job, kills, options.seed, console)
    finally:
        if not options.keep:
            shutil.rmtree(home, ignore_errors=True)
    missed = report(job, counts, seconds, console)
    return tell_missed(missed, options.check)


if __name__ == "__main__":
    sys.exit(main())

"""Is a run of two processes the run of one, whichever way they share the model?

    python bench/parallel.py                        every way that is installed, LoRA and all weights
    python bench/parallel.py --deepspeed --check    with DeepSpeed in a scratch environment (needs the index)
    python bench/parallel.py --quick --check        FSDP 2 beside DDP, one run each, 2 kills; two minutes

For each way the same run as by one process: the examples of every step, the largest difference of a loss, of
a gradient's norm (relative) and of a weight. Then runs that are killed, one process of the two or both, and
gone on with (see `bench/kill.py`), and the shipped configurations of accelerate, started by its launcher with
examples/train.py. On CPUs, over gloo: accelerate takes them for devices (`ways.py`).
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import torch
from command import parser_of, tell_missed
from job import Job, Outcome
from kill import Attempt, kill_runs
from rich.console import Console
from rich.table import Table
from scratch import ROOT, environment
from ways import DDP, FSDP, WAYS, ZERO

from coretune.training.checkpoints import RECORD

LIMIT = 600  # seconds a run may take, DeepSpeed's first with the building of its communication
TARGET = {"losses": 1e-4, "norms": 1e-3, "weights": 1e-4}
PLAN = {"adapter": ("LoRA", "all weights"), "method": ("grace", "craig")}
CONFIGURATIONS = {"ddp": DDP, "ddp_cpu": DDP, "fsdp": "FSDP 2, FULL", "zero2": "ZeRO-2", "zero3": "ZeRO-3"}


@dataclass(frozen=True)
class Gap:
    """The largest differences between a run and that of one process."""

    rows: bool
    losses: float
    norms: float
    weights: float

    @classmethod
    def between(cls, here: Outcome, one: Outcome) -> Gap:
        weights = max(float((here.weights[name] - kept).abs().max()) for name, kept in one.weights.items())
        pairs = [list(zip(getattr(here, n), getattr(one, n), strict=True)) for n in ("losses", "norms")]
        losses, norms = (max(abs(a - b) / abs(b) for a, b in told) for told in pairs)
        return cls(here.rows() == one.rows(), losses, norms, weights)

    def misses(self) -> list[str]:
        found = [] if self.rows else ["other rows"]
        return found + [
            f"{n} differ by {getattr(self, n):.1e}" for n, most in TARGET.items() if getattr(self, n) > most
        ]


def outcome(job: Job, folder: Path) -> Outcome | str:
    """What the finished run is compared by, or how it ended."""
    codes, hung = Attempt(job, folder).end(LIMIT)
    if any(codes) or hung:
        spoken = (folder / "spoken-0.txt").read_text(encoding="utf-8").strip()
        return f"ended with {codes}: {spoken[-300:]}"
    return Outcome.of(folder, job.processes)


def compared(home: Path, ways: Sequence[str], plan: Sequence[tuple[str, str]], console: Console) -> list[str]:
    """Prints the table; the misses."""
    table, misses = Table(title="two processes beside one"), []
    for column in ("trained", "method", "way", "rows", "losses", "gradient norms", "weights"):
        table.add_column(column)
    for trained, method in plan:
        where = home / f"{trained}-{method}".replace(" ", "-")
        job = Job(where, steps=8, method=method, adapter=trained == "LoRA", dropout=0.0, seed=1)
        job.prepare()
        one = outcome(job, where / "one")
        for way in ways:
            both = replace(job, processes=2, way=way)
            here = outcome(both, where / way.replace(" ", ""))
            if isinstance(one, str) or isinstance(here, str):
                misses.append(f"{trained}, {method}, {way}: {one if isinstance(one, str) else here}")
                continue
            gap = Gap.between(here, one)
            misses += [f"{trained}, {method}, {way}: {miss}" for miss in gap.misses()]
            figures = (f"{value:.1e}" for value in (gap.losses, gap.norms, gap.weights))
            table.add_row(trained, method, way, "the same" if gap.rows else "others", *figures)
    console.print(table)
    return misses


def killed(home: Path, ways: Sequence[str], kills: int, console: Console) -> list[str]:
    """As above, of runs that are killed."""
    table, misses = Table(title="killed and gone on with"), []
    for column in ("trained", "way", "kills", "runs", "divergent", "exceptions", "hung"):
        table.add_column(column)
    for number, way in enumerate(ways):
        adapter = number % 2 == 0
        where = home / f"kill-{number}"
        where.mkdir()
        job = Job(where, steps=8, processes=2, way=way, adapter=adapter)
        counts, _ = kill_runs(job, kills, 0, console)
        faults = [counts[name] for name in ("divergent runs", "exceptions", "hung")]
        trained = "LoRA" if adapter else "all weights"
        table.add_row(trained, way, *map(str, (counts["kills"], counts["runs"], *faults)))
        if any(faults):
            misses.append(
                f"{way}, {trained}: {faults[0]} divergent, {faults[1]} exceptions, {faults[2]} hung"
            )
    console.print(table)
    return misses


def launched(home: Path, ways: Sequence[str], console: Console) -> list[str]:
    """The shipped configurations, each started by accelerate's own launcher."""
    misses = []
    for name in (name for name, way in CONFIGURATIONS.items() if way in ways):
        run = home / f"launched-{name}"
        command = [sys.executable, "-m", "accelerate.commands.launch"]
        command += ["--config_file", ROOT / "examples" / "accelerate" / f"{name}.yaml"]
        if (
            CONFIGURATIONS[name] in ZERO
        ):  # transformers takes bfloat16 for a setting of GPUs; DeepSpeed asks for one
            command += ["--mixed_precision", "no"]
        command += ["--main_process_port", "0", ROOT / "bench" / "on_cpus.py", ROOT / "examples" / "train.py"]
        command += ["--max-steps", "3", "--output-dir", run]
        known = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        told = subprocess.run(list(map(str, command)), env=known, capture_output=True, text=True)
        whole = told.returncode == 0 and (run / "checkpoint-3" / RECORD).is_file()
        console.print(f"{name}.yaml with examples/train.py: {'a whole run' if whole else 'failed'}")
        if not whole:
            misses.append(f"{name}.yaml: {told.stderr.strip()[-300:]}")
    return misses


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--ways", nargs="+", choices=WAYS, help="default: those that are installed")
    parser.add_argument("--kills", type=int, default=20, help="in each way; 0: none")
    parser.add_argument("--deepspeed", action="store_true", help="install DeepSpeed beside this environment")
    parser.add_argument("--quick", action="store_true", help="DDP and FSDP 2, one run each, 2 kills")
    parser.add_argument("--check", action="store_true", help="exit 1 and name each target missed")
    options, console = parser.parse_args(), Console(width=120)
    with tempfile.TemporaryDirectory(prefix="coretune-parallel-") as folder:
        home = Path(folder)
        if options.deepspeed and find_spec("deepspeed") is None:
            python = environment(home / "environment", "setuptools", "wheel", "deepspeed")
            return subprocess.run([python, *sys.argv]).returncode
        ways = options.ways or [w for w in WAYS if w not in ZERO or find_spec("deepspeed") is not None]
        plan = list(product(*PLAN.values()))
        if options.quick:
            ways, plan, options.kills = [DDP, *FSDP], [("all weights", "craig")], 2
        console.print(f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}")
        if left := [way for way in WAYS if way not in ways]:
            console.print(
                f"not run: {', '.join(left)}" + ("" if options.quick else " (DeepSpeed: --deepspeed)")
            )
        misses = compared(home, ways, plan, console)
        if options.kills:
            misses += killed(home, ways, options.kills, console)
        if not options.quick:
            misses += launched(home, ways, console)
    return tell_missed(misses, options.check)


if __name__ == "__main__":
    sys.exit(main())

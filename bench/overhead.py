"""What a step costs more than the stock SFTTrainer's on the same rows, outside refreshes.

    python bench/overhead.py                     the demo's model, 6 pairs of runs
    python bench/overhead.py --model PATH --pool pool.jsonl
    python bench/overhead.py --quick --check     2 pairs, under a minute; exit 1 names each target missed

Each pair: a run on a coreset that changes every 10 steps, and the stock trainer on the very rows it is
given, in their order; by turns either goes first. A step's time is from the end of the step before to its own
end, the loading of its batch and everything done between two rounds included; steps with a selection in
between are left out. The median over the steps of each run, the median over pairs of the ratio. Rounds are
one step long here, the most expensive case (each begins an epoch of the Trainer), by a warm-up of one step.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from command import parser_of, tell_missed
from rich.console import Console
from rich.table import Table
from transformers import TrainerCallback
from trl import SFTTrainer

from coretune import run
from coretune.config import check_config
from coretune.playground import BASE_MODEL, make_pool
from coretune.training.sections import training_arguments

TARGET = 1.03
EVERY = 10  # steps between selections
ROWS = 32  # a step


@dataclass
class Timer(TrainerCallback):
    """Seconds, and seconds of this process's own work, from step to step."""

    wall: list[float] = field(default_factory=list)
    work: list[float] = field(default_factory=list)
    last: tuple[float, float] | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = (time.perf_counter(), time.process_time())
        if self.last is not None and state.global_step % EVERY != 2:  # steps 2, 12 … have a selection before
            self.wall.append(now[0] - self.last[0])
            self.work.append(now[1] - self.last[1])
        self.last = now


def config(options: argparse.Namespace, folder: Path, pool: Path) -> Any:
    return check_config(
        {
            "model_name_or_path": str(options.model),
            "train_data": str(pool),
            "output_dir": str(folder),
            "coreset": {
                "method": options.method,
                "budget": "25%",
                "refresh_every": EVERY,
                "refresh": {"warmup": 1e-9},
            },
            "training": {
                "max_steps": options.steps,
                "per_device_train_batch_size": ROWS,
                "learning_rate": 1e-4,
                "bf16": False,
                "gradient_checkpointing": False,
                "save_strategy": "no",
                "report_to": "none",
                "disable_tqdm": True,
                "dataloader_pin_memory": False,
            },
        }
    )


def ours(options: argparse.Namespace, folder: Path, pool: Path) -> tuple[Timer, Any, list[int]]:
    """A run on a coreset: its times, its trainer, the rows it was given in their order."""
    made, timer = run.build_trainer(config(options, folder, pool)), Timer()
    made.add_callback(timer)
    rows: list[int] = []
    begin = made.begin_round

    def begun(step: int) -> Any:
        state = begin(step)
        rows.extend(made._order.rows.tolist())
        return state

    made.begin_round = begun  # type: ignore[method-assign]
    made.train()
    return timer, made, rows[: options.steps * ROWS]


def stock(options: argparse.Namespace, folder: Path, pool: Path, given: Any, rows: list[int]) -> Timer:
    """The stock trainer on these rows of the pool of `given`, in this order."""
    timer = Timer()
    args = training_arguments(config(options, folder, pool))
    args.train_sampling_strategy = "sequential"
    SFTTrainer(
        str(options.model),
        args,
        train_dataset=given.pool_rows.dataset.select(rows),
        processing_class=given.processing_class,
        callbacks=[timer],
    ).train()
    return timer


def measure(options: argparse.Namespace, home: Path, pool: Path) -> list[dict[str, float]]:
    """Of each pair: median seconds a step, ours and stock, by the clock and by this process's work."""
    pairs = []
    _, given, rows = ours(options, home / "rows", pool)  # the same seed: every run is given these rows
    for number in range(options.pairs):
        arms = {
            "ours": lambda folder: ours(options, folder, pool)[0],
            "stock": lambda folder: stock(options, folder, pool, given, rows),
        }
        order = list(arms) if number % 2 else list(reversed(arms))
        timers = {arm: arms[arm](home / f"{arm}-{number}") for arm in order}
        pairs.append(
            {arm: statistics.median(timer.wall) for arm, timer in timers.items()}
            | {f"{arm}, work": statistics.median(timer.work) for arm, timer in timers.items()}
        )
    return pairs


def report(pairs: list[dict[str, float]], console: Console) -> list[str]:
    """Prints the table; returns a line for each target missed."""
    table = Table(title="milliseconds a step, outside refreshes: median over steps, then over pairs")
    for name in ("by", "stock", "coreset", "ratio", "worst pair", "target"):
        table.add_column(name, justify="left" if name == "by" else "right")
    missed = []
    for by, suffix in (("the clock", ""), ("this process's work", ", work")):
        ratios = [pair[f"ours{suffix}"] / pair[f"stock{suffix}"] for pair in pairs]
        ratio = statistics.median(ratios)
        cells = [
            1e3 * statistics.median([pair[f"{arm}{suffix}"] for pair in pairs]) for arm in ("stock", "ours")
        ]
        shown = [f"{cells[0]:.2f}", f"{cells[1]:.2f}", f"{ratio:.3f}", f"{max(ratios):.3f}", f"≤ {TARGET}"]
        table.add_row(by, *shown)
        if ratio > TARGET:
            missed.append(f"ratio by {by}: {ratio:.3f}, target ≤ {TARGET}")
    console.print(table)
    return missed


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--model", default=BASE_MODEL)
    parser.add_argument("--pool", type=Path, help="default: a generated one")
    parser.add_argument("--method", default="loss", help="chooses between the steps that are timed")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--quick", action="store_true", help="2 pairs of 40 steps")
    parser.add_argument("--check", action="store_true", help="exit 1 and name each target missed")
    options = parser.parse_args()
    if options.quick:
        options.pairs, options.steps = 2, 40
    console = Console()
    console.print(f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}, 1 thread")
    torch.set_num_threads(1)
    run.quiet()
    with tempfile.TemporaryDirectory() as home:
        pool = options.pool
        if pool is None:
            make_pool(0, rows=1000, held_out=1).write(home)
            pool = Path(home) / "pool.jsonl"
        pairs = measure(options, Path(home), pool)
    return tell_missed(report(pairs, console), options.check)


if __name__ == "__main__":
    sys.exit(main())

"""The part of bench/cost.py about `coretune plan`: what it takes, beside one training step, and its error."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from cost_row import Asked, Figure, section
from cost_steps import ROWS
from plan import WITHIN, plan_and_run
from pools import read_rows, write_lines

SECONDS_GOAL, MEMORY_GOAL = 20.0, 1.2
STEPS, CHECKED, FEW = (
    60,
    8,
    64,
)  # of the run that is planned; of the one that is planned and made, and its rows


@dataclass(frozen=True)
class Spent:
    seconds: float  # of the processor
    peak: int  # bytes


def command(*words: str) -> Spent:
    """`python -m coretune …`, in a process of its own."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-m", "coretune", *words], **quiet) as process:
        assert process.stderr is not None
        told = process.stderr.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"coretune {words[0]} failed: {told.decode()[-500:]}")
    return Spent(used.ru_utime + used.ru_stime, 1024 * used.ru_maxrss)


def written(config: dict[str, Any], path: Path) -> str:
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return str(path)


def figures(asked: Asked) -> list[Figure]:
    from coretune.config import check_config

    pool, grace = asked.pool / "pool.jsonl", {"method": "grace", "budget": "10%"}
    long = section(asked, True, pool, asked.home / "planned", grace, max_steps=STEPS)
    long["eval_data"] = str(asked.pool / "eval.jsonl")
    planned = command("plan", written(long, asked.home / "long.yaml"))
    one = section(asked, True, pool, asked.home / "one", {"method": "random", "budget": "10%"}, max_steps=1)
    one["report"] = "never"
    step = command("train", written(one, asked.home / "one.yaml"))
    of = f"{planned.peak / 2**30:.2f} GiB, one step {step.peak / 2**30:.2f}"
    found = [
        Figure(
            "plan", planned.seconds, SECONDS_GOAL, "s", f"of {STEPS} steps of 16 rows, LoRA; imports included"
        ),
        Figure("plan's memory beside one training step", planned.peak / step.peak, MEMORY_GOAL, measured=of),
    ]
    few = write_lines(asked.home / "planned.jsonl", read_rows(pool)[:FEW])
    made = section(
        asked, True, few, asked.home / "made", grace | {"budget": "50%"}, rows=ROWS, max_steps=CHECKED
    )
    plan, was, _ = plan_and_run(check_config(made), time.process_time)
    said, took = plan["total"]["seconds"], was["total"]["seconds"]
    of = f"{said:.0f} s of a run of {took:.0f} s: {CHECKED} steps, {FEW} rows"
    return [*found, Figure("plan's error in seconds", abs(said / took - 1), WITHIN, "%", of)]

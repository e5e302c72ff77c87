"""The part of bench/cost.py about training: runs on a coreset beside the stock SFTTrainer on the same rows.

A run chooses a coreset of a small pool at its first step and another after every EVERY steps; then the stock
trainer takes the very rows it was given, in their order. A step's time is from the end of the step before to
its own end, the loading of its batch included; steps with a selection before them are left out.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from command import quiet
from cost_row import TUNINGS, Asked, Figure, section
from pools import read_rows, write_lines
from transformers import PrinterCallback, TrainerCallback

TIME_GOAL, MEMORY_GOAL, FLAT_GOAL = 1.03, 1.05, 1.01
ROWS, EVERY = 4, 5  # of a step; steps between selections
POOL = 64  # rows
SHORT, LONG_RUN, SETTLED = (
    16,
    200,
    50,
)  # rows of the long run, its steps, and those within which memory may grow


@dataclass(frozen=True)
class Arm:
    """One run in a process of its own. Stock: on the rows that the run on a coreset of this name left."""

    asked: Asked
    lora: bool
    pool: Path
    name: str
    steps: int
    rows: int = ROWS
    every: int = EVERY
    stock: bool = False


@dataclass(frozen=True)
class Trained:
    """seconds: a step, None where a selection came before; peak: bytes of the process; anonymous: by step."""

    seconds: list[float | None]
    peak: int
    anonymous: list[int]


@dataclass
class Timer(TrainerCallback):
    every: int
    seconds: list[float | None] = field(default_factory=list)
    anonymous: list[int] = field(default_factory=list)
    last: float = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        from scale_row import anonymous

        now, chosen = time.process_time(), (state.global_step - 1) % self.every == 0
        self.seconds.append(None if chosen else now - self.last)
        self.anonymous.append(anonymous())
        self.last = now


def trained(arm: Arm) -> Trained:
    from coretune.config import check_config

    chosen = {"method": "grace", "budget": "50%", "refresh_every": arm.every, "refresh": {"k": 4}}
    out = arm.asked.home / f"{arm.name}-stock" if arm.stock else arm.asked.home / arm.name
    size = {"rows": arm.rows, "max_steps": arm.steps}
    config = check_config(section(arm.asked, arm.lora, arm.pool, out, chosen, **size))
    timer = Timer(arm.every)
    (_stock if arm.stock else _ours)(config, arm.asked.home / f"{arm.name}-rows", timer)
    return Trained(timer.seconds, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, timer.anonymous)


def _ours(config: Any, kept: Path, timer: Timer) -> None:
    from coretune import run

    trainer = run.build_trainer(config, callbacks=[timer])
    trainer.remove_callback(PrinterCallback)
    rows: list[int] = []
    begin = trainer.begin_round

    def begun(step: int) -> Any:
        state = begin(step)
        rows.extend(trainer._order.rows.tolist())
        return state

    trainer.begin_round = begun
    trainer.train()
    dataset = trainer.pool_rows.dataset
    dataset.select(rows[: len(timer.seconds) * trainer.schedule.batch]).save_to_disk(kept)


def _stock(config: Any, kept: Path, timer: Timer) -> None:
    from datasets import load_from_disk
    from trl import SFTTrainer

    from coretune import run
    from coretune.training.sections import adapter_config, training_arguments

    args = training_arguments(config)
    args.train_sampling_strategy = "sequential"
    trainer = SFTTrainer(
        config.model_name_or_path,
        args,
        train_dataset=load_from_disk(kept),
        processing_class=run.load_tokenizer(config.model_name_or_path),
        peft_config=adapter_config(config),
        callbacks=[timer],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def alone(arm: Arm) -> Trained:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), quiet) as fresh:
        return fresh.submit(trained, arm).result()


def beside(asked: Asked, tuning: str, pool: Path) -> list[Figure]:
    """Time and memory of pairs of runs."""
    steps = EVERY if asked.quick else 2 * EVERY
    arms = {
        stock: Arm(asked, tuning == "LoRA", pool, f"steps-{tuning}", steps, stock=stock)
        for stock in (False, True)
    }
    found: dict[bool, list[Trained]] = {False: [], True: []}
    for stock in (False, True) if asked.quick else (False, True, True, False):
        found[stock].append(alone(arms[stock]))
    pairs = [
        (one, other)
        for ours, theirs in zip(found[False], found[True], strict=True)
        for one, other in zip(ours.seconds, theirs.seconds, strict=True)
        if one is not None and other is not None
    ]
    peaks = {stock: statistics.median([run.peak for run in runs]) for stock, runs in found.items()}
    each = statistics.median([other for _, other in pairs])
    time_of = f"median of {len(pairs)} steps of {ROWS} rows; stock {each:.2f} s"
    memory_of = f"{peaks[False] / 2**30:.2f} GiB, stock {peaks[True] / 2**30:.2f}; selections included"
    ratio = statistics.median([one / other for one, other in pairs])
    return [
        Figure(f"step beside stock SFTTrainer, {tuning}", ratio, TIME_GOAL, measured=time_of),
        Figure(
            f"peak memory beside it, {tuning}", peaks[False] / peaks[True], MEMORY_GOAL, measured=memory_of
        ),
    ]


def flat(asked: Asked, lines: list[str]) -> Figure:
    """Whether memory still grows late in a long run, of one short row a step."""
    short = write_lines(asked.home / "short.jsonl", sorted(lines, key=len)[:SHORT])
    steps, settled = (40, 20) if asked.quick else (LONG_RUN, SETTLED)
    seen = alone(Arm(asked, True, short, "long", steps, rows=1, every=settled // 2)).anonymous
    grown = max(seen) / max(seen[:settled])
    of = f"most in {steps} steps over most in the first {settled}, {max(seen) / 2**30:.2f} GiB without files"
    return Figure("memory over a run, LoRA", grown, FLAT_GOAL, measured=of)


def figures(asked: Asked) -> list[Figure]:
    lines = read_rows(asked.pool / "pool.jsonl")
    pool = write_lines(asked.home / "few.jsonl", lines[:POOL])
    found = [figure for tuning in TUNINGS for figure in beside(asked, tuning, pool)]
    return [*found, flat(asked, lines)]

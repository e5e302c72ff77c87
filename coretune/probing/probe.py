"""A short run with the real model on some of the rows: what this machine takes for a step and a measurement.

full trainer (counted, not trained) ─► Workload
a small run of the same config: warm-up, selection, refresh, a few steps, part of an evaluation ─► Rates
signals of its rows ─► rehearsal (what choosing takes) ─► Plan
"""

from __future__ import annotations

import gc
import math
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PrinterCallback, TrainerCallback

from coretune import run
from coretune.config import RunConfig
from coretune.data.corpus import Corpus
from coretune.planning.plan import Plan, Rates, Workload, predict
from coretune.planning.rehearsal import Choosing, Rehearsal, measuring, rehearse
from coretune.planning.workload import about_run, measured_later, measurement_work, workload
from coretune.probing.probe_config import AFTER, EVERY, WARMUP, Size, elsewhere, size_of, small_config
from coretune.recording.selection_log import is_selection
from coretune.training.train import CoresetSFTTrainer
from coretune.types import Pool

HELD_OUT = 64  # rows evaluated, fewer where the model is slow
SECONDS = 6.0  # of the model in the probe's steps and measurements, where it is slow [choice]
EVALUATING = 1.0  # and in its evaluation
PARTS = ("counting", "probing", "rehearsing")  # of making a plan


def make_plan(
    config: RunConfig,
    clock: Callable[[], float] = time.perf_counter,
    over: Callable[[str], object] = lambda part: None,
) -> Plan:
    """Predict the run of this config. Nothing is written in its output_dir.

    clock  in seconds; time.process_time on a machine that is busy with other things
    over   called when one of PARTS is over, and which comes next; at the end the last again
    Raises ValueError as the run itself would.
    """
    with tempfile.TemporaryDirectory(prefix="coretune-plan-") as folder:
        whole = run.build_trainer(elsewhere(config, folder, "whole"))
        work, coreset, cost = workload(whole, config), whole.coreset_config, whole.pool_rows.length.copy()
        later, sizes = measured_later(whole, work), _sizes(whole)
        about, notes = about_run(config), _notes(whole)
        batch = whole.schedule.batch * whole.schedule.density
        a_flop = _seconds_a_flop(whole, clock)
        size = size_of(work, batch, SECONDS / a_flop)
        small = small_config(whole, config, Path(folder), size)
        model = whole.model
        del whole
        gc.collect()
        over(PARTS[1])
        evaluated = _evaluated(work, EVALUATING / a_flop)
        found = _probe(small, model, clock, evaluated)
    over(PARTS[2])
    rehearsal = rehearse(coreset, found.pool, cost, config.seed, clock) if work.selections else _nothing()
    if coreset.refresh.anchors == "candidates":
        rehearsal = measuring(rehearsal, later)
    over(PARTS[2])
    phases = predict(work, found.rates, rehearsal, bool(coreset.needs))
    n = work.pool_rows
    notes += (f"based on {_size(size, found.pool.n, evaluated)}, timed here and now",)
    of = f", {size.batch} rows a step" if size.batch < batch else ""
    memory = {f"{name}{of}": value for name, value in found.rates.memory.items()}
    memory |= {"signals of the pool": n * found.signals}
    disk = _disk(config, work, sizes, n * found.signals)
    return Plan(phases, work, disk, memory, about, notes)


def _evaluated(work: Workload, flops: float) -> int:
    """Rows that so many FLOPs evaluate: HELD_OUT at most, two at least."""
    rows = work.held_out.rows
    return min(rows, HELD_OUT, max(2, int(flops / (work.held_out.flops / rows)))) if rows else 0


def _size(size: Size, rows: int, evaluated: int) -> str:
    """Of the probe, in words."""
    steps = f"{WARMUP + EVERY + AFTER} steps of {size.batch:,} rows"
    return f"{steps}, {rows:,} rows of the pool" + (f", {evaluated} rows evaluated" if evaluated else "")


def _seconds_a_flop(trainer: CoresetSFTTrainer, clock: Callable[[], float]) -> float:
    """Roughly, by a forward pass of the row of middle length, the second time."""
    length = trainer.pool_rows.length
    row = np.argsort(length)[len(length) // 2 :][:1]
    model: Any = trainer.model
    (ids,) = trainer.pool_rows.tokens(row)
    tokens = torch.as_tensor(ids[None], dtype=torch.int64, device=model.device)
    began = 0.0
    with torch.no_grad(), trainer.compute_loss_context_manager():
        for _ in range(2):
            began = clock()
            model(input_ids=tokens).logits.sum().item()
    return max(clock() - began, 1e-6) / (trainer.cost.training(row) / 3)


# ------------------------------------------------------------------------------------------- the probe


class _Watch(TrainerCallback):
    """Notes the ledger as the run goes: at its beginning, at every step's end, at every selection."""

    def __init__(self, trainer: CoresetSFTTrainer) -> None:
        self.trainer = trainer
        self.steps: list[tuple[float, float, int]] = []  # seconds and FLOPs of training, round
        self.other: list[float] = []  # at the beginning, and after every selection
        self.measured: list[float] = []  # after every selection
        self.peak = {"training": 0.0, "measuring": 0.0}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._select()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if is_selection(logs):
            self._select()
            self._see("measuring")

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        costs = self.trainer.ledger.by_phase()
        trained = [costs["warm-up"], costs["training"]]
        seconds, flops = sum(c.seconds for c in trained), sum(c.flops or 0.0 for c in trained)
        self.steps.append((seconds, flops, (state.global_step - 1) // self.trainer.schedule.steps))
        self._see("training")

    def _select(self) -> None:
        costs = self.trainer.ledger.by_phase()
        self.other.append(costs["other"].seconds)
        self.measured.append(costs["measurement"].seconds)

    def _see(self, phase: str) -> None:
        if torch.cuda.is_available():
            self.peak[phase] = max(self.peak[phase], float(torch.cuda.max_memory_allocated()))
            torch.cuda.reset_peak_memory_stats()


@dataclass(frozen=True)
class _Probed:
    """What the probe found.

    pool     its rows with their signals, at the end
    signals  bytes a row of them
    """

    rates: Rates
    pool: Pool
    signals: float


def _probe(config: RunConfig, model: Any, clock: Callable[[], float], evaluated: int) -> _Probed:
    trainer = run.build_trainer(config, model)
    trainer.remove_callback(PrinterCallback)
    trainer.ledger.clock, trainer.ledger.counts_flops = clock, True  # estimates too: of seconds a FLOP
    watch = _Watch(trainer)
    trainer.add_callback(watch)
    trainer.train()
    costs = trainer.ledger.by_phase()
    training, boundary, start = _steps(watch, costs["warm-up"].seconds + costs["training"].seconds)
    measure, each = _measuring(trainer, clock)
    evaluation = _evaluation(trainer, clock, evaluated) if evaluated else 0.0
    state = trainer.coreset_state
    assert state is not None
    pool, n = state.pool, state.pool.n
    first = measurement_work(trainer, np.arange(n), first=True).flops * measure + each
    record = max(0.0, watch.other[-1] - watch.other[-2]) / n if len(watch.other) > 2 else 0.0
    signals = sum(value.nbytes for value in pool.features.values())
    signals += 0 if pool.graph is None else pool.graph.neighbors.nbytes * 2 + pool.graph.built_from.nbytes
    rates = Rates(
        training_flop=training,
        start=start,
        round=boundary,
        measure_flop=measure,
        measurement=each,
        first_measurement=max(0.0, watch.measured[1] - first) if trainer.measurement else 0.0,
        evaluation_flop=evaluation,
        prepare=watch.other[0],
        record=record,
        record_pool=max(0.0, watch.other[1] - watch.other[0]) / n - record,
        memory=_memory(watch),
    )
    return _Probed(rates, pool, signals / n)


def _steps(watch: _Watch, seconds: float) -> tuple[float, float, float]:
    """Seconds a FLOP of training, between two rounds, and outside of all steps.

    The first two steps warm up kernels and allocators; what they took longer is counted as outside.
    """
    known = [
        (b[0] - a[0], b[1] - a[1], b[2] != a[2]) for a, b in zip(watch.steps, watch.steps[1:], strict=False)
    ]
    inside = [(took, flops) for took, flops, crossed in known[1:] if not crossed]
    if not inside:  # rounds of one step: what lies between them is part of every step
        known = [(took, flops, False) for took, flops, _ in known]
        inside = [(took, flops) for took, flops, _ in known[1:]]
    rate = float(np.median([took / flops for took, flops in inside]))
    crossing = [took - rate * flops for took, flops, crossed in known[1:] if crossed]
    boundary = max(0.0, float(np.median(crossing))) if crossing else 0.0
    start = seconds - rate * watch.steps[-1][1] - boundary * len(crossing)
    return rate, boundary, max(0.0, start)


def _measuring(trainer: CoresetSFTTrainer, clock: Callable[[], float]) -> tuple[float, float]:
    """Seconds a FLOP of measuring and seconds a measurement, of a small and a large one."""
    if trainer.measurement is None:
        return 0.0, 0.0
    if trainer.coreset_config.uses_checkpoints:  # the first measurement is all there is
        seen = trainer.ledger.costs["measurement"]
        return seen.seconds / (seen.flops or 1.0), 0.0
    # Of like length: a few rows are padded more than a pool's.
    length = trainer.pool_rows.length
    middle = np.argsort(length, kind="stable")[len(length) // 4 : max(2, len(length) * 3 // 4)]
    took, flops = [], []
    for rows in (middle[: max(1, len(middle) // 4)], middle):
        began = clock()
        trainer.measurement.measure(rows)
        took.append(clock() - began)
        flops.append(trainer.measurement.flops(rows))
    rate = max(0.0, (took[1] - took[0]) / (flops[1] - flops[0])) if flops[1] > flops[0] else 0.0
    rate = rate or took[1] / flops[1]
    return rate, max(0.0, took[1] - rate * flops[1])


def _evaluation(trainer: CoresetSFTTrainer, clock: Callable[[], float], rows: int) -> float:
    """Seconds a FLOP of so many rows, after one that warms up."""
    for few in (1, rows):
        some = trainer.eval_dataset.select(range(few))
        before, began = trainer.ledger.costs["evaluation"].flops or 0.0, clock()
        trainer.evaluate(some)
        took = clock() - began
    return took / ((trainer.ledger.costs["evaluation"].flops or 0.0) - before)


def _memory(watch: _Watch) -> dict[str, float]:
    """Bytes at most: of each phase on a GPU, of the whole process without one."""
    if torch.cuda.is_available():
        return {f"{name} (GPU)": size for name, size in watch.peak.items()}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"process": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit}


def _sizes(trainer: CoresetSFTTrainer) -> dict[str, float]:
    """Bytes of what a checkpoint holds: the weights saved, and two moments of each trainable number."""
    trainable = sum(p.numel() * p.element_size() for p in trainer.model.parameters() if p.requires_grad)
    whole = sum(p.numel() * p.element_size() for p in trainer.model.parameters())
    adapted = trainer.cost.adapter_parameters is not None
    return {"weights": float(trainable if adapted else whole), "optimizer": 2.0 * trainable}


def _disk(config: RunConfig, work: Workload, sizes: dict[str, float], signals: float) -> dict[str, float]:
    """Bytes in output_dir when the run is over."""
    args = config.training
    kept = 0
    if args.get("save_strategy", "steps") != "no":
        every = args.get("save_steps", 500)
        every = every if every >= 1 else every * work.steps
        kept = work.rounds if args.get("save_strategy") == "epoch" else math.ceil(work.steps / every)
        kept = min(kept, args.get("save_total_limit") or kept)
    lines = min(work.pool_rows, 20_000) * work.selections
    return {
        "checkpoints": kept * (sizes["weights"] + sizes["optimizer"] + signals),
        "weights": sizes["weights"],
        "records": 40.0 * lines + 150.0 * work.pool_rows + 7e6,
    }


def _notes(trainer: CoresetSFTTrainer) -> tuple[str, ...]:
    rows = trainer.pool_rows
    assert isinstance(rows, Corpus)
    dropped, cut = len(rows.dropped) + sum(rows.left_out.values()), rows.truncated
    pool = f"pool    {len(rows.ids):,} rows, {int(rows.length.sum()):,} tokens after truncation"
    return (f"{pool}; {dropped:,} rows left out, {cut:,} prompts cut",)


def _nothing() -> Rehearsal:
    return Rehearsal(Choosing(0.0, 0.0, 0.0, 0.0), Choosing(0.0, 0.0, 0.0, 0.0))

"""What a run will cost, said before it: rows, tokens, seconds, FLOPs by phase, memory, disk, and a verdict.

    Workload (what will be done, counted)  ×  Rates (what this machine takes for it)  =  Plan

Both are numbers: the workload is read off the config and its clock, the rates off a short probe (`probe.py`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from coretune.files import read_json, write_json
from coretune.ledger import PHASES, SELECTING, Cost
from coretune.planning.rehearsal import Rehearsal
from coretune.recording.run_files import OWN

PLAN = f"{OWN}/plan.json"


@dataclass(frozen=True)
class Work:
    """Rows, tokens and FLOPs of some rows passing through the model once in some way."""

    rows: int
    tokens: int
    flops: float

    def scaled(self, times: float) -> Work:
        return Work(round(self.rows * times), round(self.tokens * times), self.flops * times)


@dataclass(frozen=True)
class Workload:
    """What a run will do.

    steps        optimiser steps, the warm-up's included
    rounds       epochs of the trainer
    selections   coresets chosen
    audits       full measurements asked for by audit_every
    evaluations  passes over the held-out rows
    warmup, training   of all their steps; the coreset's rows are taken to be as long as the pool's on average
    pool         one training pass over the pool
    first, later  a measurement of the whole pool: the first selection's, and a later one's
    held_out     one evaluation
    budget_rows  rows in the coreset
    references   FLOPs of what rows are compared with, at all selections together
    counted      False where FLOPs are an estimate, from which seconds are predicted and nothing else
    """

    pool_rows: int
    steps: int
    rounds: int
    selections: int
    audits: int
    evaluations: int
    batch: int
    warmup: Work
    training: Work
    pool: Work
    first: Work
    later: Work
    held_out: Work
    budget_rows: int
    epochs: float
    references: float = 0.0
    counted: bool = True


@dataclass(frozen=True)
class Rates:
    """What this machine took in the probe; seconds, and seconds a FLOP (`_flop`).

    start     from the beginning of training to its first step, and after the last
    round     between two rounds, beside the step
    measurement  of each, however many rows; first_measurement: once, at the first
    prepare   before training: fingerprints of weights and rows
    record    of writing down a selection, a row of the pool; record_pool: once
    memory    name -> bytes at most
    """

    training_flop: float = 0.0
    start: float = 0.0
    round: float = 0.0
    measure_flop: float = 0.0
    measurement: float = 0.0
    first_measurement: float = 0.0
    evaluation_flop: float = 0.0
    prepare: float = 0.0
    record: float = 0.0
    record_pool: float = 0.0
    memory: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """Costs by phase as the ledger has them, and what they mean.

    seconds are None where nothing was probed
    disk, memory   name -> bytes
    about          what the config says, so that a plan is not held against another run
    """

    phases: dict[str, Cost]
    workload: Workload
    disk: dict[str, float] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> Cost:
        return sum(self.phases.values(), Cost())

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "total": asdict(self.total), "verdict": verdict(self)}


def audits_of(selections: int, every: int | None) -> int:
    """Full measurements: at every `every`-th selection after the first."""
    return 0 if not every else max(0, (selections - 1) // every)


def predict(work: Workload, rates: Rates, rehearsal: Rehearsal, measures: bool) -> dict[str, Cost]:
    """Costs by phase. measures: whether the method measures anything."""
    later = max(0, work.selections - 1)
    remeasured = work.later.scaled(min(1.0, rehearsal.later.rows / max(1, work.later.rows)))
    phases = {name: Cost() for name in PHASES}
    if work.warmup.rows:
        phases["warm-up"] = _cost(work.warmup, work.warmup.flops * rates.training_flop)
    seconds = work.training.flops * rates.training_flop + rates.start + (work.rounds - 1) * rates.round
    phases["training"] = _cost(work.training, seconds)
    if measures and work.selections:
        seen = Work(
            work.first.rows + later * remeasured.rows,
            work.first.tokens + later * remeasured.tokens,
            work.first.flops + later * remeasured.flops + work.references,
        )
        measurements = 1 + later * rehearsal.later.measurements
        seconds = seen.flops * rates.measure_flop + measurements * rates.measurement + rates.first_measurement
        phases["measurement"] = _cost(seen, seconds)
    if work.selections:
        phases["graph"] = Cost(rehearsal.first.graph + later * rehearsal.later.graph)
        phases["selection"] = Cost(rehearsal.first.selection + later * rehearsal.later.selection)
    evaluated = work.held_out.scaled(work.evaluations)
    if evaluated.rows:
        phases["evaluation"] = _cost(evaluated, evaluated.flops * rates.evaluation_flop)
    audited = work.later.scaled(work.audits)
    written = work.pool_rows * (rates.record_pool + work.selections * rates.record)
    seconds = rates.prepare + written + audited.flops * rates.measure_flop
    seconds += work.audits * (rehearsal.first.graph + rehearsal.first.selection)
    phases["other"] = _cost(audited, seconds)
    if work.counted:
        return phases
    return {name: replace(cost, flops=None) if cost.flops else cost for name, cost in phases.items()}


def verdict(plan: Plan) -> list[str]:
    """What the costs mean, the worst news first. FLOPs are compared: seconds of other machines differ."""
    work = plan.workload
    if not work.counted:
        unknown = "FLOPs are unknown, for there is no formula for this architecture: no verdict"
        return [unknown, *_outside(plan)]
    return [*_against(plan), *_outside(plan)]


def _against(plan: Plan) -> list[str]:
    """Of FLOPs: against full training and against random."""
    work, phases = plan.workload, plan.phases
    step = work.pool.flops / work.pool_rows * work.batch  # of training on average rows
    choosing = sum(phases[name].flops or 0.0 for name in (*SELECTING, "other"))
    trained = (phases["training"].flops or 0.0) + (phases["warm-up"].flops or 0.0)
    full = work.pool.flops * work.epochs
    lines = []
    if choosing + trained >= full:
        lines.append(
            "WARNING: selection saves no compute against full training: this run computes "
            f"{choosing + trained:.2e} FLOPs, {work.epochs:.3g} epochs of the whole pool {full:.2e}; it pays "
            "only if the coreset teaches more than the pool"
        )
    else:
        lines.append(
            f"against full training: {(choosing + trained) / full:.0%} of the FLOPs of "
            f"{work.epochs:.3g} epochs of the whole pool"
        )
    if not choosing:
        lines.append("against random: this method measures nothing, and costs what random costs")
        return lines
    equal = work.steps + choosing / step
    lines.append(
        f"against random: break-even when it reaches in {work.steps:,} steps what a random coreset reaches "
        f"in {equal:,.0f}, for choosing computes as much as {choosing / step:,.0f} steps"
    )
    if choosing > trained:
        lines.append(
            f"WARNING: choosing costs {choosing / trained:.1f} times what training does; fewer refreshes "
            "(refresh_every), fewer anchors, last_blocks or cheaper signals bring it down"
        )
    return lines


def _outside(plan: Plan) -> list[str]:
    """Of seconds outside the model."""
    phases, seconds, lines = plan.phases, plan.total.seconds, []
    outside = phases["graph"].seconds + phases["selection"].seconds
    if seconds and outside > 0.5 * seconds:
        lines.append(
            f"WARNING: graph and selection take {outside / seconds:.0%} of the time and compute nothing in "
            "the model: a smaller budget, k or pool brings it down"
        )
    return lines


def write(plan: Plan, folder: str | os.PathLike[str]) -> Path:
    """FOLDER/_coretune/plan.json, whole or not at all."""
    path = Path(folder) / PLAN
    write_json(path, plan.to_dict(), indent=2)
    return path


def prediction(
    folder: str | os.PathLike[str], about: Callable[[], Mapping[str, Any]]
) -> dict[str, Any] | None:
    """What `write` put there, by phase; None where there is nothing, or it is of another config."""
    path = Path(folder) / PLAN
    if not path.is_file():
        return None
    plan = read_json(path)
    if plan["about"] != json.loads(json.dumps(about())):
        return None
    return {"phases": plan["phases"], "total": plan["total"]}


def _cost(work: Work, seconds: float) -> Cost:
    return Cost(seconds, work.rows, work.tokens, work.flops)


def lines(plan: Plan) -> Sequence[str]:
    """What stands below the table: memory, disk, verdict."""
    found = [f"memory  {_sizes(plan.memory)}", f"disk    {_sizes(plan.disk)}"]
    return [*found, *plan.notes, *verdict(plan)]


def _sizes(sizes: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {_bytes(size)}" for name, size in sizes.items())


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:,.1f} {unit}" if unit != "B" else f"{size:.0f} B"
        size /= 1024
    raise AssertionError

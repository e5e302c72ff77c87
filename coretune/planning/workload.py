"""What a trainer is going to do, counted before it does it, and what a plan of it must be of."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from coretune.config import RunConfig
from coretune.coreset_section import build_coreset, spelled_out
from coretune.ledger import Cost
from coretune.planning.plan import Rates, Work, Workload, audits_of, predict
from coretune.planning.rehearsal import Choosing, Rehearsal
from coretune.policies.reuse import may_measure_once
from coretune.rounds.refresh_settings import AnchorRefresh
from coretune.rounds.schedule import coreset_rows
from coretune.rounds.transitions import empty_pool
from coretune.secrets import without_secrets
from coretune.storing.inputs import inputs
from coretune.types import Rows

if TYPE_CHECKING:
    from coretune.training.mixin import CoresetMixin


# Rows measured for one chosen, with anchors "candidates" and measurements valid for one refresh; with
# staleness_factor L it is L^¾ times less [choice: with L = 2 it was 1.0 on two pools of 4,000 rows
# of which a fifth were wrong].
REMEASURED = 1.75


def workload(trainer: CoresetMixin, config: RunConfig) -> Workload:
    """Counted, not measured: what this trainer would do."""
    cost, schedule, args, settings = trainer.cost, trainer.schedule, trainer.args, trainer.coreset_config
    length, n = trainer.pool_rows.length, len(trainer.pool_rows.length)
    everyone = np.arange(n)
    pool = Work(n, int(length.sum()), cost.training(everyone))
    rows_a_step = schedule.batch * schedule.density
    if trainer.signals.warmup is not None:
        rows = trainer.signals.warmup.rows
        warmup = Work(len(rows), int(length[rows].sum()), cost.training(rows))
        warmup_steps = 0
    elif trainer.signals.target_warmups is not None:
        lengths = trainer.signals.target_warmups.lengths
        warmup = Work(len(lengths), int(lengths.sum()), cost.training_of(lengths))
        warmup_steps = 0
    else:
        warmup_steps = schedule.warmup_rounds * schedule.steps
        warmup = pool.scaled(warmup_steps * rows_a_step / n)
    selections = schedule.selections(args.max_steps)
    held_out = _held_out(trainer)
    rounds = math.ceil(args.max_steps / schedule.steps)
    compared = min(1, selections) if _measures_once(trainer) else selections
    return Workload(
        pool_rows=n,
        steps=args.max_steps,
        rounds=rounds,
        selections=selections,
        audits=audits_of(selections, settings.audit_every if settings.needs else None),
        evaluations=_evaluations(args, rounds) if held_out.rows else 0,
        batch=rows_a_step,
        warmup=warmup,
        training=pool.scaled((args.max_steps - warmup_steps) * rows_a_step / n),
        pool=pool,
        first=measurement_work(trainer, everyone, first=True),
        later=measurement_work(trainer, everyone, first=False),
        held_out=held_out,
        budget_rows=coreset_rows(settings, empty_pool(length)),
        epochs=_full_epochs(config, args, rows_a_step / n),
        references=0.0 if trainer.measurement is None else compared * trainer.measurement.reference_flops,
        counted=cost.counted,
    )


def _measures_once(trainer: Any) -> bool:
    """As a pretrained model lets it: noise detection is on before any training."""
    measurement = trainer.measurement
    return measurement is not None and may_measure_once(
        trainer.coreset_config, measurement.online is not None
    )


def _full_epochs(config: RunConfig, args: Any, epochs_a_step: float) -> float:
    """Epochs that training on the whole pool would take: as many as asked for; with max_steps as many steps,
    and at least one epoch."""
    if config.training.get("max_steps", -1) > 0:
        return max(1.0, float(args.max_steps) * epochs_a_step)
    return float(args.num_train_epochs)


def about_run(config: RunConfig) -> dict[str, Any]:
    """What a plan and a run must share for the one to be held against the other: settings, and the content of
    all that they name. It is written down: no token or password is in it."""
    data = ("train_data", "eval_data", "eval_fraction", "target_data", "train_on", "columns")
    kept = ("model_name_or_path", *data, "seed", "training", "peft")
    coreset = spelled_out(build_coreset(config.coreset, config.coreset_seed), config.coreset)
    known = {**{name: getattr(config, name) for name in kept}, "coreset": coreset}
    return {**without_secrets(known), "inputs": inputs(known)}


def measurement_work(trainer: CoresetMixin, rows: Rows, first: bool) -> Work:
    """Rows, tokens and FLOPs of one measurement of these rows."""
    measurement = trainer.measurement
    if measurement is None:
        return Work(0, 0, 0.0)
    measurement = measurement.first or measurement if first else measurement
    rows, length = measurement.distinct(rows), trainer.pool_rows.length
    work = Work(len(rows), int(length[rows].sum()), measurement.flops(rows))
    if measurement.rest is None:
        return work
    # Average rows, as many as the filter narrow leaves.
    config, n = trainer.coreset_config, len(length)
    assert config.narrow is not None
    left = min(1.0, config.narrow.times * coreset_rows(config, empty_pool(length)) / n)
    more = Work(n, int(length.sum()), measurement.rest.flops(np.arange(n))).scaled(left)
    return Work(work.rows + more.rows, work.tokens + more.tokens, work.flops + more.flops)


def _held_out(trainer: CoresetMixin) -> Work:
    if trainer.eval_dataset is None:
        return Work(0, 0, 0.0)
    lengths = np.array([len(ids) for ids in trainer.eval_dataset["input_ids"]])
    return Work(len(lengths), int(lengths.sum()), trainer.cost.evaluation(lengths))


def _evaluations(args: Any, rounds: int) -> int:
    """During training, and the one after it."""
    during = {"no": 0, "epoch": rounds}.get(str(args.eval_strategy.value))
    if during is None:
        every = args.eval_steps if args.eval_steps >= 1 else math.ceil(args.eval_steps * args.max_steps)
        during = math.ceil(args.max_steps / every)  # transformers evaluates at the last step too
    return during + bool(args.eval_on_start) + 1


def counted(trainer: CoresetMixin, config: RunConfig) -> dict[str, Any]:
    """A prediction by formulas alone: rows, tokens and FLOPs by phase; seconds are None."""
    work, coreset = workload(trainer, config), trainer.coreset_config
    first = Choosing(0.0, 0.0, work.pool_rows, 1.0)
    later = Choosing(0.0, 0.0, measured_later(trainer, work), 1.0)
    phases = predict(work, Rates(), Rehearsal(first, later), bool(coreset.needs))
    known = {name: {**vars(cost), "seconds": None} for name, cost in phases.items()}
    total = {**vars(sum(phases.values(), Cost())), "seconds": None}
    return {"phases": known, "total": total}


def measured_later(trainer: CoresetMixin, work: Workload) -> float:
    """Rows that each refresh after the first measures, by formula."""
    if _measures_once(trainer):
        return 0.0
    return rows_remeasured(trainer.coreset_config.refresh, work.pool_rows, work.budget_rows)


def rows_remeasured(refresh: AnchorRefresh, pool_rows: int, budget_rows: int) -> float:
    """Rows a later refresh measures, by formula."""
    if refresh.anchors == "candidates":
        return min(float(pool_rows), REMEASURED * refresh.staleness_factor**-0.75 * budget_rows)
    return math.ceil((1.0 if refresh.anchors == "all" else refresh.anchor_share) * pool_rows)

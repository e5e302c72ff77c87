"""The config of a probe: a run of the same settings, small and short, elsewhere."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coretune.config import RunConfig
from coretune.coreset_section import spelled_out
from coretune.data.corpus import Corpus
from coretune.data.raw import json_line
from coretune.files import atomic_write
from coretune.keys import put
from coretune.planning.plan import Workload
from coretune.rounds.schedule import coreset_rows
from coretune.rounds.transitions import empty_pool
from coretune.training.mixin import CoresetMixin
from coretune.training.sections import ROWS_ONLY
from coretune.types import Rows

ROWS = 256  # of the probe's pool, or as many as 8 steps take
WARMUP, EVERY, AFTER = 2, 3, 1  # steps before the first selection, to the next, and after that
LEAST = 8  # rows, however slow the model is
QUIET = {
    "save_strategy": "no",
    "eval_strategy": "no",
    "eval_on_start": False,
    "load_best_model_at_end": False,
    "report_to": "none",
    "disable_tqdm": True,
}


def elsewhere(config: RunConfig, folder: str | Path, name: str) -> RunConfig:
    """The run in a folder of its own: nothing of the user's is written to, or gone on with."""
    changes = {"output_dir": f"{folder}/{name}", "signals_dir": None, "resume_from_checkpoint": None}
    training = {**config.training, "disable_tqdm": True}
    return config.model_copy(update={**changes, "report": "never", "training": training})


@dataclass(frozen=True)
class Size:
    """Rows of the probe's pool, and of a step."""

    rows: int
    batch: int


def size_of(work: Workload, batch: int, flops: float) -> Size:
    """As large as the run's own steps, or as so many FLOPs of the model afford; LEAST and one at least.

    batch  rows of the run's own step
    flops  half is for the steps; half for the rows, each measured about three times
    """
    step = (WARMUP + EVERY + AFTER) * work.pool.flops / max(1, work.pool_rows)
    a_row = 3 * work.first.flops / max(1, work.first.rows)
    small = int(min(batch, max(1.0, 0.5 * flops / step))) if step else batch
    rows = max(ROWS, 8 * batch)
    return Size(int(min(rows, max(LEAST, 2 * small, 0.5 * flops / a_row))) if a_row else rows, small)


def small_config(trainer: CoresetMixin, config: RunConfig, folder: Path, size: Size) -> RunConfig:
    """The run of this trainer on a few random rows, WARMUP + EVERY + AFTER steps long."""
    assert isinstance(trainer.pool_rows, Corpus)
    n, settings, batch = len(trainer.pool_rows.ids), trainer.coreset_config, size.batch
    few = min(n, size.rows)
    rows = np.sort(np.random.default_rng([config.seed, 9]).permutation(n)[:few])
    plan = trainer.signals.warmup
    warm = WARMUP if plan is None else max(WARMUP, len(plan.marks))
    section = copy.deepcopy(config.coreset)
    share = coreset_rows(settings, empty_pool(trainer.pool_rows.length)) / n
    section["budget"] = max(1, min(few, max(batch, round(share * few))))
    if settings.warmup_share and settings.needs:
        put(section, "refresh.warmup", min(0.9, warm * batch / few))
    if settings.refresh_every != "never":
        section["refresh_every"] = EVERY
    if settings.needs and settings.refresh.k >= few:
        put(section, "refresh.k", few - 1)
    put(section, "refresh.audit_every", None)
    if settings.noise is not None:
        section["filters"] = spelled_out(settings, config.coreset)["filters"]
        put(section, f"filters.{settings.noise.name}.pairs", max(2, min(settings.noise.pairs, few // 4)))
    put(section, "refresh.defer_first_measurement", False)  # so that there is a measurement to time
    training = {**config.training, **QUIET, "max_steps": WARMUP + EVERY + AFTER}
    items = max(1, batch // trainer.schedule.density)  # packs, where rows are packed
    if items < trainer.schedule.batch:
        training |= {"per_device_train_batch_size": items, "gradient_accumulation_steps": 1}
    training = {key: value for key, value in training.items() if key not in ROWS_ONLY}
    small = {**_data(trainer, rows, folder), "coreset": section, "training": training}
    return elsewhere(config, folder, "small").model_copy(update=small)


def _data(trainer: Any, rows: Rows, folder: Path) -> dict[str, Any]:
    """The keys of a config that say what is read, for the trainer's own rows as token ids: whatever files,
    columns and templates they came from."""
    held_out, targets = trainer.held_out, trainer.signals.targets
    found: dict[str, Any] = {"train_data": _written(trainer.pool_rows, rows, folder / "rows.jsonl")}
    if held_out is not None:
        found["eval_data"] = _written(held_out, np.arange(len(held_out)), folder / "held-out.jsonl")
    if targets:
        files = [folder / f"target-{number}.jsonl" for number in range(len(targets))]
        found["target_data"] = {
            _written(target.rows, np.arange(len(target.rows.ids)), file): target.share
            for target, file in zip(targets, files, strict=True)
        }
    return {**found, "eval_fraction": None, "columns": None, "train_on": "last"}


def _written(corpus: Corpus, rows: Rows, path: Path) -> str:
    tokens, labels = corpus.tokens(rows), corpus.labels(rows)
    with atomic_write(path) as file:
        for row, ids, wanted in zip(rows, tokens, labels, strict=True):
            source = {} if corpus.source is None else {"source": corpus.source[row]}
            record = {"id": corpus.ids[row], **source, "input_ids": ids.tolist(), "labels": wanted.tolist()}
            file.write(json_line(record)[0].encode() + b"\n")
    return str(path)

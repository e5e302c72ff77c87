"""The config of a probe: a run of the same settings, small and short, elsewhere."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np

from coretune.config import RunConfig
from coretune.data.corpus import Corpus
from coretune.data.raw import json_line
from coretune.files import whole
from coretune.keys import put
from coretune.rounds.schedule import coreset_rows
from coretune.rounds.transitions import empty_pool
from coretune.training.mixin import CoresetMixin
from coretune.training.sections import ROWS_ONLY
from coretune.types import Rows

ROWS = 256  # of the probe's pool, or as many as 8 steps take
WARMUP, EVERY, AFTER = 2, 4, 4  # steps before the first selection, to the next, and after that
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


def small_config(trainer: CoresetMixin, config: RunConfig, folder: Path) -> RunConfig:
    """The run of this trainer on a few random rows, WARMUP + EVERY + AFTER steps long."""
    assert isinstance(trainer.pool_rows, Corpus)
    n, settings, batch = len(trainer.pool_rows.ids), trainer.coreset_config, trainer.clock.batch
    batch *= trainer.clock.density
    few = min(n, max(ROWS, 8 * batch))
    rows = np.sort(np.random.default_rng([config.seed, 9]).permutation(n)[:few])
    lesson = trainer.signals.lesson
    warm = WARMUP if lesson is None else max(WARMUP, len(lesson.marks))
    section = copy.deepcopy(config.coreset)
    share = coreset_rows(settings, empty_pool(trainer.pool_rows.length)) / n
    section["budget"] = max(1, min(few, max(batch, round(share * few))))
    if settings.warmup and settings.needs:
        put(section, "refresh.warmup", min(0.9, warm * batch / few))
    if settings.refresh_every != "never":
        section["refresh_every"] = EVERY
    if settings.needs and settings.refresh.k >= few:
        put(section, "refresh.k", few - 1)
    put(section, "refresh.audit_every", None)
    put(section, "refresh.wait", False)  # so that there is a measurement to time
    training = {**config.training, **QUIET, "max_steps": WARMUP + EVERY + AFTER}
    training = {key: value for key, value in training.items() if key not in ROWS_ONLY}
    small = {**_data(trainer, rows, folder), "coreset": section, "training": training}
    return elsewhere(config, folder, "small").model_copy(update=small)


def _data(trainer: Any, rows: Rows, folder: Path) -> dict[str, Any]:
    """The keys of a config that say what is read, for the trainer's own rows as token ids: whatever files,
    columns and templates they came from."""
    held_out, targets = trainer.kept_alive
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
    with whole(path) as file:
        for row, ids, wanted in zip(rows, tokens, labels, strict=True):
            source = {} if corpus.source is None else {"source": corpus.source[row]}
            record = {"id": corpus.ids[row], **source, "input_ids": ids.tolist(), "labels": wanted.tolist()}
            file.write(json_line(record)[0].encode() + b"\n")
    return str(path)

"""The config of a probe: a run of the same settings, small and short, elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from coretune.config import RunConfig
from coretune.data.corpus import Corpus
from coretune.data.raw import json_line
from coretune.files import whole
from coretune.rounds.schedule import coreset_rows
from coretune.rounds.transitions import empty_pool

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


def small_config(trainer: Any, config: RunConfig, folder: Path) -> RunConfig:
    """The run of this trainer on a few random rows, WARMUP + EVERY + AFTER steps long."""
    assert isinstance(trainer.pool_rows, Corpus)
    n, settings, batch = len(trainer.pool_rows.ids), trainer.coreset_config, trainer.clock.batch
    batch *= trainer.clock.density
    few = min(n, max(ROWS, 8 * batch))
    rows = np.sort(np.random.default_rng([config.seed, 9]).permutation(n)[:few])
    path = folder / "rows.jsonl"
    lines = (json_line(trainer.pool_rows.record(row))[0] + "\n" for row in rows)
    with whole(path) as file:
        file.writelines(line.encode() for line in lines)
    lesson = trainer.sight.lesson
    warm = WARMUP if lesson is None else max(WARMUP, len(lesson.marks))
    section = dict(config.coreset)
    share = coreset_rows(settings, empty_pool(trainer.pool_rows.length)) / n
    section["budget"] = max(1, min(few, max(batch, round(share * few))))
    if settings.warmup and settings.needs:
        section["warmup"] = min(0.9, warm * batch / few)
    if settings.refresh_every != "never":
        section["refresh_every"] = EVERY
    if settings.needs and settings.refresh.k >= few:
        section["k"] = few - 1
    section.pop("audit_every", None)
    section["wait"] = False  # so that there is a look to time
    training = {**config.training, **QUIET, "max_steps": WARMUP + EVERY + AFTER}
    small = {"train_data": str(path), "coreset": section, "training": training}
    return elsewhere(config, folder, "small").model_copy(update=small)

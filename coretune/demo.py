"""`coretune demo`: three arms on the playground at equal steps, the table, and where everything is.

full pool       every row in turn
random coreset  a tenth of the pool, drawn anew on GRACE's schedule: the baseline that counts
GRACE coreset   a tenth of the pool, chosen with the model in the loop

The arms run one after the other, so that their seconds can be compared.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from coretune import run
from coretune.config import RunConfig, check_config
from coretune.playground import BASE_MODEL, Playground, make_pool
from coretune.progress import progress
from coretune.recording.run_lock import run_lock
from coretune.scoring.evaluate import evaluate
from coretune.training.train import CoresetSFTTrainer

REFRESH_EVERY = 20  # steps
ARMS: Mapping[str, Mapping[str, Any]] = {
    "full pool": {"method": "random", "budget": "100%", "refresh_every": "never"},
    "random coreset": {"method": "random", "budget": "10%", "refresh_every": REFRESH_EVERY},
    "GRACE coreset": {"method": "grace", "budget": "10%", "refresh_every": REFRESH_EVERY},
}
HEADER = (
    "arm",
    "held-out\nloss",
    "exact\nmatch",
    "rows\nchosen",
    "rows\nseen",
    "tokens",
    "seconds",
    "of them\nchoosing",
)


def run_demo(
    folder: Path, seed: int = 0, rows: int = 2000, steps: int = 200, quiet: bool = False
) -> list[tuple[str, ...]]:
    """Make the pool, train the arms; the printable table, header first. Everything is under `folder`.

    The folders of an earlier demo are replaced; nothing else in `folder` is touched.
    """
    with run_lock(folder):
        return _run(folder, seed, rows, steps, quiet)


def _run(folder: Path, seed: int, rows: int, steps: int, quiet: bool) -> list[tuple[str, ...]]:
    for name in ("data", *map(_folder_of, ARMS)):
        shutil.rmtree(folder / name, ignore_errors=True)
    run.quiet()
    torch.set_num_threads(1)  # two threads that wait for each other on a busy machine are many times slower
    pool = make_pool(seed, rows=rows)
    pool.write(folder / "data")
    table: list[tuple[str, ...]] = [HEADER]
    with progress(len(ARMS) * steps, unit="step", leave=True, shown=not quiet) as bar:
        for arm, coreset in ARMS.items():
            bar.set_description(arm)
            trainer = run.train(_config(folder, arm, coreset, seed, steps), on_step=bar.update)
            table.append(_row(arm, trainer, pool))
    return table


def _folder_of(arm: str) -> str:
    return arm.replace(" ", "-").lower()


def _config(folder: Path, arm: str, coreset: Mapping[str, Any], seed: int, steps: int) -> RunConfig:
    return check_config(
        {
            "model_name_or_path": str(BASE_MODEL),
            "train_data": str(folder / "data" / "pool.jsonl"),
            "output_dir": str(folder / _folder_of(arm)),
            "seed": seed,
            "coreset": dict(coreset),
            "training": {
                "max_steps": steps,
                "per_device_train_batch_size": 16,
                "learning_rate": 1e-3,
                "bf16": False,
                "gradient_checkpointing": False,
                "save_strategy": "no",
                "report_to": "none",
                "dataloader_pin_memory": False,
            },
        }
    )


def _row(arm: str, trainer: CoresetSFTTrainer, pool: Playground) -> tuple[str, ...]:
    score = evaluate(trainer.model, trainer.processing_class, pool.held_out)
    costs = trainer.ledger.by_phase()
    trained = [costs["warm-up"], costs["training"]]
    selecting = sum(costs[name].seconds for name in ("measurement", "graph", "selection"))
    assert trainer.coreset_state is not None
    return (
        arm,
        f"{score['loss']:.3f}",
        f"{score['exact_match']:.1%}",
        f"{len(trainer.coreset_state.coreset.indices):,}",
        f"{sum(cost.rows for cost in trained):,}",
        f"{sum(cost.tokens for cost in trained):,}",
        f"{trainer.ledger.total().seconds:.0f}",
        f"{selecting:.0f}",
    )

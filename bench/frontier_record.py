"""What every row's signals are at every refresh of a run: the truth bench/frontier.py holds guesses against.

The library's own trainer on random rows that change; all rows are measured each time, and kept:

    OUT/<pool>-<model>-<looks>-<rate>-<seed>/
        0.npz 1.npz …   a signal an array, row i describes row i; what training has shown since the last
        first.npy       the lowest row that is equal to each
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from trl import SFTConfig

from coretune import CoresetSFTTrainer, coreset, run
from coretune.data.corpus import Corpus
from coretune.rounds.exact_duplicates import ExactDuplicates
from coretune.rounds.sampler import with_example_id
from coretune.select.random import Random
from coretune.training.run_harvest import RunHarvest
from coretune.training.tokenizers import load_tokenizer
from coretune.types import MATCHED, MISMATCHED, Array, Budget, Coreset, Pool, Rows

COMPARED = (MISMATCHED, MATCHED)
SIGNALS = ("prompt_embedding", "response_embedding", "loss", "gradient", "gradient_norm")
SHOWN = "shown_"  # before the name of what a training step has shown
EVERY = 25  # steps between measurements, and before the first


@dataclass(frozen=True)
class Recorder:
    """A random draw that writes down what it is shown."""

    folder: str

    harvest: ClassVar[RunHarvest | None] = None  # of the training that is being recorded
    name = "recorder"

    @property
    def needs(self) -> tuple[str, ...]:
        return SIGNALS

    def select(self, pool: Pool, budget: Budget, rng: np.random.Generator) -> Coreset:
        if not pool.usable.all():
            raise ValueError(f"{(~pool.usable).sum()} rows have no finite signals: lower the learning rate")
        looks = len(list(Path(self.folder).glob("*.npz")))
        path = Path(self.folder) / f"{looks}.npz"
        beside = path.with_suffix(".part")
        assert Recorder.harvest is not None
        rows, seen = Recorder.harvest.taken()
        Recorder.harvest.began = True
        shown = {SHOWN + name: seen.get(name, np.zeros(0)) for name in SIGNALS}
        with beside.open("wb") as file:
            compared = {name: pool.references[name] for name in COMPARED}
            features = {name: pool.feature(name) for name in SIGNALS}
            np.savez(file, cost=pool.cost, **compared, **features, **{SHOWN + "rows": rows}, **shown)
        os.replace(beside, path)
        return Random().select(pool, budget, rng)


@dataclass(frozen=True)
class Looks:
    """All rows at every refresh of one training.

    signals   of each measurement: name -> (n, ...)
    compared  of each measurement: `Pool.references`
    shown     before each look: rows that training has shown since the last, and their signals
    cost      (n,) int64  tokens of a row
    first     (n,) int64  the lowest row that is equal to each
    """

    signals: list[dict[str, Array]]
    compared: list[dict[str, Array]]
    shown: list[tuple[Rows, dict[str, Array]]]
    cost: Array
    first: Rows

    def at(self, number: int, rows: Rows) -> dict[str, Array]:
        return {name: value[rows] for name, value in self.signals[number].items()}


def recorded(asked: argparse.Namespace, seed: int) -> Looks:
    """The measurements of one training, from the disk where it was recorded before."""
    name = f"{Path(asked.pool).name}-{Path(asked.model).name}-{asked.looks}-{asked.learning_rate:g}-{seed}"
    folder = asked.out / name
    if not folder.exists():
        asked.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=asked.out) as home:
            record(asked, seed, Path(home))
            (Path(home) / "looks").rename(folder)
    signals, compared, shown = [], [], []
    for number in range(asked.looks):
        with np.load(folder / f"{number}.npz") as file:
            signals.append({name: np.asarray(file[name]) for name in SIGNALS})
            compared.append({name: np.asarray(file[name]) for name in COMPARED})
            shown.append((file[SHOWN + "rows"], {name: file[SHOWN + name] for name in SIGNALS}))
            cost = np.asarray(file["cost"])
    return Looks(signals, compared, shown, cost, np.load(folder / "first.npy"))


def record(asked: argparse.Namespace, seed: int, home: Path) -> None:
    """Train on random rows and measure all of them every EVERY steps: `home/looks`."""
    (home / "looks").mkdir()
    run.quiet()
    args = SFTConfig(
        output_dir=str(home / "run"),
        seed=seed,
        max_steps=EVERY * asked.looks + 1,  # the last measurement comes before a step
        per_device_train_batch_size=16,
        learning_rate=asked.learning_rate,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        report_to="none",
        use_cpu=True,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    tokenizer = load_tokenizer(str(asked.model))
    corpus = Corpus.build(
        Path(asked.pool) / "pool.jsonl",
        tokenizer,
        max_length=int(args.max_length or 1024),
        skip_bad_rows=True,
    )
    np.save(home / "looks" / "first.npy", ExactDuplicates.of(len(corpus), corpus.tokens, corpus.labels).first)
    trainer = CoresetSFTTrainer(
        model=str(asked.model),
        args=args,
        train_dataset=corpus.dataset,
        processing_class=tokenizer,
        rows=corpus,
        coreset=coreset(
            Recorder(str(home / "looks")),
            seed=seed,
            budget="10%",
            refresh_every=EVERY,
            refresh={"warmup": 0.05, "anchors": "all", "propagate": "none", "repair": "none"},
        ),
    )
    # for the recorder alone: all rows are measured again
    trainer.data_collator = with_example_id(trainer.data_collator)
    Recorder.harvest = RunHarvest(trainer.model, SIGNALS, trainer.signals.settings, trainer.processes)
    trainer.signals.harvest = Recorder.harvest
    trainer.train()

"""The case of bench/scale.py that is the whole command: `coretune select` of pools whose signals are given.

Corpus, store, graph, greedy, audit, coreset.jsonl and report are the command's own. Only the model does not
look: what it would have seen of a block of rows is read from files, 256 numbers for an embedding and one for
each loss.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from scale_files import write_rows
from scale_graph import compiled, prompts
from scale_row import Case, Line, measured, resident

from coretune import run
from coretune.config import RunConfig, check_config
from coretune.playground import BASE_MODEL
from coretune.training.row_signals import FirstScan
from coretune.types import EMPTY_PROMPT_LOSS, Array, Rows

SIZES, QUICK = (10_000, 100_000, 1_000_000), (2_000,)


def selecting(quick: bool) -> list[Line]:
    compiled()
    lines = []
    for n in QUICK if quick else SIZES:
        with tempfile.TemporaryDirectory() as folder:
            write_rows(Path(folder) / "pool.jsonl", n)
            config = config_of(Path(folder))
            with given_signals(Path(folder), n):
                took = measured(partial(run.select, config, quiet=True))
            chosen = sum(1 for _ in took.result.open())
        targets = (("≤ 8 GiB resident", resident() <= 8 * 2**30),) if n == 1_000_000 else ()
        worth = f"{chosen:,} rows chosen; {resident() / 2**30:.2f} GiB resident, files behind maps too"
        figures = (took.seconds, took.busy, took.gib, worth)
        lines.append(Line("coretune select, signals given", "coretune", n, *figures, targets=targets))
    return lines


def config_of(folder: Path) -> RunConfig:
    return check_config(
        {
            "model_name_or_path": str(BASE_MODEL),
            "train_data": str(folder / "pool.jsonl"),
            "output_dir": str(folder / "run"),
            "skip_bad_rows": True,  # one of them is bad
            "coreset": {"method": "grace", "budget": "5%", "refresh": {"warmup": 0}},
            "training": {"max_steps": 100, "bf16": False, "report_to": "none"},
        }
    )


@contextmanager
def given_signals(folder: Path, n: int) -> Iterator[None]:
    """Within the block the first measurement of a pool of up to n rows reads what is in the folder."""
    drawn = {"prompt_embedding": prompts(n), "response_embedding": prompts(n, 1)}
    rng = np.random.default_rng(0)
    drawn["loss"] = rng.random(n, np.float32)
    drawn[EMPTY_PROMPT_LOSS] = drawn["loss"] * rng.uniform(1.0, 4.0, n).astype(np.float32)
    for name in list(drawn):
        np.save(folder / f"{name}.npy", drawn.pop(name))

    def seen(scan: FirstScan, rows: Rows) -> Mapping[str, Array]:
        """Through maps that are gone at once: they are no part of what the command holds."""
        return {name: np.load(folder / f"{name}.npy", mmap_mode="r")[rows] for name in scan.signals.signals}

    scanning, FirstScan.__call__ = FirstScan.__call__, seen
    try:
        yield
    finally:
        FirstScan.__call__ = scanning


CASES: tuple[Case, ...] = (Case("select", selecting, long=True),)

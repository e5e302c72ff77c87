"""The arms of bench/real.py: which rows, which method, which settings.

untouched  the model as it is, scored only
random     a share of the pool, drawn anew after each pass over it
full       the whole pool, every row once before any comes twice
distinct   the same, without exact duplicates
longest    a share of the pool: the longest responses, for as many passes as there are steps
static     a share of the pool drawn once at random, for as many passes
bm25       a share of the pool: nearest to the target rows by their words (real_words.py)
clean      distinct rows that are not wrong, by their labels: the ceiling, not a method
any method of coretune: grace, grace-paper, brief, gtp, d2, ifd, less, rds, loss_drop, …

Settings, as paths in the `coreset` section, follow a colon:
d2:filters=[duplicates,noise];refresh.anchors=all · full:filters=[noise]
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from pools import distinct_rows, labels_of, read_rows, whole, write_lines
from real_words import nearest_by_words

from coretune.comparing.arms import FULL, arm_section

UNTOUCHED, BM25 = "untouched", "bm25"
#: Arms that train in turn on the rows of a file.
FILES = ("full", "distinct", "longest", "static", BM25, "clean")
NEEDS_TARGET = ("less", "rds", "loss_drop")


def section_of(arm: str, budget: str) -> dict[str, Any]:
    """The `coreset` section of an arm; of those that are a file of rows, the whole of it in turn."""
    name, colon, settings = arm.partition(":")
    if name in FILES:
        return arm_section(f"{FULL}{colon}{settings}", {})
    return arm_section(arm, {"budget": budget, "refresh_every": "pass"})


def rows_of(arm: str, pool: Path, data: Path, share: float, seed: int) -> Path:
    """The file of rows that the arm may train on; made in `data` where it is not the pool's own."""
    arm = arm.partition(":")[0]
    if arm == "distinct":
        return distinct_rows(pool, data)
    if arm == "clean":
        return _clean(pool, data)
    if arm == "longest":
        return _longest(pool, data, share)
    if arm == "static":
        return _static(pool, data, share, seed)
    if arm == BM25:
        return nearest_by_words(pool, share, data)
    return whole(pool, data)


def target_of(arm: str, pool: Path) -> Path | None:
    """Trusted rows, for arms that are given some."""
    if arm.partition(":")[0] not in NEEDS_TARGET:
        return None
    path = pool / "target.jsonl"
    if not path.is_file():
        raise SystemExit(f"the arm {arm} needs {path}: trusted rows of the wanted kind")
    return path


def _clean(pool: Path, data: Path) -> Path:
    wrong = {name for name, kind in labels_of(pool).items() if kind == "wrong"}
    lines = read_rows(distinct_rows(pool, data))
    return write_lines(
        data / f"{pool.name}-clean.jsonl", [r for r in lines if json.loads(r)["id"] not in wrong]
    )


def _longest(pool: Path, data: Path, share: float) -> Path:
    lines = read_rows(distinct_rows(pool, data))
    lengths = np.array([len(json.loads(line)["completion"]) for line in lines])
    kept = np.argsort(-lengths, kind="stable")[: _amount(pool, share)]
    return write_lines(data / f"{pool.name}-longest.jsonl", [lines[i] for i in np.sort(kept)])


def _static(pool: Path, data: Path, share: float, seed: int) -> Path:
    lines = read_rows(pool / "pool.jsonl")
    kept = np.random.default_rng([seed, 7]).choice(len(lines), _amount(pool, share), replace=False)
    return write_lines(data / f"{pool.name}-static-{seed}.jsonl", [lines[i] for i in np.sort(kept)])


def _amount(pool: Path, share: float) -> int:
    return max(1, round(share * len(read_rows(pool / "pool.jsonl"))))

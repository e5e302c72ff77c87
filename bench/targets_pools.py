"""The pools of bench/targets.py: one pool of everything, and for each task examples and rows to score.

mixed-clean + choice-clean (+ dialogue summaries) ─┬─► pool.jsonl, the same for all tasks
                                                   ├─► gsm8k-5/target.jsonl, gsm8k-50/target.jsonl, …
                                                   └─► gsm8k-5/eval.jsonl: held-out rows of the task
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pools import read_rows, write_lines


@dataclass(frozen=True)
class Task:
    """What is wanted: rows of these sources."""

    name: str
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What is made of which folders.

    folders     folder -> longest row in characters, prompt and response together
    examples    numbers of trusted examples; the smaller are the first of the larger
    scored      rows of a task that are scored at most: of eval.jsonl first, then held out of the pool
    rows        of the pool at most, drawn with seed 0
    """

    folders: Mapping[Path, int]
    tasks: tuple[Task, ...]
    examples: tuple[int, ...]
    scored: int
    rows: int


#: Of dialogue summaries only 94 have at most 400 characters, so they may have twice as many [choice].
LONG = {"dialogsum": 2}
FOLDERS = ("mixed-clean", "choice-clean", "dialogsum")
TASKS = (
    Task("gsm8k", ("gsm8k",)),
    Task("arc", ("arc-easy", "arc-challenge")),
    Task("code", ("code",)),
    Task("dialogue", ("dialogsum",)),
)


def make_folders(plan: Plan, out: Path) -> dict[tuple[str, int], Path]:
    """(task, number of examples) -> a folder of pool.jsonl, eval.jsonl and target.jsonl in `out`.

    Examples and scored rows are in no pool. SystemExit for a task that has too few rows for both.
    """
    rows, scored = _all_rows(plan.folders)
    rng = np.random.default_rng(0)
    held: dict[str, tuple[list[str], list[str]]] = {}
    taken: set[int] = set()
    for task in plan.tasks:
        own = [i for i, (_, source) in enumerate(rows) if source in task.sources]
        evaluated = [line for line, source in scored if source in task.sources]
        order = rng.permutation(own).tolist()
        most = max(plan.examples)
        more = max(0, min(plan.scored - len(evaluated), (len(own) - most) // 3))
        if len(own) < 2 * most or (not evaluated and not more):
            raise SystemExit(
                f"{task.name}: {len(own)} rows are too few for {most} examples and rows to score"
            )
        examples, others = order[:most], order[most : most + more]
        taken.update(examples, others)
        spread = evaluated[:: max(1, round(len(evaluated) / plan.scored))] if evaluated else []
        held[task.name] = [rows[i][0] for i in examples], [*spread, *(rows[i][0] for i in others)]
    left = np.array([i for i in range(len(rows)) if i not in taken])
    if len(left) > plan.rows:
        left = np.sort(rng.choice(left, plan.rows, replace=False))
    pool, found = [rows[i][0] for i in left], {}
    for task in plan.tasks:
        for count in plan.examples:
            folder = out / f"targets-{len(pool)}-{task.name}-{count}"
            write_lines(folder / "pool.jsonl", pool)
            write_lines(folder / "eval.jsonl", held[task.name][1])
            write_lines(folder / "target.jsonl", held[task.name][0][:count])
            found[task.name, count] = folder
    return found


def _all_rows(folders: Mapping[Path, int]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(line, source) of all pools' rows, each with an id of its own, and of all rows to score."""
    found: tuple[list[tuple[str, str]], list[tuple[str, str]]] = [], []
    for folder, longest in folders.items():
        for kept, name in zip(found, ("pool.jsonl", "eval.jsonl"), strict=True):
            if not (folder / name).is_file():
                continue
            for line in read_rows(folder / name):
                row = json.loads(line)
                if len(row["prompt"] + row["completion"]) <= longest:
                    row["id"] = f"{folder.name}-{row.get('id', len(kept))}"
                    kept.append((json.dumps(row), str(row.get("source"))))
    return found


def data_folders(data: Path, characters: int) -> dict[Path, int]:
    """Those of FOLDERS in `data`, each with its longest row; SystemExit names one that is not there."""
    absent = [name for name in FOLDERS if not (data / name / "pool.jsonl").is_file()]
    if absent:
        raise SystemExit(
            f"{data}/{absent[0]}: no pool.jsonl there; --data is a folder of {', '.join(FOLDERS)}"
        )
    return {data / name: LONG.get(name, 1) * characters for name in FOLDERS}

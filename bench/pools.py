"""Pools for benchmarks: folders of pool.jsonl and eval.jsonl, parts of them, and pools made on the spot."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np
import yaml

from coretune.playground.corrupt import corrupt

MADE = "made:"  # a pool of the playground's kind, and how
DIRTY = "dirty:"  # a clean pool's folder, to be corrupted
#: After a pool's folder: `characters=300`, rows of at most that length; `rows=2000`, so many of them.
PART = ";"
WRONG, COPIES, COPIED = 0.2, 0.3, 60  # shares of the rows; how many rows the copies are of
HELD_OUT = 0.2  # share of the rows that are scored, of a pool that comes without rows for it


def target_file(arm: str, given: str | None, asked: argparse.Namespace, data: Path) -> Path | None:
    """The target rows of an arm: a file, or None. given: "all", "none", None where the arm does not say."""
    path = Path(asked.pool) / "target.jsonl"
    if given is None:
        given = "none" if arm.startswith("gtp") and not asked.target_skill else "all"
    if given == "none" or not path.exists():
        return None
    return of_skill(path, asked.target_skill, data) if asked.target_skill else path


def of_skill(path: Path, skill: str, data: Path) -> Path:
    """A file of the rows whose `source` is that skill; ValueError when there is none."""
    lines = read_rows(path)
    found = [line for line in lines if json.loads(line).get("source") == skill]
    if not found:
        known = sorted({str(json.loads(line).get("source")) for line in lines})
        raise ValueError(f"no row has the skill {skill!r}; there are {', '.join(known)}")
    return write_lines(data / f"{path.parent.name}-{path.stem}-{skill}.jsonl", found)


def clean_rows(pool: Path, data: Path) -> Path:
    """A file of the pool without the rows that labels.jsonl calls wrong."""
    wrong = {name for name, kind in labels_of(pool).items() if kind == "wrong"}
    rows = read_rows(pool / "pool.jsonl")
    return write_lines(
        data / f"{pool.name}-clean.jsonl", [r for r in rows if json.loads(r)["id"] not in wrong]
    )


def distinct_rows(pool: Path, data: Path) -> Path:
    """A file of the pool's rows, of those with equal prompt and response the first."""
    rows = {(row["prompt"], row["completion"]): line for line, row in reversed(_parsed(pool / "pool.jsonl"))}
    return write_lines(data / f"{pool.name}-distinct.jsonl", list(rows.values())[::-1])


def whole(pool: Path, data: Path) -> Path:
    """The pool's own file."""
    return pool / "pool.jsonl"


def labels_of(pool: Path) -> dict[str, str]:
    """id -> kind. For the table and the ceiling alone: no selector sees a label."""
    lines = read_rows(pool / "labels.jsonl")
    return {label["id"]: label["kind"] for label in map(json.loads, lines)}


def pool_and_model(
    pool: str | None, model: str | None, folder: str, out: Path = Path("runs/quality")
) -> tuple[str, str]:
    from coretune.playground import BASE_MODEL, make_pool

    if pool is None:
        pool = f"{folder}/playground"
        make_pool(seed=0).write(pool)
    return str(_folder(pool, out / "data")), model or str(BASE_MODEL)


def below(data: str, pool: str) -> str:
    """The pool with its folder in `data`, as dirty:DATA/gsm8k of dirty:gsm8k; what is made has none."""
    kind, colon, folder = pool.rpartition(":")
    return pool if f"{kind}{colon}" == MADE else f"{kind}{colon}{Path(data) / folder}"


def _folder(pool: str, data: Path) -> Path:
    """Where the pool lies, made in `data` if need be; SystemExit, with one line, where it does not."""
    from coretune.playground import make_pool

    if pool.startswith(DIRTY):
        return spoilt(_folder(pool.removeprefix(DIRTY), data), data)
    if PART in pool and not pool.startswith(MADE):
        whole, asked = pool.split(PART, 1)
        return part_of(_folder(whole, data), asked, data)
    if not pool.startswith(MADE):
        found, scored = Path(pool), Path(pool) / "eval.jsonl"
        if not (found / "pool.jsonl").is_file():
            raise SystemExit(f"{pool}: no pool.jsonl there; give its folder, or made: with settings")
        return found if scored.is_file() and read_rows(scored) else held_out(found, data)
    settings = yaml.safe_load("{" + pool.removeprefix(MADE).replace(";", ", ").replace("=", ": ") + "}")
    made = data / pool.replace(MADE, "made-").replace(";", ",")
    make_pool(**{"seed": 0, "rows": 4000, **settings}).write(made)
    return made


def spoilt(clean: Path, data: Path) -> Path:
    """A folder with as many rows as the clean pool: half of them as they are, a fifth with the response of
    another row that answers otherwise, and copies of a few right ones."""
    records = [json.loads(line) for line in read_rows(clean / "pool.jsonl")]
    wrong, copies = round(WRONG * len(records)), round(COPIES * len(records))
    rng = np.random.default_rng(0)
    pool, labels = corrupt(records, rng, wrong=wrong, copies=copies, copied=COPIED, dropped=copies)
    folder = data / f"{clean.name}-dirty"
    kinds = [{"id": name, "kind": kind} for name, kind in labels.items()]
    write_lines(folder / "pool.jsonl", [json.dumps(row) for row in pool])
    write_lines(folder / "labels.jsonl", [json.dumps(kind) for kind in kinds])
    write_lines(folder / "eval.jsonl", read_rows(clean / "eval.jsonl"))
    return folder


def held_out(pool: Path, data: Path) -> Path:
    """A folder of the pool's rows but for a fifth, drawn at random, which are the ones to score."""
    rows, folder = read_rows(pool / "pool.jsonl"), data / f"{pool.name}-held-out"
    order = np.random.default_rng(0).permutation(len(rows))
    scored = set(order[: round(HELD_OUT * len(rows))].tolist())
    write_lines(folder / "pool.jsonl", [row for i, row in enumerate(rows) if i not in scored])
    write_lines(folder / "eval.jsonl", [row for i, row in enumerate(rows) if i in scored])
    return folder


def part_of(whole: Path, asked: str, data: Path) -> Path:
    """A folder with a part of a pool's rows, and of those to score.

    asked  "characters=300": rows of at most that length, prompt and response together
           "characters=300;rows=2000": and of these 2,000 drawn with seed 0
           "scored=250": of the rows to score about so many, evenly spaced
    """
    limits = dict(setting.split("=") for setting in asked.split(PART))
    if unknown := set(limits) - {"characters", "rows", "scored"}:
        raise SystemExit(f"{sorted(unknown)[0]}: a part of a pool is given by characters, rows and scored")
    folder = data / "-".join([whole.name, *(f"{value}-{name}" for name, value in limits.items())])
    longest = int(limits.get("characters", sys.maxsize))
    for name in ("pool.jsonl", "eval.jsonl", "target.jsonl"):
        if not (whole / name).exists():
            continue
        rows = [(line, row) for line, row in _parsed(whole / name)]
        found = [line for line, row in rows if name == "target.jsonl" or _characters(row) <= longest]
        if name == "pool.jsonl" and "rows" in limits and int(limits["rows"]) < len(found):
            drawn = np.random.default_rng(0).choice(len(found), int(limits["rows"]), replace=False)
            found = [found[i] for i in np.sort(drawn)]
        if name == "eval.jsonl" and "scored" in limits:
            found = found[:: max(1, round(len(found) / int(limits["scored"])))]
        write_lines(folder / name, found)
    if (whole / "labels.jsonl").exists():
        write_lines(folder / "labels.jsonl", read_rows(whole / "labels.jsonl"))
    return folder


def _characters(row: dict[str, str]) -> int:
    return len(row["prompt"] + row["completion"])


def read_rows(path: Path) -> list[str]:
    """Its lines; not `splitlines`, which also cuts at line breaks of Unicode within a row."""
    return [line for line in path.read_text(encoding="utf-8").split("\n") if line]


def _parsed(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Its lines, each with the row that it is."""
    return [(line, json.loads(line)) for line in read_rows(path)]


def write_lines(path: Path, lines: list[str]) -> Path:
    """The file with these lines; whole at any moment, for runs beside this one read it too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    beside.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    os.replace(beside, path)
    return path

"""The part of a report that grows with rows times refreshes: a bounded sample of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from coretune.recording import audit
from coretune.recording.components import CODES, OF_CHOSEN
from coretune.recording.run_files import RunFiles, excerpt
from coretune.types import Array, Rows

ROWS = 3000  # with their text, on the map and in the table
REFRESHES = 24  # shown in detail, evenly spaced, the first and the last among them
TEXT = 240  # characters of a prompt or a response
BINS = 30
REPRESENTATIVES = 3000  # rows that represent others, with their text beside the sampled ones
BRIEFLY = 120  # characters of their text


@dataclass
class Details:
    """Column-wise, ready for JSON.

    rounds      the refreshes shown
    rows        {"id", "source", …}: (S,) each, of the sampled rows
    states      a dict a refresh: rank (S,) -1 = not chosen, null = not recorded; measured; why; components
    components  a dict a refresh: name -> {"edges", "chosen", "other"}: shares of rows a bin
    coverage    {"share", "mean"}: (R,) of rows not chosen; "edges" and a histogram a refresh, "near"
    representatives   id -> a short text, of rows that represent sampled ones and are not sampled themselves
    left_out    a sentence when not all rows are there
    """

    rounds: list[int]
    rows: dict[str, list[Any]]
    left_out: str | None
    states: list[dict[str, Any]] = field(default_factory=list)
    components: list[dict[str, Any]] = field(default_factory=list)
    coverage: dict[str, Any] = field(default_factory=dict)
    representatives: dict[str, str] = field(default_factory=dict)


def details(run: RunFiles) -> Details:
    """What the page shows of single rows and refreshes."""
    rounds = evenly(run.rounds, REFRESHES)
    tables = [run.selection(number) for number in rounds]
    sample, left_out = _sample(run, tables)
    found = Details(rounds, _rows(run, sample), left_out)
    coverage: dict[str, Any] = {"share": [], "mean": [], "near": [], "edges": _numbers(np.linspace(0, 1, 41))}
    for table in tables:
        other = ~table["chosen"].to_numpy() & table["excluded"].is_null().to_numpy()
        found.states.append(_state(run, table, sample))
        found.components.append(_histograms(table, other))
        if run.pool["copies"].null_count == 0 and _by_cosine(table):  # there is a graph
            closeness = np.nan_to_num(table["closeness"].to_numpy())[other]
            coverage["share"].append(_number((closeness > 0).mean() if len(closeness) else 1.0))
            coverage["mean"].append(_number(closeness.mean() if len(closeness) else 1.0))
            counts = np.histogram(np.clip(closeness, 0, 1), coverage["edges"])[0]
            coverage["near"].append(_numbers(counts / max(len(closeness), 1)))
    found.coverage = coverage
    found.representatives = _representatives(run, found)
    return found


def _by_cosine(table: pa.Table) -> bool:
    """Whether rows are represented by cosine, and not by distances of the method's own."""
    return bool(table["representative"].null_count == table["closeness"].null_count)


def _representatives(run: RunFiles, found: Details) -> dict[str, str]:
    """Those that represent most, REPRESENTATIVES of them."""
    times = Counter(name for state in found.states for name in state["representative"] if name is not None)
    for name in found.rows["id"]:
        times.pop(name, None)
    names = [name for name, _ in times.most_common(REPRESENTATIVES)]
    facts = run.pool.take(pa.array([run.row_of[name] for name in names], pa.int64()))
    prompts, responses = facts["prompt"].to_pylist(), facts["response"].to_pylist()
    return {
        name: f"{excerpt(prompts, row, BRIEFLY)} → {excerpt(responses, row, BRIEFLY)}"
        for row, name in enumerate(names)
    }


def evenly(values: list[int], most: int) -> list[int]:
    """At most so many of them, evenly spaced, the first and the last among them."""
    if len(values) <= most:
        return values
    return [values[place] for place in np.linspace(0, len(values) - 1, most).round().astype(int)]


def _sample(run: RunFiles, tables: list[pa.Table]) -> tuple[Rows, str | None]:
    """Rows of the pool, ascending: all, or half from those ever chosen and half from the others.

    [choice] A plain sample of a large pool would hold next to nothing of a small coreset.
    """
    n = len(run.ids)
    if n <= ROWS:
        return np.arange(n), None
    ever = np.zeros(n, bool)
    recorded = np.zeros(n, bool)
    for table in tables:
        rows = np.array([run.row_of[name] for name in table["id"].to_pylist()])
        recorded[rows] = True
        ever[rows[table["chosen"].to_numpy()]] = True
    rng = np.random.default_rng(0)
    groups = [np.flatnonzero(ever), np.flatnonzero(recorded & ~ever)]
    take = min(len(groups[0]), max(ROWS // 2, ROWS - len(groups[1])))
    sizes = [take, min(len(groups[1]), ROWS - take)]
    kept = [rng.choice(rows, size, replace=False) for rows, size in zip(groups, sizes, strict=True)]
    text = (
        f"{sizes[0]:,} of the {len(groups[0]):,} rows that were ever chosen and {sizes[1]:,} of the "
        f"{n - len(groups[0]):,} others, drawn at random (seed 0): compare places, not densities."
    )
    return np.sort(np.concatenate(kept)), text


def _rows(run: RunFiles, sample: Rows) -> dict[str, list[Any]]:
    pool = run.pool.take(pa.array(sample))
    there = run.pool["x"].null_count == 0
    group = Counter(run.pool["copies"].to_pylist())
    copies = [0 if name is None else group[name] - 1 for name in pool["copies"].to_pylist()]
    texts = {name: pool[name].to_pylist() for name in ("prompt", "response")}
    return {
        "id": pool["id"].to_pylist(),
        "source": pool["source"].to_pylist(),
        "tokens": pool["tokens"].to_pylist(),
        "copies": copies,
        **{name: [excerpt(values, i, TEXT) for i in range(len(values))] for name, values in texts.items()},
        **({name: _numbers(pool[name].to_numpy()) for name in ("x", "y")} if there else {}),
    }


def _state(run: RunFiles, table: pa.Table, sample: Rows) -> dict[str, Any]:
    """What one refresh did with the sampled rows."""
    line_of = {name: line for line, name in enumerate(table["id"].to_pylist())}
    lines = np.array([line_of.get(run.ids[row], -1) for row in sample])
    known = lines >= 0
    taken = table.take(pa.array(np.maximum(lines, 0)))

    def column(name: str) -> list[Any]:
        values = taken[name].to_pylist()
        return [value if there else None for value, there in zip(values, known, strict=True)]

    rank = [
        -1 if value is None and there else value for value, there in zip(column("rank"), known, strict=True)
    ]
    nearest = [None if row is None else run.ids[row] for row in column("representative")]
    names = [name for name in table.schema.names if name not in audit.FIXED.names]
    return {
        "rank": rank,
        "gain": _numbers(column("gain")),
        "measured": [None if value is None else int(value) for value in column("measured")],
        "excluded": _sparse(column("excluded")),
        "filtered": _sparse([name or None for name in column("filtered")]),
        "representative": nearest,
        "closeness": _numbers(column("closeness")),
        "components": {name: _numbers(column(name)) for name in names if taken[name].null_count < len(taken)},
    }


def _histograms(table: pa.Table, other: Array) -> dict[str, Any]:
    """Of each component over its 0.5th to 99.5th percentile; what lies outside is in the outer bins."""
    chosen = table["chosen"].to_numpy()
    found = {}
    for name in table.schema.names:
        if name in audit.FIXED.names or name in CODES or table[name].null_count == len(table):
            continue
        values = table[name].to_numpy().astype(np.float64)
        known = np.isfinite(values)
        counted = known & (chosen if name in OF_CHOSEN else chosen | other)
        if not counted.any():
            continue
        low, high = np.quantile(values[counted], [0.005, 0.995])
        if not high > low:
            continue
        edges = np.linspace(low, high, BINS + 1)
        shares = {}
        others = other & known & (name not in OF_CHOSEN)
        for group, rows in (("chosen", chosen & known), ("other", others)):
            counts = np.histogram(np.clip(values[rows], low, high), edges)[0]
            shares[group] = _numbers(counts / max(rows.sum(), 1))
        found[name] = {"edges": _numbers(edges), **shares}
    return found


def _sparse(values: list[Any]) -> dict[int, Any]:
    """place -> value, of those that are not None."""
    return {place: value for place, value in enumerate(values) if value is not None}


def _number(value: Any) -> float:
    """Four significant digits: what is seen, at a third of the bytes."""
    return float(f"{float(value):.4g}")


def _numbers(values: Any) -> list[float | None]:
    return [None if value is None or not np.isfinite(value) else _number(value) for value in values]

"""What entered a coreset and what left it: between two refreshes of a run, or between two runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from coretune.reading.explain import verdict
from coretune.recording.run_files import RunFiles, excerpt

NO_SOURCE = "no source"
LENGTHS = (0.25, 0.5, 0.75)  # quantiles of the pool's tokens that part the lengths
SHOWN = 70  # characters of a text
BRIEFLY = 40  # of the text of the row that represents it


@dataclass(frozen=True)
class Side:
    """One coreset: a run and one of its refreshes."""

    run: RunFiles
    round: int

    @property
    def name(self) -> str:
        return f"{self.run.path} refresh {self.round}"


@dataclass(frozen=True)
class Mix:
    """A group of rows and how many of it each coreset holds."""

    group: str
    before: int
    after: int


@dataclass(frozen=True)
class Changed:
    """A row in one of the two only; `why` is what the other coreset's refresh said of it."""

    id: str
    source: str | None
    tokens: int
    text: str
    why: str


@dataclass(frozen=True)
class Difference:
    """entered: rows of `after` that `before` lacks, in the order chosen; left: the reverse."""

    before: str
    after: str
    rows: tuple[int, int]
    kept: int
    entered: list[Changed]
    left: list[Changed]
    sources: list[Mix]
    lengths: list[Mix]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def diff(before: Side, after: Side) -> Difference:
    """ValueError for a refresh that is not recorded."""
    old, new = (side.run.chosen(side.round) for side in (before, after))
    was, now = set(old), set(new)
    return Difference(
        before=before.name,
        after=after.name,
        rows=(len(old), len(new)),
        kept=len(was & now),
        entered=_changed([name for name in new if name not in was], after, before),
        left=_changed([name for name in old if name not in now], before, after),
        sources=_mixes(_sources(before, old), _sources(after, new)),
        lengths=_length_mixes(before, old, after, new),
    )


def last_rounds(run: RunFiles) -> tuple[int, int]:
    """The last two refreshes; ValueError when there is one only."""
    if len(run.rounds) < 2:
        raise ValueError(f"{run.path} has one refresh, {run.rounds[0]}: give a second run to compare with")
    return run.rounds[-2], run.rounds[-1]


def lines(found: Difference, most: int = 10) -> Iterator[str]:
    """For people; of the rows that entered and left the first `most`."""
    yield f"before: {found.before}, {found.rows[0]:,} rows"
    yield f"after:  {found.after}, {found.rows[1]:,} rows"
    yield f"kept {found.kept:,}, entered {len(found.entered):,}, left {len(found.left):,}"
    for title, mixes in (("by source", found.sources), ("by length in tokens", found.lengths)):
        if len(mixes) > 1:
            yield ""
            yield f"{title:<24} {'before':>8} {'after':>8}"
            yield from (f"  {mix.group[:22]:<22} {mix.before:>8,} {mix.after:>8,}" for mix in mixes)
    for title, rows in (("entered", found.entered), ("left", found.left)):
        if rows:
            yield ""
            yield f"{title}:"
        for row in rows[:most]:
            yield f"  {row.id}: {row.text}"
            yield f"    on the other side: {row.why}"
        if len(rows) > most:
            yield f"  and {len(rows) - most:,} more (--json names all)"


def _changed(ids: Sequence[str], here: Side, there: Side) -> list[Changed]:
    if not ids:
        return []
    table = there.run.selection(there.round)
    lines = dict(zip(table["id"].to_pylist(), table.to_pylist(), strict=True))
    size = sum(line["chosen"] for line in lines.values())
    found = []
    for name in ids:
        facts = here.run.pool.slice(here.run.row_of[name], 1).to_pylist()[0]
        text = f"{excerpt([facts['prompt']], 0, SHOWN)} → {excerpt([facts['response']], 0, SHOWN)}"
        why = _why(lines.get(name), size, there, name)
        found.append(Changed(name, facts["source"], facts["tokens"], text, why))
    return found


def _why(line: dict[str, Any] | None, size: int, side: Side, name: str) -> str:
    if name not in side.run.row_of:
        return "not in that run's pool"
    if line is None:
        return "not chosen; not among the rows of a large pool that are recorded"
    nearest = line["representative"]
    return verdict(
        line, size, None if nearest is None else f"{side.run.ids[nearest]} ({_text(side, nearest)})"
    )


def _text(side: Side, row: int) -> str:
    facts = side.run.pool.slice(row, 1).to_pylist()[0]
    return f"{excerpt([facts['prompt']], 0, BRIEFLY)} → {excerpt([facts['response']], 0, BRIEFLY)}"


def _sources(side: Side, ids: Sequence[str]) -> Counter[str]:
    names = side.run.pool["source"].to_pylist()
    return Counter(names[side.run.row_of[name]] or NO_SOURCE for name in ids)


def _mixes(before: Counter[str], after: Counter[str]) -> list[Mix]:
    return [Mix(group, before[group], after[group]) for group in sorted(before | after)]


def _length_mixes(before: Side, old: Sequence[str], after: Side, new: Sequence[str]) -> list[Mix]:
    """By the quartiles of the first run's pool; [choice] both sides by the same, so that they compare."""
    edges = np.unique(np.quantile(before.run.column("tokens"), LENGTHS).astype(int))
    names = [f"up to {edges[0]}", *(f"{a + 1} to {b}" if a + 1 < b else str(b) for a, b in pairwise(edges))]
    names.append(f"above {edges[-1]}")
    counts = []
    for side, ids in ((before, old), (after, new)):
        tokens = side.run.column("tokens")[[side.run.row_of[name] for name in ids]]
        counts.append(np.bincount(np.searchsorted(edges, tokens), minlength=len(names)))
    return [Mix(name, int(a), int(b)) for name, a, b in zip(names, *counts, strict=True)]

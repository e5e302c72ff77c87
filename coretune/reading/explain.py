"""Why was this row chosen, or not, at each refresh? Read from a run directory alone.

print("\\n".join(lines(explain(RunFiles.of("runs/skills"), "row-17"))))
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from coretune.filters import says
from coretune.recording import audit
from coretune.recording.components import CODES, MEANING, OF_CHOSEN
from coretune.recording.run_files import RunFiles, excerpt

SHOWN = 90  # characters of a neighbour's text


@dataclass(frozen=True)
class Component:
    """A part of a row's worth at one refresh.

    value    None where it is not known of this row, as the noise score of one that was measured when noise
             detection was off
    above    the share of the recorded rows that have less of it; of the chosen ones where only they have any;
             None where the value is
    meaning  in words; "" for a component that nobody described
    """

    value: float | None
    above: float | None
    meaning: str


@dataclass(frozen=True)
class Neighbor:
    """A neighbour in the graph: its id, whether it was chosen, its text."""

    id: str
    chosen: bool
    text: str


@dataclass(frozen=True)
class Refresh:
    """What one refresh did with the row.

    round           the refresh's number
    step            the optimiser step before it; None where no config.yaml says how long a round is
    recorded        False where the row was left out of a large pool's sample: then only `chosen` is known
    verdict         one line
    rank, gain      of the pick; None where not chosen
    measured_at     round of the last exact measurement, -1 = never, None = not recorded
    representative  the chosen row that represents it (`representative.py`); None where there is none, or
                    it was chosen itself
    closeness       cosine with it; None where the method goes by distances, which are components
    """

    round: int
    step: int | None
    chosen: bool
    recorded: bool
    verdict: str
    rank: int | None
    gain: float | None
    measured_at: int | None
    components: dict[str, Component]
    representative: Neighbor | None
    closeness: float | None
    neighbors: list[Neighbor]
    serves: str | None = None

    @property
    def measured(self) -> str:
        if self.measured_at is None:
            return "not recorded"
        if self.measured_at == self.round:
            return "measured at this refresh"
        if self.measured_at < 0:
            return "never measured"
        return f"last measured at refresh {self.measured_at}; its values are propagated, or as old as that"


@dataclass(frozen=True)
class Explanation:
    """A row and what every refresh did with it; `copies` are the ids of its near-duplicates."""

    id: str
    source: str | None
    tokens: int
    prompt_tokens: int
    prompt: str
    response: str
    copies: list[str]
    refreshes: list[Refresh]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def explain(run: RunFiles, id: str) -> Explanation:
    """ValueError when the run's pool has no such row."""
    if id not in run.row_of:
        first = ", ".join(run.ids[:3])
        raise ValueError(f"no row {id!r} in the pool of {run.path}: its {len(run.ids):,} ids begin {first}")
    row = run.row_of[id]
    facts = run.pool.slice(row, 1).to_pylist()[0]
    return Explanation(
        id=id,
        source=facts["source"],
        tokens=facts["tokens"],
        prompt_tokens=facts["prompt_tokens"],
        prompt=facts["prompt"],
        response=facts["response"],
        copies=_copies(run, row),
        refreshes=[_refresh(run, round, id) for round in run.rounds],
    )


def lines(found: Explanation) -> Iterator[str]:
    """For people: the row, then a paragraph a refresh; neighbours again only where they changed."""
    source = f"source {found.source}, " if found.source else ""
    yield f"{found.id}: {source}{found.tokens} tokens, {found.prompt_tokens} of them the prompt"
    yield f"  prompt    {' '.join(found.prompt.split())}"
    yield f"  response  {' '.join(found.response.split())}"
    if found.copies:
        yield f"  {len(found.copies)} near-duplicates: {', '.join(found.copies[:8])}" + (
            ", …" if len(found.copies) > 8 else ""
        )
    times = sum(refresh.chosen for refresh in found.refreshes)
    yield f"  chosen at {times} of {len(found.refreshes)} refreshes"
    before: list[str] | None = None
    explained: set[str] = set()  # what a component means is said once
    for refresh in found.refreshes:
        yield ""
        at = "" if refresh.step is None else f", step {refresh.step}"
        yield f"refresh {refresh.round}{at}: {refresh.verdict}"
        if not refresh.recorded:
            continue
        yield f"  {refresh.measured}"
        for name, part in refresh.components.items():
            rows = "chosen rows" if name in OF_CHOSEN else "rows"
            about = f": {part.meaning}" if part.meaning and name not in explained else ""
            explained.add(name)
            if part.value is None or part.above is None:
                yield f"  {name:<14} {'unknown':>12}{about}"
                continue
            yield f"  {name:<14} {part.value:>12.5g}   more than {part.above:.0%} of the {rows}{about}"
        if refresh.serves is not None:
            yield f"  serves         {refresh.serves}"
        if refresh.representative is not None:
            yield f"  represented by {refresh.representative.id}: {refresh.representative.text}"
        names = [neighbor.id for neighbor in refresh.neighbors]
        if names and names == before:
            chosen = sum(neighbor.chosen for neighbor in refresh.neighbors)
            yield f"  neighbours as before, {chosen} of {len(names)} chosen"
        elif names:
            yield "  neighbours, the nearest first:"
            yield from (f"    {_mark(n)} {n.id}: {n.text}" for n in refresh.neighbors)
        before = names


def verdict(line: dict[str, Any], size: int, representative: str | None) -> str:
    """One line of one row at one refresh; `line` as in selection.parquet, `size` = rows chosen."""
    if line["excluded"]:
        return f"may not be chosen: {line['excluded']}"
    if line["chosen"]:
        return f"chosen, number {line['rank'] + 1} of {size}, worth {line['gain']:.4g}"
    found = filtered_out(line["filtered"], line.get(line["filtered"])) if line["filtered"] else "not chosen"
    if representative is None:
        return found
    if line["closeness"] is None:
        return f"{found}; {representative} represents it"
    return f"{found}; {representative} is the nearest chosen row, cosine {line['closeness']:.3f}"


def filtered_out(name: str, score: float | None) -> str:
    """Which filter took a row out, why, and by what score."""
    why = f", {says(name)}" if says(name) else ""
    known = "" if score is None or not np.isfinite(score) else f" (score {score:.3g})"
    return f"filtered out by {name}{known}{why}"


def _refresh(run: RunFiles, round: int, id: str) -> Refresh:
    table = run.selection(round)
    chosen = set(run.chosen(round))
    at = pa.compute.index(table["id"], id).as_py()
    if at < 0:
        text = "not chosen; not among the rows of a large pool that are recorded"
        return Refresh(round, run.step_of(round), False, False, text, None, None, None, {}, None, None, [])
    line = table.slice(at, 1).to_pylist()[0]
    nearest = None if line["chosen"] else _neighbor(run, line["representative"], chosen)
    return Refresh(
        round=round,
        step=run.step_of(round),
        chosen=line["chosen"],
        recorded=True,
        verdict=verdict(line, len(chosen), nearest.id if nearest else None),
        rank=line["rank"],
        gain=line["gain"],
        measured_at=line["measured_at"],
        components=_components(table, line),
        representative=nearest,
        closeness=line["closeness"] if nearest else None,
        neighbors=[n for row in line["neighbors"] or () if (n := _neighbor(run, row, chosen))],
        serves=_serves(run, line),
    )


def _serves(run: RunFiles, line: dict[str, Any]) -> str | None:
    """The example of a target that the row serves, with its text."""
    example = run.served(line)
    if example is None:
        return None
    text = " → ".join(excerpt([example[part]], 0, SHOWN) for part in ("prompt", "response"))
    return f"{example['id']} of {example['target']}: {text}"


def _components(table: pa.Table, line: dict[str, Any]) -> dict[str, Component]:
    found = {}
    for name in table.schema.names:
        if name in audit.FIXED.names or name in CODES or table[name].null_count == len(table):
            continue
        values = table[name].to_numpy()
        if name in OF_CHOSEN:
            if not line["chosen"]:
                continue
            values = values[table["chosen"].to_numpy()]
        meaning = MEANING.get(name, "")
        if line[name] is None or not np.isfinite(line[name]):
            found[name] = Component(None, None, meaning)
            continue
        above = float(np.mean(values[np.isfinite(values)] < np.float32(line[name])))
        found[name] = Component(float(line[name]), above, meaning)
    return found


def _neighbor(run: RunFiles, row: int | None, chosen: set[str]) -> Neighbor | None:
    if row is None:
        return None
    text = f"{_text(run, 'prompt', row)} → {_text(run, 'response', row)}"
    return Neighbor(run.ids[row], run.ids[row] in chosen, text)


def _text(run: RunFiles, column: str, row: int) -> str:
    return excerpt([run.pool[column][row].as_py()], 0, SHOWN)


def _copies(run: RunFiles, row: int) -> list[str]:
    group = run.pool["copies"][row].as_py()
    if group is None:
        return []
    same = np.flatnonzero(run.column("copies") == group)
    return [run.ids[other] for other in same if other != row]


def _mark(neighbor: Neighbor) -> str:
    return "chosen    " if neighbor.chosen else "not chosen"

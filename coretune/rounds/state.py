"""Everything that decides the rounds to come, and how a checkpoint holds it.

checkpoint-40/coreset_state.npz    arrays: features, graph, coreset, what is known of each row
checkpoint-40/coreset_state.json   round, round of the last selection, number of selections, its figures
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from coretune.files import atomic_write, write_json
from coretune.types import Array, Coreset, NeighborGraph, Pool, Reserve

ARRAYS, NUMBERS = "coreset_state.npz", "coreset_state.json"
GRAPH = ("neighbors", "similarity", "built_from")
COUNTS = ("round", "selected_in", "selections", "cursor", "skipped")


@dataclass(frozen=True)
class State:
    """One round of a run.

    round        number of the round this state trains
    selected_in  round of the last selection, -1 while warming up
    selections   how many selections there were
    cursor       rows of the coreset's passes (`order.py`) that were handed out before this round
    skipped      steps of this round that were over before the cursor's place, in a run that was resumed with
                 another batch inside a round
    """

    round: int
    selected_in: int
    selections: int
    pool: Pool
    coreset: Coreset
    cursor: int = 0
    skipped: int = 0


def save(state: State, folder: str | os.PathLike[str]) -> None:
    """Write the two files into the folder; `load` gives back an equal state."""
    pool, coreset, graph = state.pool, state.coreset, state.pool.graph
    arrays: dict[str, Array] = {f"feature/{name}": value for name, value in pool.features.items()}
    arrays |= {f"reference/{name}": value for name, value in pool.references.items()}
    arrays |= {f"pool/{name}": getattr(pool, name) for name in ("cost", "measured_at", "usable")}
    arrays |= {f"coreset/{name}": getattr(coreset, name) for name in ("indices", "weights", "gains")}
    arrays |= {f"reason/{name}": value for name, value in coreset.reasons.items()}
    if coreset.filtered is not None:
        arrays["coreset/filtered"] = coreset.filtered
    if graph is not None:
        arrays |= {f"graph/{name}": getattr(graph, name) for name in GRAPH}
        if graph.reserve is not None:
            arrays |= {
                f"reserve/{field.name}": getattr(graph.reserve, field.name) for field in fields(Reserve)
            }
    with atomic_write(Path(folder) / ARRAYS) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    numbers = {name: getattr(state, name) for name in COUNTS}
    numbers |= {"figures": dict(coreset.figures), "filters": list(coreset.filters)}
    write_json(Path(folder) / NUMBERS, numbers)


def refuse_without(folder: str | os.PathLike[str]) -> None:
    """FileNotFoundError when the folder holds no coreset state."""
    if not (Path(folder) / NUMBERS).is_file():
        raise FileNotFoundError(
            f"{os.fspath(folder)} holds no {NUMBERS}, so it is no checkpoint of a run on a coreset: "
            "give one that is, or start anew"
        )


def load(folder: str | os.PathLike[str]) -> State:
    """Read what `save` wrote; FileNotFoundError when the folder holds no coreset state."""
    refuse_without(folder)
    numbers = json.loads((Path(folder) / NUMBERS).read_text(encoding="utf-8"))
    groups: dict[str, dict[str, Array]] = {
        name: {} for name in ("feature", "reference", "pool", "coreset", "reason", "graph", "reserve")
    }
    with np.load(Path(folder) / ARRAYS) as arrays:
        for key in arrays.files:
            group, name = key.split("/", 1)
            groups[group][name] = arrays[key]
    reserve = Reserve(**groups["reserve"]) if groups["reserve"] else None
    graph = NeighborGraph(**groups["graph"], reserve=reserve) if groups["graph"] else None
    known = groups["pool"]
    pool = Pool(
        features=groups["feature"],
        cost=known["cost"],
        measured_at=known["measured_at"],
        usable=known["usable"],
        graph=graph,
        references=groups["reference"],
    )
    figures, filters = numbers.pop("figures"), tuple(numbers.pop("filters"))
    chosen = groups["coreset"]
    coreset = Coreset(
        chosen["indices"],
        chosen["weights"],
        chosen["gains"],
        groups["reason"],
        figures,
        filters,
        chosen.get("filtered"),
    )
    return State(pool=pool, coreset=coreset, **numbers)


def broadcast_parts(now: State, before: State | None) -> tuple[dict[str, int], Coreset | None]:
    """What another process needs of the state: its counts, and its coreset when it is a new one."""
    chosen = now.coreset
    known = before is not None and before.coreset is chosen
    slim = None if known else Coreset(chosen.indices, chosen.weights, chosen.gains)
    return {name: getattr(now, name) for name in COUNTS}, slim


def from_broadcast(parts: tuple[dict[str, int], Coreset | None], before: State | None, pool: Pool) -> State:
    """The state on a process that received `broadcast_parts` and knows of the pool only the costs."""
    counts, coreset = parts
    if coreset is None:
        assert before is not None
        coreset = before.coreset
    return State(pool=pool, coreset=coreset, **counts)

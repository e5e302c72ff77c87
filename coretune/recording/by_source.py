"""The loss of the pool's rows by source, as it is known at each selection: RUN/_coretune/losses.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from coretune.files import read_json, write_json
from coretune.recording.run_files import LOSSES
from coretune.rounds.state import State
from coretune.types import Array

SOURCES = 16  # by name; the rest is one group
OTHERS, NO_SOURCE = "other sources", "no source"


def largest(source: Iterable[str | None]) -> tuple[list[str], Array]:
    """Names of the largest sources, and which of them each row is of: (n,) int64."""
    names = [name or NO_SOURCE for name in source]
    kept = [name for name, _ in Counter(names).most_common(SOURCES + 1)]
    if len(kept) > SOURCES:
        kept = [*kept[:SOURCES], OTHERS]
    place = {name: number for number, name in enumerate(kept)}
    return kept, np.array([place.get(name, place.get(OTHERS, 0)) for name in names], np.int64)


def record_losses(folder: Path, state: State, source: Iterable[str | None] | None) -> None:
    """Add this selection's mean losses, where losses are measured at all.

    A run that goes on from an earlier selection writes the later ones anew.
    """
    loss = state.pool.features.get("loss")
    if loss is None:
        return
    names, group = largest([None] * state.pool.n if source is None else source)
    known = np.isfinite(loss)
    rows = np.bincount(group[known], minlength=len(names))
    total = np.bincount(group[known], weights=loss[known], minlength=len(names))
    now: dict[str, Any] = {
        "round": state.round,
        "rows": rows.tolist(),
        "loss": [round(float(t / n), 5) if n else None for t, n in zip(total, rows, strict=True)],
        "measured": int((state.pool.measured_at == state.round).sum()),
    }
    path = folder / LOSSES
    before = read_json(path)["selections"] if path.is_file() else []
    kept = [one for one in before if one["round"] < state.round]
    write_json(path, {"names": names, "selections": [*kept, now]})

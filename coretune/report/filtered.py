"""What each filter took out at each refresh, with examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from coretune.filters import says
from coretune.recording.run_files import RunFiles, excerpt

EXAMPLES = 3  # of a filter, those of highest score
BRIEFLY = 110  # characters of a text
PREFIX = "filtered_"  # of the ledger's figures


def filtered(run: RunFiles, rounds: Sequence[int]) -> list[dict[str, int]]:
    """A dict a refresh: filter -> rows of the whole pool that it took out, as the ledger has them."""
    said = {entry["round"]: entry.get("selection", {}) for entry in run.ledger.get("rounds", [])}
    return [
        {
            name.removeprefix(PREFIX): int(value)
            for name, value in said.get(number, {}).items()
            if name.startswith(PREFIX)
        }
        for number in rounds
    ]


def examples(run: RunFiles, round: int, names: Sequence[str]) -> list[dict[str, Any]]:
    """Of one refresh a dict a filter: name, why in words, and recorded rows with their text and score."""
    table = run.selection(round)
    return [{"name": name, "says": says(name), "rows": _rows(run, table, name)} for name in names]


def _rows(run: RunFiles, table: pa.Table, name: str) -> list[dict[str, Any]]:
    out = table.filter(pc.equal(table["filtered"], name))
    scores = out[name].to_numpy() if name in out.schema.names else np.zeros(len(out))
    highest = np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")[:EXAMPLES]
    found = []
    for at in highest:
        row = run.row_of[out["id"][int(at)].as_py()]
        text = " → ".join(
            excerpt([run.pool[part][row].as_py()], 0, BRIEFLY) for part in ("prompt", "response")
        )
        score = float(f"{scores[at]:.3g}") if np.isfinite(scores[at]) else None
        found.append({"id": run.ids[row], "text": text, "score": score})
    return found

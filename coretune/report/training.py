"""What training met: loss by source, steps that stood out, rows that were left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from coretune.recording.run_files import RunFiles, excerpt

SPIKES = 12  # shown, the highest against what was usual first
BRIEFLY = 160  # characters of a text


def source_losses(run: RunFiles, rounds: Sequence[int]) -> dict[str, Any] | None:
    """names; a line a selection shown: its losses by name; table: name, rows, loss at the first and the last
    selection, of each source of which it is known at both. None where no loss was measured."""
    known = {one["round"]: one for one in run.losses.get("selections", [])}
    shown = [known[number]["loss"] if number in known else None for number in rounds]
    if not known:
        return None
    first, last = known[min(known)], known[max(known)]
    table = [
        {"name": name, "rows": last["rows"][i], "before": first["loss"][i], "after": last["loss"][i]}
        for i, name in enumerate(run.losses["names"])
        if first["loss"][i] is not None and last["loss"][i] is not None
    ]
    return {"names": run.losses["names"], "selections": shown, "table": table}


def spikes(run: RunFiles) -> list[dict[str, Any]]:
    """In the order of their steps, each row with its text."""
    worst = sorted(run.spikes, key=lambda one: -one["loss"] / max(one["usual"], 1e-9))[:SPIKES]
    return [{**one, "rows": _rows(run, one)} for one in sorted(worst, key=lambda one: int(one["step"]))]


def _rows(run: RunFiles, spike: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for name, loss in zip(spike["rows"], spike["losses"], strict=True):
        row = run.row_of.get(name)
        texts = [] if row is None else [run.pool[part][row].as_py() for part in ("prompt", "response")]
        found.append(
            {"id": name, "loss": loss, "text": excerpt([" → ".join(filter(None, texts))], 0, BRIEFLY)}
        )
    return found

"""The examples of the targets, each with the rows that were chosen for it."""

from __future__ import annotations

from typing import Any

from coretune.recording.run_files import RunFiles, excerpt
from coretune.types import SERVES, TARGET_SIMILARITY

EXAMPLES = 100  # shown, the first of them
ROWS = 4  # of an example, in the order chosen
BRIEFLY = 110  # characters of a text


def served(run: RunFiles, round: int) -> list[dict[str, Any]]:
    """Of one refresh a dict an example: id, target, text, count of chosen rows that serve it, some of them.

    [] for a run without a target, or whose method does not choose by it.
    """
    table = run.selection(round)
    if not run.examples or SERVES not in table.column_names:
        return []
    columns = ["id", "rank", SERVES, TARGET_SIMILARITY]
    lines = table.filter(table["chosen"]).select(columns).sort_by("rank").to_pylist()
    of: list[list[dict[str, Any]]] = [[] for _ in run.examples]
    for line in lines:
        if line[SERVES] is not None and 0 <= line[SERVES] < len(of):
            of[int(line[SERVES])].append(line)
    return [
        {
            "id": example["id"],
            "target": example["target"],
            "text": _text(example),
            "count": len(some),
            "rows": [_row(run, line) for line in some[:ROWS]],
        }
        for example, some in zip(run.examples[:EXAMPLES], of, strict=False)
    ]


def _row(run: RunFiles, line: dict[str, Any]) -> dict[str, Any]:
    row = run.row_of[line["id"]]
    text = _text({part: run.pool[part][row].as_py() for part in ("prompt", "response")})
    return {"id": line["id"], "text": text, "similarity": float(f"{line[TARGET_SIMILARITY]:.3g}")}


def _text(parts: dict[str, str]) -> str:
    return " → ".join(excerpt([parts[part]], 0, BRIEFLY) for part in ("prompt", "response"))

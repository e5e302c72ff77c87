"""`targets.json`: the examples of a run's targets, so that a reader can say whom a chosen row serves."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from coretune.files import write_json
from coretune.recording.run_files import TARGETS
from coretune.recording.run_record import Decode, excerpts
from coretune.rounds.targets import Target, TargetExamples
from coretune.types import SERVES, TARGET_SIMILARITY, Array


def record_targets(folder: str | os.PathLike[str], targets: Sequence[Target], decode: Decode) -> None:
    """Examples in the order of their numbers (component `serves`), their texts as excerpts."""
    rows = TargetExamples(tuple(targets))
    texts = excerpts(rows, decode)
    examples = [
        {"id": name, "target": targets[of].name, "prompt": prompt, "response": response}
        for name, of, prompt, response in zip(
            rows.ids, rows.of, texts["prompt"], texts["response"], strict=True
        )
    ]
    shares = {target.name: float(share) for target, share in zip(targets, rows.share, strict=True)}
    write_json(Path(folder) / TARGETS, {"shares": shares, "examples": examples})


def served_by(
    reasons: Mapping[str, Array], targets: Sequence[Target], row: int
) -> dict[str, str | float] | None:
    """The example that a row serves: its id, its target, their similarity; None where nothing says so."""
    if SERVES not in reasons or not reasons[SERVES][row] >= 0:
        return None
    rows, number = TargetExamples(tuple(targets)), int(reasons[SERVES][row])
    target = targets[int(rows.of[number])].name
    return {"id": rows.ids[number], "target": target, "similarity": float(reasons[TARGET_SIMILARITY][row])}

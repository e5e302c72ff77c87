"""What became of the rows of train_data that were read: RUN/_coretune/rows.json."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from coretune.files import write_json
from coretune.recording.run_files import ROWS


def by_reason(dropped: Iterable[tuple[str, str]]) -> list[tuple[int, str, str]]:
    """(rows, place of the first, its reason), the most frequent first; reasons that differ in what they quote
    and in numbers alone are one."""
    firsts: dict[str, tuple[str, str]] = {}
    counts: Counter[str] = Counter()
    for place, reason in dropped:
        kind = re.sub(r"'[^']*'|\"[^\"]*\"|\d[\d,.]*", "…", reason)
        firsts.setdefault(kind, (place, reason))
        counts[kind] += 1
    return [(count, *firsts[kind]) for kind, count in counts.most_common()]


def write_account(
    folder: Path,
    kept: int,
    dropped: Sequence[tuple[str, str]],
    left_out: Mapping[str, int],
    cut: int,
    notes: Sequence[str],
) -> None:
    """kept: rows that are trained on or held out; dropped: (place, reason) of bad ones; left_out: reason ->
    rows that say themselves that they are not to be trained on; cut: prompts; notes: what is not used."""
    bad = [{"rows": rows, "reason": reason, "first": first} for rows, first, reason in by_reason(dropped)]
    said = [{"rows": rows, "reason": reason, "first": None} for reason, rows in left_out.items()]
    write_json(folder / ROWS, {"kept": kept, "out": [*bad, *said], "cut": cut, "notes": list(notes)})

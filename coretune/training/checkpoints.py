"""Checkpoints that can be gone on from: whole, and of the very same run.

    checkpoint-40/coretune_checkpoint.json   what the run is of, its batches, and every file with its size

Written when all else but trainer_state.json is there, which the stock trainer writes last. So a checkpoint is
whole when this file is there, all it lists is there, and trainer_state.json can be read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from coretune.files import write_json
from coretune.rounds.schedule import Clock
from coretune.storing.fingerprint import checksum

NOTE = "coretune_checkpoint.json"
STOCK_LAST = "trainer_state.json"
_NUMBERED = re.compile(r"checkpoint-(\d+)")
REMEDIES = {
    "data": "give the rows the run began with, in their order",
    "target": "give the target the run began with",
    "tokenizer": "give the tokenizer the run began with",
    "model": "give the model the run began with, as it was before training",
    "adapter": "give the adapter's settings the run began with",
}


@dataclass(frozen=True)
class Note:
    """What a checkpoint says of its run.

    parts      fingerprint's part -> hex
    settings   every setting of the coreset and of the measurement -> its value as text
    clock      the rounds' length
    batches    rows a process takes a micro-batch, micro-batches a step, processes
    max_steps  of the whole run
    """

    parts: Mapping[str, str]
    settings: Mapping[str, str]
    clock: Clock
    batches: tuple[int, int, int]
    max_steps: int


def write_note(folder: str | os.PathLike[str], note: Note) -> None:
    """The note and the list of all files that are in the folder now. At any kill it is there whole or not."""
    root = Path(folder)
    files = {
        path.relative_to(root).as_posix(): path.stat().st_size
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in (NOTE, STOCK_LAST)
    }
    write_json(root / NOTE, {**asdict(note), "files": files}, indent=1)


def read_note(folder: str | os.PathLike[str]) -> Note:
    """The note of a whole checkpoint; ValueError says what is missing of one that is not."""
    reason = why_not_whole(folder)
    if reason is not None:
        raise ValueError(f"{os.fspath(folder)} is not whole: {reason}; give another checkpoint")
    found = json.loads((Path(folder) / NOTE).read_text(encoding="utf-8"))
    clock, batches = Clock(**found["clock"]), tuple(found["batches"])
    return Note(found["parts"], found["settings"], clock, batches, found["max_steps"])


def why_not_whole(folder: str | os.PathLike[str]) -> str | None:
    """What is missing of this checkpoint; None when it is whole."""
    root = Path(folder)
    try:
        files = json.loads((root / NOTE).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return f"it has no {NOTE} (its writing was cut short, or save_only_model left out what goes on)"
    except (ValueError, KeyError):
        return f"{NOTE} cannot be read"
    for name, size in files.items():
        path = root / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes and had {size}"
    try:
        json.loads((root / STOCK_LAST).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return f"{STOCK_LAST} is missing or was cut short"
    return None


def newest_whole(output_dir: str | os.PathLike[str]) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The checkpoint of the highest step that is whole, and those above it that are not, with the reasons."""
    numbered = {
        int(found[1]): path
        for path in (Path(output_dir).iterdir() if Path(output_dir).is_dir() else ())
        if (found := _NUMBERED.fullmatch(path.name)) and path.is_dir()
    }
    passed_over: list[tuple[Path, str]] = []
    for _, path in sorted(numbered.items(), reverse=True):
        reason = why_not_whole(path)
        if reason is None:
            return path, passed_over
        passed_over.append((path, reason))
    return None, passed_over


def refuse_another_run(folder: str | os.PathLike[str], then: Note, now: Note) -> None:
    """ValueError naming each part that differs, with both fingerprints, and each setting with both values."""
    faults = [
        f"{name} {_short(then.parts.get(name))} there and {_short(now.parts.get(name))} here "
        f"({REMEDIES.get(name, 'give what the run began with')})"
        for name in sorted({**then.parts, **now.parts})
        if then.parts.get(name) != now.parts.get(name)
    ]
    changed = [
        f"{name} {then.settings.get(name, 'not set')}, here {now.settings.get(name, 'not set')}"
        for name in {**then.settings, **now.settings}
        if then.settings.get(name) != now.settings.get(name)
    ]
    if changed:
        both = [_short(checksum(json.dumps(dict(note.settings)).encode())) for note in (then, now)]
        faults.append(f"settings {both[0]} there and {both[1]} here ({'; '.join(changed)})")
    if faults:
        raise ValueError(f"{os.fspath(folder)} is of another run: {'; '.join(faults)}")


def settings_of(*objects: object) -> dict[str, str]:
    """Every field of these frozen dataclasses and of those within them, as text."""
    found: dict[str, str] = {}
    for item in objects:
        found |= _flat(item, "")
    return found


def _flat(item: Any, prefix: str) -> dict[str, str]:
    if not is_dataclass(item):
        return {prefix.rstrip("."): repr(item)}
    found = {f"{prefix}kind": type(item).__qualname__} if prefix else {}
    for field in fields(item):
        found |= _flat(getattr(item, field.name), f"{prefix}{field.name}.")
    return found


def _short(fingerprint: str | None) -> str:
    return "not given" if fingerprint is None else fingerprint[:16]

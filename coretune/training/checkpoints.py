"""Checkpoints that can be gone on from: whole, unchanged since they were written, and of the very same run.

    checkpoint-40/coretune_checkpoint.json   what the run is of, its batches, and every file with its checksum

Written when all else but trainer_state.json is there, which the stock trainer writes last; its checksum is
added after that. A checkpoint is whole when every file listed has its bytes, and trainer_state.json is of the
step that was saved. The checksums are xxh3: they find damage, at some ten gigabytes a second, not forgery.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import xxhash

from coretune.files import write_json
from coretune.recording.run_files import checkpoints_of
from coretune.rounds.schedule import Schedule
from coretune.storing.fingerprint import checksum

RECORD = "coretune_checkpoint.json"
STOCK_LAST = "trainer_state.json"
_FILES, _DIGEST, _STEP, _WEIGHTS = "files", "digest", "step", "weights"
_CHUNK = 1 << 22  # bytes
REMEDIES = {
    "data": "give the rows the run began with, in their order",
    "sources": "give each row the source it had, which the quota goes by",
    "target": "give the target the run began with",
    "tokenizer": "give the tokenizer the run began with",
    "model": "give the model the run began with, as it was before training",
    "adapter": "give the adapter's settings the run began with",
}


@dataclass(frozen=True)
class CheckpointRecord:
    """What a checkpoint says of its run.

    parts      fingerprint's part -> hex
    settings   every setting that decides what the run becomes -> its value as text: of the coreset, of the
               measurement, of the model's config, of the trainer
    schedule   the rounds' length
    batches    rows a process takes a micro-batch, micro-batches a step, processes
    max_steps  of the whole run
    around     what may change within a run, and is named where it does: versions, devices, memory savings
    """

    parts: Mapping[str, str]
    settings: Mapping[str, str]
    schedule: Schedule
    batches: tuple[int, int, int]
    max_steps: int
    around: Mapping[str, str] = field(default_factory=dict)


def write_record(
    folder: str | os.PathLike[str], content: Mapping[str, Any], step: int, weights: Mapping[str, str]
) -> None:
    """Write the record: content, step, checksums of the trained weights and of all files that are there now.

    At any kill it is there whole or not.
    """
    root = Path(folder)
    files = {
        path.relative_to(root).as_posix(): _sum_of(path)
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in (RECORD, f"{RECORD}.part", STOCK_LAST)
    }
    _write(root, {**content, _STEP: step, _WEIGHTS: dict(weights), _FILES: files})


def add_trainer_state(folder: str | os.PathLike[str]) -> None:
    """Add trainer_state.json, which is written by now; a kill before this leaves it unlisted."""
    root = Path(folder)
    if (root / RECORD).is_file():
        found = _read(root)
        _write(root, {**found, _FILES: {**found[_FILES], STOCK_LAST: _sum_of(root / STOCK_LAST)}})


def read_record(folder: str | os.PathLike[str]) -> CheckpointRecord:
    """The record of a whole checkpoint; ValueError says what is missing or damaged of one that is not."""
    reason = why_not_whole(folder)
    if reason is not None:
        raise ValueError(f"{os.fspath(folder)} is not whole: {reason}; give another checkpoint")
    return whole_record(folder)


def whole_record(folder: str | os.PathLike[str]) -> CheckpointRecord:
    """The record of a checkpoint that was found whole."""
    return _record_of(_read(Path(folder)))


def _record_of(found: Mapping[str, Any]) -> CheckpointRecord:
    """TypeError, KeyError: another version of coretune wrote it."""
    given = {name: found[name] for name in ("parts", "settings", "max_steps", "around")}
    return CheckpointRecord(**given, schedule=Schedule(**found["schedule"]), batches=tuple(found["batches"]))


def saved_weights(folder: str | os.PathLike[str]) -> dict[str, str]:
    """Trained parameter -> checksum as it was in memory; empty where weights were not in one piece, or the
    folder is no checkpoint of ours."""
    root = Path(folder)
    return dict(_read(root)[_WEIGHTS]) if (root / RECORD).is_file() else {}


def why_not_whole(folder: str | os.PathLike[str]) -> str | None:
    """What is missing, damaged or unreadable of this checkpoint; None when it is whole. Reads every byte."""
    root = Path(folder)
    try:
        found = _read(root)
    except FileNotFoundError:
        return f"it has no {RECORD} (its writing was cut short, or save_only_model left out what goes on)"
    except ValueError:
        return f"{RECORD} cannot be read: it is damaged, or of another version of coretune"
    except OSError as error:
        return _unreadable(root / RECORD, error)
    if not _understood(found):
        return f"{RECORD} is of another version of coretune: go on with that version"
    try:
        return _damage(root, found)
    except OSError as error:
        return _unreadable(Path(error.filename or root), error)


def _understood(found: Mapping[str, Any]) -> bool:
    """A warm-up run's record says of files, step and weights alone; a run's what decides it, too."""
    if "parts" not in found:
        return {_FILES, _STEP, _WEIGHTS} <= set(found)
    try:
        _record_of(found)
    except (KeyError, TypeError):
        return False
    return {_FILES, _STEP, _WEIGHTS} <= set(found)


def _unreadable(path: Path, error: OSError) -> str:
    return f"{path.name} cannot be read ({error.strerror or error})"


def _damage(root: Path, found: Mapping[str, Any]) -> str | None:
    """What is missing or damaged of the files that the record lists."""
    files: Mapping[str, tuple[int, str]] = found[_FILES]
    for name, (size, _) in files.items():  # sizes of all first: they cost nothing
        path = root / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes and had {size}"
    for name, (_, digest) in files.items():
        if _sum_of(root / name)[1] != digest:
            return f"{name} is damaged: its content is not what was written"
    try:
        step = json.loads((root / STOCK_LAST).read_text(encoding="utf-8"))["global_step"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return f"{STOCK_LAST} is missing or was cut short"
    if step != found[_STEP]:
        return f"{STOCK_LAST} is damaged: its global_step is {step}, and step {found[_STEP]} was saved"
    return None


def newest_whole(output_dir: str | os.PathLike[str]) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The checkpoint of the highest step that is whole, and those above it that are not, with the reasons."""
    passed_over: list[tuple[Path, str]] = []
    for path in reversed(checkpoints_of(output_dir)):
        reason = why_not_whole(path)
        if reason is None:
            return path, passed_over
        passed_over.append((path, reason))
    return None, passed_over


def refuse_another_run(folder: str | os.PathLike[str], then: CheckpointRecord, now: CheckpointRecord) -> None:
    """ValueError naming each part that differs, with both fingerprints, and each setting with both values."""
    faults = [
        f"{name} {_short(then.parts.get(name))} there and {_short(now.parts.get(name))} here "
        f"({REMEDIES.get(name, 'give what the run began with')})"
        for name in sorted({**then.parts, **now.parts})
        if then.parts.get(name) != now.parts.get(name)
    ]
    if changed := changes(then.settings, now.settings):
        both = [_short(checksum(json.dumps(dict(record.settings)).encode())) for record in (then, now)]
        faults.append(f"settings {both[0]} there and {both[1]} here ({'; '.join(changed)})")
    if faults:
        raise ValueError(f"{os.fspath(folder)} is of another run: {'; '.join(faults)}")


def changes(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What differs, each with both values."""
    return [
        f"{name} {then.get(name, 'not set')}, here {now.get(name, 'not set')}"
        for name in {**then, **now}
        if then.get(name) != now.get(name)
    ]


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
    for one in fields(item):
        found |= _flat(getattr(item, one.name), f"{prefix}{one.name}.")
    return found


def _short(fingerprint: str | None) -> str:
    return "not given" if fingerprint is None else fingerprint[:16]


def _sum_of(path: Path) -> tuple[int, str]:
    """Bytes and checksum of a file."""
    digest, size = xxhash.xxh3_128(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def _read(root: Path) -> dict[str, Any]:
    """The record's content. FileNotFoundError; ValueError where it is cut or changed."""
    found: dict[str, Any] = json.loads((root / RECORD).read_text(encoding="utf-8"))
    if not isinstance(found, dict) or found.pop(_DIGEST, None) != _digest_of(found):
        raise ValueError(f"{root / RECORD} is damaged")
    return found


def _write(root: Path, content: Mapping[str, Any]) -> None:
    write_json(root / RECORD, {**content, _DIGEST: _digest_of(content)}, indent=1)


def _digest_of(content: Mapping[str, Any]) -> str:
    return checksum(json.dumps(content, sort_keys=True).encode())

"""A config for TRL's command, Axolotl or LLaMA-Factory: one line says what each of its keys is here."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from coretune.other_tools_keys import LEAVE, LEAVE_IN_AN_ENTRY, WRITE, WRITE_IN_AN_ENTRY

#: Keys of the top whose entries have keys of their own.
WITH_ENTRIES = ("datasets", "test_datasets", "pretraining_dataset")


def answer(given: Mapping[Any, Any], training: Collection[str], paths: Iterable[str] = ()) -> str | None:
    """A line that answers unknown keys; None where none of them is another tool's.

    given     unknown key -> its value
    training  keys of `training`, which these tools have at the top
    paths     of all keys that are known here, for one that is misspelt
    """
    keys = [str(key) for key in given]
    below = [key for key in keys if key in training and key not in WRITE and key not in LEAVE]
    rest = [key for key in keys if key not in below]
    parts, others = _parts(rest, WRITE, LEAVE)
    if not parts and len(below) < 2:
        return None
    parts += [f"put below training: {', '.join(below)}"] if below else []
    entries = dict.fromkeys(key for name in WITH_ENTRIES for key in _entry_keys(given.get(name)))
    inner, _ = _parts(list(entries), WRITE_IN_AN_ENTRY, LEAVE_IN_AN_ENTRY)
    parts += [f"in the entries of datasets: {', '.join(inner)}"] if inner else []
    parts += [f"unknown: {', '.join(_hinted(others, [*paths, *training]))}"] if others else []
    return f"{'; '.join(parts)} (docs/coming-from.md)"


def answer_entry(keys: Iterable[str]) -> str | None:
    """The same of the unknown keys of an entry of train_data."""
    parts, others = _parts(list(keys), WRITE_IN_AN_ENTRY, LEAVE_IN_AN_ENTRY)
    parts += [f"unknown: {', '.join(others)}"] if parts and others else []
    return "; ".join(parts) or None


def _parts(
    keys: Sequence[str], write: Mapping[str, str], leave: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """What to do with the keys that are known there, those of one reason together; and the other keys."""
    written: dict[str, list[str]] = {}
    left: dict[str, list[str]] = {}
    others = []
    for key in keys:
        if (text := _found(key, write)) is not None:
            written.setdefault(text, []).append(key)
        elif (text := _found(key, leave)) is not None:
            left.setdefault(text, []).append(key)
        else:
            others.append(key)
    parts = [f"{', '.join(names)} → {text}" for text, names in written.items()]
    return parts + [f"leave out {', '.join(names)} ({text})" for text, names in left.items()], others


def _found(key: str, table: Mapping[str, str]) -> str | None:
    """The text of a key by its name, else by the first pattern that it fits."""
    if key in table:
        return table[key]
    return next((text for name, text in table.items() if "*" in name and fnmatchcase(key, name)), None)


def _entry_keys(value: Any) -> list[str]:
    entries = value if isinstance(value, list) else [value]
    return [str(key) for entry in entries if isinstance(entry, Mapping) for key in entry]


def _hinted(keys: Iterable[str], paths: Sequence[str]) -> list[str]:
    """The keys, each with the path of the known one that it is nearest to."""
    known = {name: name for name in (*WRITE, *LEAVE)} | {path.rpartition(".")[2]: path for path in paths}
    near = {key: get_close_matches(key, known, 1, 0.8) for key in keys}
    return [f"{key} (did you mean {known[found[0]]!r}?)" if found else key for key, found in near.items()]

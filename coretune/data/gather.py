"""The rows of all files in one, as they are read, and what is known of them: formats, columns, contents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path

import pyarrow as pa

from coretune.data.finding import Found, read_found
from coretune.data.formats import is_verdict, listed
from coretune.data.raw import CorpusError, Row
from coretune.data.recognise import filled_columns, recognise, unused
from coretune.escaping import shown

BLOCK = 1000  # rows held in memory at a time
RAW = pa.schema(
    [
        ("record", pa.string()),
        ("meant", pa.string()),
        ("problem", pa.string()),
        ("file", pa.string()),
        ("unit", pa.string()),
        ("number", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Known:
    """What is known of the rows as they were read.

    formats   file -> its format
    contents  of what was read, a digest
    notes, absent  as in `Account`
    """

    formats: dict[str, str]
    contents: str
    notes: list[str]
    absent: list[str]


def columns_of(every: Sequence[Found], columns: Mapping[str, str]) -> dict[str, Mapping[str, str]]:
    """File, as its rows name it -> its `columns`."""
    own = {label: each.source.columns for each in every for label in each.labels}
    return {label: columns if theirs is None else theirs for label, theirs in own.items()}


def write_raw(
    every: Sequence[Found],
    columns: Mapping[str, str],
    template: str | None,
    target: Path,
    first: int | None = None,
) -> Known:
    """Raw rows to `target`, the first so many or all; template: the tokenizer's for chats."""
    filled: dict[str, Counter[frozenset[str]]] = {}
    found: dict[str, set[str]] = {}
    classes: set[str] = set()  # files of which a `label` is not KTO's
    taken: list[str] = []
    contents = blake2b(digest_size=16)
    mapping = columns_of(every, columns)
    with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_stream(sink, RAW) as writer:
        for block in _blocks(islice(read_found(every, taken.append), first)):
            for row in block:
                if row.record is not None:
                    names = filled_columns(row.record, mapping[row.file])
                    filled.setdefault(row.file, Counter())[names] += 1
                    found.setdefault(row.file, set()).update(row.record)
                    if row.record.get("label") is not None and not is_verdict(row.record["label"]):
                        classes.add(row.file)
                contents.update(repr((row.place, row.text, row.meant, row.problem)).encode())
            parts = [(row.text, row.meant, row.problem, row.file, row.unit, row.number) for row in block]
            writer.write_batch(pa.record_batch(list(map(list, zip(*parts, strict=True))), schema=RAW))
    formats = {file: recognise(file, filled[file], found[file], mapping[file]) for file in filled}
    idle = {
        file: unused(format, found[file], mapping[file], template, file not in classes)
        for file, format in formats.items()
    }
    notes = [each.note for each in every if each.note is not None]
    if first is None:
        _refuse_absent(every, found)
    return Known(
        formats, contents.hexdigest(), [*notes, *taken, *_unused(idle)], _absent(found, columns, mapping)
    )


def _absent(
    found: Mapping[str, set[str]], columns: Mapping[str, str], mapping: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """Keys of the config's `columns` whose column none of the files that go by them has."""
    every = set().union(*(names for file, names in found.items() if mapping[file] is columns))
    return [name for name, column in columns.items() if column not in every] if found else []


def _refuse_absent(every: Sequence[Found], found: Mapping[str, set[str]]) -> None:
    """CorpusError for a column that an entry's own `columns` names and none of its rows has."""
    for each in every:
        there = set().union(*(found.get(label, ()) for label in each.labels))
        for name, column in (each.source.columns or {}).items():
            if there and column not in there:
                raise CorpusError(
                    f"columns.{name} of {each.source.path} is {column!r}, and no row of it has that column: "
                    "correct it, or leave it out"
                )


def _unused(idle: Mapping[str, Sequence[str]]) -> list[str]:
    """A line for the columns that files do not use; files of the same are named together."""
    files: dict[tuple[str, ...], list[str]] = {}
    for file, names in idle.items():
        files.setdefault(tuple(names), []).append(file)
    return [
        f"{named[0]}{f' and {len(named) - 1} more' if len(named) > 1 else ''}: columns that are not used: "
        f"{listed(shown(name) or '(one without a name)' for name in names)}"
        for names, named in files.items()
        if names
    ]


def _blocks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    block = []
    for row in rows:
        block.append(row)
        if len(block) == BLOCK:
            yield block
            block = []
    if block:
        yield block

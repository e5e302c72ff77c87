"""One raw row: a record, where it came from, and the text it can be restored from."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

EXTENSIONS = (
    ".json",
    ".jsonl",
    ".ndjson",
    ".csv",
    ".tsv",
    ".parquet",
    ".arrow",
)  # of the files that are read
TEXTS = EXTENSIONS[:5]  # which may be compressed
COMPRESSIONS = (".gz", ".zst", ".bz2")  # that are read; by the name
ENDINGS = (*EXTENSIONS, *(text + packed for text in TEXTS for packed in COMPRESSIONS))


class CorpusError(ValueError):
    """The training data cannot be used as it is; the message says where, why, and what to do."""


class BadRow(Exception):
    """This row cannot be trained on; the text is the reason."""


class LeftOut(BadRow):
    """This row says itself that it is not to be trained on: it is counted, and needs no correction."""


@dataclass(frozen=True)
class Row:
    """One raw row.

    file     name as users see it: the file's base name, or the hub id
    unit     "line" in jsonl and csv (the first line of a csv row), "row" elsewhere; both count from 1
    number   that line or row
    text     the record as JSON; in jsonl the very line of the file
    record   the record, or None when `problem` says why there is none
    problem  why there is no record
    meant    the record as JSON without the nulls that its file filled in; None where there are none
    """

    file: str
    unit: str
    number: int
    text: str | None = None
    record: dict[str, Any] | None = None
    problem: str | None = None
    meant: str | None = None

    @property
    def place(self) -> str:
        return f"{self.file} {self.unit} {self.number}"


def row_of_value(file: str, number: int, value: object, meant: object = None) -> Row:
    """A row that came as a Python value; dates and durations are kept as ISO 8601 text, decimals as text."""
    if not isinstance(value, dict):
        return Row(file, "row", number, problem=not_an_object(value))
    try:
        text = json.dumps(value, default=_as_text)
    except (TypeError, ValueError, RecursionError) as error:
        return Row(file, "row", number, problem=_not_json(value, error))
    return Row(
        file, "row", number, text, value, meant=None if meant is None else json.dumps(meant, default=_as_text)
    )


def _not_json(record: dict[str, Any], error: Exception) -> str:
    """Which column it is that JSON cannot hold."""
    for name, value in record.items():
        try:
            json.dumps(value, default=_as_text)
        except (TypeError, ValueError, RecursionError) as found:
            return (
                f"`{name}` cannot be written as JSON ({found}), as rows are kept: write the file without "
                "that "
                "column, or with text in it"
            )
    return f"not writable as JSON ({error}); write the file anew"


def _as_text(value: object) -> str:
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, timedelta):
        return f"PT{value.total_seconds():.6f}".rstrip("0").rstrip(".") + "S"
    if isinstance(value, (Decimal, UUID)):
        return str(value)
    raise TypeError(f"a value is {type(value).__name__}")


def json_line(record: dict[str, Any]) -> tuple[str, int]:
    """The record as valid JSON that any file takes, and how many numbers JSON has not: they are written null.

    Text that UTF-8 cannot hold (half a surrogate pair) is written as the escape that it came as.
    """
    try:
        text, count = json.dumps(record, ensure_ascii=False, allow_nan=False), 0
    except ValueError:
        counted = _Finite()
        text, count = json.dumps(counted.of(record), ensure_ascii=False, allow_nan=False), counted.count
    return (text if is_unicode(text) else json.dumps(json.loads(text))), count


class _Finite:
    """A value with null for each number that is not finite; they are counted."""

    def __init__(self) -> None:
        self.count = 0

    def of(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: self.of(part) for name, part in value.items()}
        if isinstance(value, list):
            return [self.of(part) for part in value]
        if isinstance(value, float) and not math.isfinite(value):
            self.count += 1
            return None
        return value


def not_an_object(value: object) -> str:
    """Why a JSON value is no row."""
    return f"not a JSON object but {kind(value)}; a row is {{column: value, ...}}"


def is_data(name: str) -> bool:
    """Whether a file of this name is one that is read."""
    return name.lower().endswith(ENDINGS)


def extension(name: str) -> str:
    """`.jsonl` of pool.jsonl and of pool.jsonl.gz."""
    path = Path(name.lower())
    return Path(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix


def is_unicode(text: str) -> bool:
    """False when `text` holds half a surrogate pair, which no tokenizer and no file takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def kind(value: object) -> str:
    """What a JSON value is, in words for a message."""
    if value is None:
        return "null"
    if isinstance(value, float) and math.isnan(value):
        return "NaN (an empty cell)"
    names = {
        bool: "true/false",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__)

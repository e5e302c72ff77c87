"""One raw row: a record, where it came from, and the text it can be restored from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any


class CorpusError(ValueError):
    """The training data cannot be used as it is; the message says where, why, and what to do."""


@dataclass(frozen=True)
class Row:
    """One raw row.

    file     name as users see it: the file's base name, or the hub id
    unit     "line" in jsonl and csv (the first line of a csv row), "row" elsewhere; both count from 1
    number   that line or row
    text     the record as JSON; in jsonl the very line of the file
    record   the record, or None when `problem` says why there is none
    """

    file: str
    unit: str
    number: int
    text: str | None = None
    record: dict[str, Any] | None = None
    problem: str | None = None

    @property
    def place(self) -> str:
        return f"{self.file} {self.unit} {self.number}"


def row_of_value(file: str, number: int, value: object) -> Row:
    """A row that came as a Python value; dates are kept as ISO 8601 text and decimals as text."""
    if not isinstance(value, dict):
        return Row(file, "row", number, problem=not_an_object(value))
    try:
        text = json.dumps(value, default=_as_text)
    except (TypeError, ValueError) as error:
        return Row(file, "row", number, problem=f"not writable as JSON ({error}); leave that column out")
    return Row(file, "row", number, text, value)


def _as_text(value: object) -> str:
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(f"a value is {type(value).__name__}")


def not_an_object(value: object) -> str:
    return f"not a JSON object but {kind(value)}; a row is {{column: value, ...}}"


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
    names = {
        bool: "true/false",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__)

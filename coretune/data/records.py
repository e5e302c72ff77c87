"""A file of examples -> raw rows, each with the place it came from and the text it can be restored from.

    pool.jsonl.gz ─┬─► Row(file, line, the record, its JSON text | what is wrong with it)
    owner/name ────┘

Reading judges only what stands between bytes and a record: encoding, JSON, CSV fields. What a record means is
judged in `formats.py`. A fault of one row travels with that row, so that all of them can be named in one go;
a fault of a whole file is raised.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from coretune.data.raw import (
    COMPRESSIONS,
    EXTENSIONS,
    CorpusError,
    Row,
    extension,
    is_data,
    is_unicode,
    not_an_object,
    row_of_value,
)
from coretune.data.sources import Source
from coretune.data.tables import meant, plain, refuse_doubled
from coretune.escaping import first_line

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
MARKS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
ROWS = 1000  # of a table held at a time


def read_file(path: Path) -> Iterator[Row]:
    """The rows of a file, by the ending of its name. Raises CorpusError for what concerns it as a whole."""
    readers = {
        ".json": _read_json,
        ".jsonl": _read_lines,
        ".ndjson": _read_lines,
        ".csv": _read_csv,
        ".tsv": _read_csv,
        ".parquet": _read_parquet,
        ".arrow": _read_arrow,
    }
    if not is_data(path.name):
        raise CorpusError(
            f"{path.name} has the unknown extension {path.suffix or '(none)'!r}; convert it to one of"
            f" {', '.join(EXTENSIONS)}; text may be compressed ({', '.join(COMPRESSIONS)})"
        )
    try:
        with _opened(path) as file:
            start = file.read(2)
        if start in (b"\xff\xfe", b"\xfe\xff"):
            raise CorpusError(f"{path.name} is encoded in UTF-16; save it as UTF-8")
        empty = True
        for row in readers[extension(path.name)](path):
            empty = False
            yield row
    except OSError as error:
        if path.suffix.lower() not in COMPRESSIONS or error.errno is not None:
            raise
        raise CorpusError(f"{path.name} cannot be unpacked ({first_line(error)}); write it anew") from None
    if empty:
        raise CorpusError(f"{path.name} is empty: it holds no rows; remove it or name another file")


def _opened(path: Path) -> io.BufferedReader:
    """The file's bytes, unpacked where its name says that they are packed."""
    if path.suffix.lower() in COMPRESSIONS:
        return io.BufferedReader(pa.input_stream(str(path)))
    return path.open("rb")


def _read_lines(path: Path) -> Iterator[Row]:
    """JSON Lines; blank lines are no rows. Read as bytes: a wrong byte spoils one row, not the file."""
    with _opened(path) as file:
        for number, raw in enumerate(file, start=1):
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if raw.strip():
                yield _row_of_line(path.name, number, raw.rstrip(b"\r\n"))


def _row_of_line(file: str, number: int, raw: bytes) -> Row:
    try:
        text = raw.decode("utf-8")
        record = json.loads(text, object_pairs_hook=_once)
    except _Twice as error:
        return Row(file, "line", number, problem=str(error))
    except UnicodeDecodeError as error:
        problem = (
            f"not UTF-8 (byte 0x{raw[error.start]:02x} at column {error.start + 1}); save the file as UTF-8"
        )
        return Row(file, "line", number, problem=problem)
    except json.JSONDecodeError as error:
        return Row(file, "line", number, problem=f"not valid JSON ({error.msg} at column {error.colno})")
    except (ValueError, RecursionError) as error:  # digits beyond Python's limit, brackets beyond its stack
        return Row(file, "line", number, problem=f"not readable JSON ({error})")
    if not isinstance(record, dict):
        return Row(file, "line", number, problem=not_an_object(record))
    return Row(file, "line", number, text, record)


def _read_json(path: Path) -> Iterator[Row]:
    """A list of objects, or, since many `.json` files are that, JSON Lines."""
    with _opened(path) as file:
        lines = not file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    if lines:
        _refuse_one_object(path)
        yield from _read_lines(path)
        return
    try:
        with _opened(path) as file:
            text = file.read().decode("utf-8-sig")
        yield from _elements(path.name, text)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise CorpusError(f"{path.name} line {line} is not UTF-8; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise CorpusError(
            f"{path.name} line {error.lineno}: not valid JSON ({error.msg} at column {error.colno});"
            " correct it"
        ) from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, CorpusError):
            raise
        raise CorpusError(f"{path.name}: not readable JSON ({error}); correct it") from None


def _elements(file: str, text: str) -> Iterator[Row]:
    """The rows of a JSON list, one by one, so that a key written twice spoils its row alone."""
    strict, loose = json.JSONDecoder(object_pairs_hook=_once), json.JSONDecoder()
    space = re.compile(r"[ \t\n\r]*")

    def after_space(at: int) -> int:
        return space.match(text, at).end()  # type: ignore[union-attr]

    at, number = after_space(after_space(0) + 1), 0
    if text[at : at + 1] == "]":
        at, more = at + 1, False
    else:
        more = True
    while more:
        number += 1
        try:
            value, end = strict.raw_decode(text, at)
            yield row_of_value(file, number, value)
        except _Twice as error:
            _, end = loose.raw_decode(text, at)
            yield Row(file, "row", number, problem=str(error))
        at = after_space(end)
        more = text[at : at + 1] == ","
        if not more and text[at : at + 1] != "]":
            raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
        at = after_space(at + 1)
    if after_space(at) != len(text):
        raise json.JSONDecodeError("Extra data", text, after_space(at))


class _Twice(ValueError):
    """An object has one key twice; JSON's own readers keep the last and say nothing."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Twice(f"`{twice}` is written twice; which one is meant, only its owner knows: leave one")
    return found


def _refuse_one_object(path: Path) -> None:
    """One object spread over lines would otherwise be reported as many broken rows."""
    with _opened(path) as file:
        first = next((line for line in file if line.strip()), b"")
        rest = file.read() if first.strip() == b"{" else b""
    try:
        if rest and isinstance(value := json.loads(first + rest), dict):
            raise CorpusError(
                f"{path.name} is one JSON object with {', '.join(list(value)[:5])}; write its rows as a list"
                " [{...}, ...] or one object a line"
            )
    except (json.JSONDecodeError, UnicodeDecodeError):
        return


def _read_csv(path: Path) -> Iterator[Row]:
    """Separated by commas, or in .tsv by tabs, with a header line; blank lines are no rows; every value is
    text."""
    mark = "\t" if extension(path.name) == ".tsv" else ","
    limit = csv.field_size_limit(sys.maxsize >> 32)  # the standard 128 KiB is shorter than a long document
    try:
        # surrogateescape lets a wrong byte through to be named in its own row
        with io.TextIOWrapper(
            _opened(path), encoding="utf-8-sig", errors="surrogateescape", newline=""
        ) as file:
            reader = csv.reader(file, strict=True, delimiter=mark)
            header = _header(path.name, reader, mark)
            while True:
                number = reader.line_num + 1
                try:
                    values = next(reader, None)
                except csv.Error as error:
                    _refuse_run_together(path.name, number, reader.line_num, str(error))
                    yield Row(path.name, "line", number, problem=f"not valid CSV ({error})")
                    continue
                if values is None:
                    return
                if values:
                    row = _row_of_fields(path.name, number, header, values)
                    if row.problem is not None:
                        _refuse_run_together(path.name, number, reader.line_num, row.problem)
                    yield row
    finally:
        csv.field_size_limit(limit)


def _refuse_run_together(file: str, first: int, last: int, reason: str) -> None:
    """CorpusError for a fault over several lines: they may be rows, which nobody would name one by one."""
    if last > first:
        raise CorpusError(
            f"{file} lines {first} to {last} are one row by their quotes, and not a valid one ({reason}); "
            "correct the "
            f"quote that opens in line {first}"
        )


def _header(file: str, reader: Iterator[list[str]], separator: str) -> list[str]:
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise CorpusError(f"{file} line 1: not a valid CSV header ({error}); correct it") from None
    if not all(map(is_unicode, header)):
        raise CorpusError(f"{file} line 1 is not UTF-8; save the file as UTF-8")
    for mark, name in MARKS.items():
        if len(header) == 1 and mark in header[0] and mark != separator:
            other = " or name it .tsv" if name == "tabs" else ""
            raise CorpusError(
                f"{file} separates its fields by {name}; write it with {MARKS[separator]}{other}"
            )
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise CorpusError(
            f"{file} has the column {twice[0]!r} {header.count(twice[0])} times; rename one of them"
        )
    return header


def _row_of_fields(file: str, number: int, header: list[str], values: list[str]) -> Row:
    if len(values) != len(header):
        problem = f"{len(values)} fields where the header has {len(header)}; quote fields that hold commas"
        return Row(file, "line", number, problem=problem)
    for name, value in zip(header, values, strict=True):
        if not is_unicode(value):
            return Row(file, "line", number, problem=f"`{name}` is not UTF-8; save the file as UTF-8")
    record = dict(zip(header, values, strict=True))
    return Row(file, "line", number, json.dumps(record), record)


def _read_parquet(path: Path) -> Iterator[Row]:
    try:
        file = pq.ParquetFile(path)
        refuse_doubled(path.name, file.schema_arrow)
        yield from _rows_of_batches(path.name, file.iter_batches(batch_size=ROWS))
    except CorpusError:
        raise
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise CorpusError(
            f"{path.name} cannot be read as parquet ({first_line(error)}); write it anew"
        ) from None


def _read_arrow(path: Path) -> Iterator[Row]:
    """Both Arrow layouts: the stream that `datasets` writes and the random-access file."""
    try:
        with pa.memory_map(str(path)) as source:
            if source.read(6) == b"ARROW1":
                file = pa.ipc.open_file(source)
                refuse_doubled(path.name, file.schema)
                yield from _rows_of_batches(path.name, map(file.get_batch, range(file.num_record_batches)))
            else:
                source.seek(0)
                stream = pa.ipc.open_stream(source)
                refuse_doubled(path.name, stream.schema)
                yield from _rows_of_batches(path.name, stream)
    except CorpusError:
        raise
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise CorpusError(
            f"{path.name} cannot be read as Arrow ({first_line(error)}); write it anew"
        ) from None


def _rows_of_batches(file: str, batches: Iterator[pa.RecordBatch]) -> Iterator[Row]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, ROWS):  # a whole file may be one batch
            for values in batch.slice(start, ROWS).to_pylist(maps_as_pydicts="strict"):
                number += 1
                yield row_of_value(file, number, plain(values, batch.schema), meant(values, batch.schema))


def hub_rows(source: Source) -> Iterator[Row]:
    """A hub data set; downloads stay in the hub's own cache, shared between runs."""
    import datasets

    more = {key: value for key in ("name", "data_dir") if (value := getattr(source, key)) is not None}
    if source.data_files:
        more["data_files"] = list(source.data_files)
    try:
        rows = datasets.load_dataset(source.path, split=source.split, **more)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise CorpusError(
            f"{source.path!r} is no file or folder here, and the hub gave no split {source.split!r} of that "
            f"name ({first_line(error)}); check the name, say which as {{path: {source.path}, name: …, "
            f"split: …}}, or save the rows as parquet and name that file"
        ) from None
    if not len(rows):
        raise CorpusError(f"{source.label!r} has no rows in split {source.split!r}; name another")
    yield from _rows_of_batches(source.label, iter(rows.with_format("arrow").iter(ROWS)))

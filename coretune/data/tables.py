"""Values of Arrow tables as they were meant: JSON columns read, and without the nulls that a table fills in.

A table's structs have one set of keys. A key that a row lacks comes back as null: of tool calls with unlike
arguments each would be written with all of them. TRL leaves such nulls out by `remove_none_values`.
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from coretune.data.raw import CorpusError


def refuse_doubled(file: str, schema: pa.Schema) -> None:
    """CorpusError for a column, or a field of a struct, written twice: Python would keep the last."""
    if name := _doubled(list(schema)):
        raise CorpusError(f"{file} has the column {name!r} more than once; rename one of them")


def _doubled(fields: list[pa.Field]) -> str | None:
    names = [field.name for field in fields]
    for field in fields:
        if names.count(field.name) > 1:
            return str(field.name)
        if below := _doubled(_below(field.type)):
            return f"{field.name}.{below}"
    return None


def _below(kind: pa.DataType) -> list[pa.Field]:
    """The fields of the structs in a type."""
    if pa.types.is_struct(kind):
        return list(kind)
    return _below(kind.value_type) if _is_list(kind) else []


def plain(values: dict[str, Any], schema: pa.Schema) -> dict[str, Any]:
    """A row with its JSON columns read (`datasets.Json`), which Arrow keeps as text."""
    return _row(values, schema, False)


def meant(values: dict[str, Any], schema: pa.Schema) -> dict[str, Any] | None:
    """`plain` without the nulls of keys below its columns; None where that is the same."""
    if not any(_layered(field.type) for field in schema):
        return None
    without = _row(values, schema, True)
    return without if without != _row(values, schema, False) else None


def _row(values: dict[str, Any], schema: pa.Schema, filled: bool) -> dict[str, Any]:
    read = {field.name: field.type for field in schema if _layered(field.type)}
    return {
        name: _read(value, read[name], filled) if name in read else value for name, value in values.items()
    }


def _layered(kind: pa.DataType) -> bool:
    """Whether values of the type may hold structs or JSON."""
    if pa.types.is_map(kind):
        return _layered(kind.item_type)
    return (
        pa.types.is_struct(kind)
        or isinstance(kind, pa.JsonType)
        or (_is_list(kind) and _layered(kind.value_type))
    )


def _read(value: Any, kind: pa.DataType, filled: bool) -> Any:
    """filled: leave out keys of structs that are null. Of JSON columns nothing was filled in."""
    if value is None:
        return None
    if isinstance(kind, pa.JsonType):
        return json.loads(value)
    if pa.types.is_struct(kind):
        parts = {field.name: _read(value[field.name], field.type, filled) for field in kind}
        return {name: part for name, part in parts.items() if part is not None} if filled else parts
    if _is_list(kind):
        return [_read(part, kind.value_type, filled) for part in value]
    if pa.types.is_map(kind):
        return {name: _read(part, kind.item_type, filled) for name, part in value.items()}
    return value


def _is_list(kind: pa.DataType) -> bool:
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_list_view)
    return any(test(kind) for test in tests)

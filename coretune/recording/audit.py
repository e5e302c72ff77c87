"""Why each row was chosen or not, round by round: `selection.parquet`.

    kept = rows_to_keep(pool, coreset, others=10_000, seed=0)
    table = describe(pool, coreset, round=3, ids=corpus.ids, rows=kept)
    append("run/selection.parquet", table)

One row group a round, rounds ascending; one line a pool row:

    round        int32
    id           string
    chosen       bool
    rank         int32    0 = chosen first; null where not chosen, as are weight and gain
    weight       float64
    gain         float64  what the pick was worth when it was picked
    measured     bool     measured exactly in this round; else its values are propagated or older
    measured_at  int32    round of the last exact measurement, -1 = never
    excluded     string   why the row may not be chosen in any round; null where it may
    filtered     string   the filter that took it out in this round, "" where none did
    representative  int32    the chosen row that represents it (`representative.py`), itself if chosen; null
                          where there is none
    closeness    float32  cosine with it; null also where the method goes by distances of its own
    neighbors    list<int32>  rows of its NEIGHBORS nearest in the graph; null where there is no graph
    and one float32 column for each component in `Coreset.reasons`; null in rounds that had no such component

Rows are numbers of lines in pool.parquet (`run_record.py`).
Parquet cannot grow in place, so the file is written again beside itself and swapped in: at any kill it is
whole, with or without the new round.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import chain, takewhile
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from coretune.files import atomic_write
from coretune.recording.representative import REPRESENTED_BY, represented
from coretune.types import Array, Coreset, NeighborGraph, Pool, Rows

WHOLE_POOL = 20_000  # pools up to this size are recorded whole
NEIGHBORS = 5  # of the k in the graph: as many as one reads

FIXED = pa.schema(
    [
        ("round", pa.int32()),
        ("id", pa.string()),
        ("chosen", pa.bool_()),
        ("rank", pa.int32()),
        ("weight", pa.float64()),
        ("gain", pa.float64()),
        ("measured", pa.bool_()),
        ("measured_at", pa.int32()),
        ("excluded", pa.string()),
        ("filtered", pa.string()),
        ("representative", pa.int32()),
        ("closeness", pa.float32()),
        ("neighbors", pa.list_(pa.int32())),
    ]
)
# Dictionaries only where values repeat: of ids and scores, all distinct, they make the file 1.5 × as large.
# Those are written as differences, or byte by byte of all values: a tenth less.
REPEATING = ["round", "weight", "measured_at", "excluded", "filtered"]
ENCODINGS = {
    "id": "DELTA_BYTE_ARRAY",
    "rank": "DELTA_BINARY_PACKED",
    "representative": "DELTA_BINARY_PACKED",
    "neighbors.list.element": "DELTA_BINARY_PACKED",
    "gain": "BYTE_STREAM_SPLIT",
}
COMPONENT_ENCODING = "BYTE_STREAM_SPLIT"
NOT_FINITE = "a signal was not finite"


def rows_to_keep(pool: Pool, coreset: Coreset, others: int, seed: int) -> Rows:
    """(m,) ascending: every row of a small pool; else the chosen, the excluded, and so many of the others.

    [choice] The others come in an order drawn once from the seed, whatever the round, so that a row which is
    recorded while it is not chosen can be followed through the rounds.
    """
    if pool.n <= WHOLE_POOL:
        return np.arange(pool.n)
    always = ~pool.usable
    always[coreset.indices] = True
    order = np.random.default_rng(seed).permutation(pool.n)
    sample = order[~always[order]][:others]
    return np.sort(np.concatenate([np.flatnonzero(always), sample]))


def describe(
    pool: Pool,
    coreset: Coreset,
    *,
    round: int,
    ids: Sequence[str],
    rows: Rows,
) -> pa.Table:
    """One round as a table with the columns above, a line for each of `rows`.

    ids  the n names of the pool's rows
    Raises ValueError when ids or a component do not fit the pool, or a component has a fixed column's name.
    """
    if len(ids) != pool.n:
        raise ValueError(f"{len(ids)} ids for a pool of {pool.n} rows: give one id a row")
    rank: Array = np.full(pool.n, -1, dtype=np.int32)
    rank[coreset.indices] = np.arange(len(coreset.indices), dtype=np.int32)
    rank = rank[rows]
    chosen = rank >= 0
    measured_at = pool.measured_at[rows].astype(np.int32)
    why = [None if pool.usable[row] else NOT_FINITE for row in rows]
    nearest, closeness = represented(pool, coreset)
    alone = nearest[rows] < 0
    columns = {
        "round": np.full(len(rows), round, dtype=np.int32),
        "id": [ids[row] for row in rows],
        "chosen": chosen,
        "rank": pa.array(rank, mask=~chosen),
        "weight": pa.array(np.asarray(coreset.weights, dtype=np.float64)[rank], mask=~chosen),
        "gain": pa.array(np.asarray(coreset.gains, dtype=np.float64)[rank], mask=~chosen),
        "measured": measured_at == round,
        "measured_at": measured_at,
        "excluded": why,
        "filtered": _filtered(coreset, rows),
        "representative": pa.array(nearest[rows], mask=alone),
        "closeness": pa.array(closeness[rows], mask=alone | np.isnan(closeness[rows])),
        "neighbors": _neighbor_lists(pool.graph, rows),
    }
    schema = FIXED
    for name, values in coreset.reasons.items():
        if name == REPRESENTED_BY:  # the column `representative`
            continue
        if name in FIXED.names:
            raise ValueError(f"the component {name!r} has the name of an audit column: rename the component")
        if values.shape != (pool.n,):
            raise ValueError(f"the component {name!r} has shape {values.shape}, the pool has {pool.n} rows")
        columns[name] = pa.array(values[rows].astype(np.float32), from_pandas=True)  # null where NaN
        schema = schema.append(pa.field(name, pa.float32()))
    return pa.table(columns, schema=schema)


def _filtered(coreset: Coreset, rows: Rows) -> pa.Array:
    """(m,) the name of the filter that took each row out, or ""."""
    names = pa.array(["", *coreset.filters])
    taken = np.zeros(len(rows), np.int8) if coreset.filtered is None else coreset.filtered[rows]
    return names.take(pa.array(taken))


def _neighbor_lists(graph: NeighborGraph | None, rows: Rows) -> pa.Array:
    """(m,) list<int32>, nearest first; null without a graph."""
    if graph is None:
        return pa.nulls(len(rows), pa.list_(pa.int32()))
    listed = graph.neighbors[rows, :NEIGHBORS]
    there = listed >= 0
    ends = np.concatenate([[0], np.cumsum(there.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(listed[there].astype(np.int32)))


def append(path: str | os.PathLike[str], table: pa.Table) -> None:
    """Add one round to the file, or make the file. A round that is already there, as after a resume, is
    replaced, and every later one goes: they belong to a future that did not happen.

    Raises ValueError when the table does not hold exactly one round, or the file is not an audit.
    """
    present = table["round"].unique().to_pylist()
    if len(present) != 1:
        raise ValueError(f"an audit grows by one round at a time: the table holds {len(present)} rounds")
    target = Path(path)
    schema, earlier = table.schema, iter(())
    if target.exists():
        schema = pa.unify_schemas([_schema(target), schema])
        earlier = takewhile(lambda part: part["round"][0].as_py() < present[0], _rounds(target))
    with atomic_write(target) as file, _writer(file, schema) as writer:
        for part in chain(earlier, [table]):
            writer.write_table(_widened(part, schema), row_group_size=len(part))


def _writer(file: BinaryIO, schema: pa.Schema) -> pq.ParquetWriter:
    components = dict.fromkeys(schema.names[len(FIXED) :], COMPONENT_ENCODING)
    return pq.ParquetWriter(
        file,
        schema,
        compression="zstd",
        use_dictionary=REPEATING,
        column_encoding={**ENCODINGS, **components},
    )


def read(path: str | os.PathLike[str], round: int | None = None) -> pa.Table:
    """The whole audit or one round of it; KeyError names the rounds there are."""
    _schema(path)
    # partitioning=None: a run directory called `seed=3` must not become a column.
    only = None if round is None else [("round", "=", round)]
    table = pq.read_table(path, filters=only, partitioning=None)
    if round is not None and not len(table):
        raise KeyError(f"no round {round} in {path}; it has {round_numbers(path)}")
    return table


def _rounds(path: str | os.PathLike[str]) -> Iterator[pa.Table]:
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group)


def round_numbers(path: str | os.PathLike[str]) -> list[int]:
    """The rounds that a selection.parquet records."""
    return pq.read_table(path, columns=["round"], partitioning=None)["round"].unique().to_pylist()


def _schema(path: str | os.PathLike[str]) -> pa.Schema:
    schema = pq.read_schema(path)
    if schema.names[: len(FIXED)] != FIXED.names:
        absent = [name for name in FIXED.names if name not in schema.names]
        raise ValueError(
            f"{path} is not an audit of this version of coretune (without {', '.join(absent) or 'its order'}"
            f"; columns {', '.join(schema.names)}): read it with the version that wrote it, to write give "
            "another output_dir"
        )
    return schema


def _widened(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table under the wider schema, null where it lacks a component."""
    columns = [
        table[name] if name in table.schema.names else pa.nulls(len(table), schema.field(name).type)
        for name in schema.names
    ]
    return pa.table(columns, schema=schema)

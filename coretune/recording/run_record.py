"""What a run keeps, so that it can be read without its data and its model.

pool.parquet       one line a pool row, in the order of the pool: id, source, tokens, an excerpt of the text,
                   its place on a map, its group of copies. Written at the first selection, and again at the
                   first that the pool was measured for.
selection.parquet  one line a row and selection (`audit.py`)

A reader can so say of any row what it holds, who its neighbours are and how they read. Nothing else is kept:
the text is an excerpt of at most EXCERPT tokens of the prompt and of the response.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.sparse.linalg import svds

from coretune.files import atomic_write
from coretune.recording import audit
from coretune.recording.run_files import MAP_FACTS, POOL, SELECTION
from coretune.rounds.sampler import PoolRows
from coretune.rounds.state import State
from coretune.select.copies import COPY_COSINE, RESPONSES, copies_by, copy_groups
from coretune.types import Array, Pool

EXCERPT = 160  # tokens of a text that are kept …
HEAD = 60  # … of which so many from its beginning, where it is longer, and the rest from its end
BLOCK = 1000  # rows decoded at once
PLANE_ROWS = 2000  # rows the map's two directions are taken from
MAP_WIDTH = 16_384  # numbers of a vector above which its plane would take too long

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("tokens", pa.int32()),
        ("prompt_tokens", pa.int32()),
        ("prompt", pa.string()),
        ("response", pa.string()),
        ("x", pa.float32()),
        ("y", pa.float32()),
        ("copies", pa.int32()),
    ]
)

Decode = Callable[[list[list[int]]], list[str]]


def record(
    folder: str | os.PathLike[str],
    state: State,
    rows: PoolRows,
    decode: Decode,
    *,
    embedding: str,
    others: int,
    seed: int,
) -> None:
    """Add this state's selection to the run; the pool too when it is not there yet.

    decode     token lists -> texts
    embedding  the signal the map is of, where the pool has it
    others     so many rows of a large pool that were not chosen are recorded as well
    """
    path = Path(folder) / POOL
    if (
        state.selections == 1
        or not path.exists()
        or (_mapped(state.pool, embedding) is not None and not _has_map(path))
    ):
        described = describe_pool(state.pool, rows, decode, embedding, seed)
        with atomic_write(path) as file:
            pq.write_table(described, file, compression="zstd")
    kept = audit.rows_to_keep(state.pool, state.coreset, others, seed)
    table = audit.describe(state.pool, state.coreset, round=state.round, ids=rows.ids, rows=kept)
    audit.append(Path(folder) / SELECTION, table)


def describe_pool(pool: Pool, rows: PoolRows, decode: Decode, embedding: str, seed: int) -> pa.Table:
    """pool.parquet's table. x, y and copies are null where the pool has no such signal or no graph.

    copies  the lowest row of its group, itself where it has none: rows of COPY_COSINE and more by their
            responses, else by what the graph is of
    """
    facts: dict[str, object] = {"embedding": embedding, "copies_by": embedding}
    columns: dict[str, object] = {
        "id": rows.ids,
        "source": pa.nulls(pool.n, pa.string()) if rows.source is None else list(rows.source),
        "tokens": rows.length.astype(np.int32),
        "prompt_tokens": rows.prompt_length.astype(np.int32),
        **excerpts(rows, decode),
    }
    for name in ("x", "y"):
        columns[name] = pa.nulls(pool.n, pa.float32())
    mapped = _mapped(pool, embedding)
    if mapped is not None:
        facts["embedding"] = mapped
        places, facts["variance_shown"] = plane(pool.features[mapped], seed)
        columns |= {"x": places[:, 0], "y": places[:, 1]}
    columns["copies"] = pa.nulls(pool.n, pa.int32())
    if pool.graph is not None:
        facts["copies_by"] = copies_by(pool, embedding)
        columns["copies"] = copy_groups(pool, COPY_COSINE, str(facts["copies_by"]))
    return pa.table(columns, schema=SCHEMA.with_metadata({MAP_FACTS: json.dumps(facts)}))


def _has_map(path: Path) -> bool:
    return "variance_shown" in json.loads(pq.read_schema(path).metadata[MAP_FACTS])


def _mapped(pool: Pool, embedding: str) -> str | None:
    """The signal to map: that embedding, else another, else gradients; None where no signal is a vector, or
    too few rows span a plane."""
    if pool.n <= 2:
        return None
    vectors = [n for n, v in pool.features.items() if v.ndim == 2 and 2 < v.shape[1] <= MAP_WIDTH]
    first = [name for name in (embedding, "prompt_embedding", RESPONSES) if name in vectors]
    return next(iter([*first, *sorted(vectors)]), None)


def plane(embedding: Array, seed: int) -> tuple[Array, float]:
    """(n, 2) float32: the rows on the plane through their mean that shows most, and how much it shows.

    Principal components of PLANE_ROWS random rows [choice: no further package, the same at every call, and
    every row can be placed at the price of a product]. Signs: a direction's largest entry is positive.
    The share is that of the sampled rows' variance.
    """
    n = len(embedding)
    rng = np.random.default_rng([seed, 6])
    sample = np.sort(rng.choice(n, min(n, PLANE_ROWS), replace=False))
    known = np.asarray(embedding[sample], np.float64)
    mean = known.mean(axis=0)
    spread = known - mean
    whole = float((spread**2).sum())
    if min(spread.shape) < 3 or whole == 0:
        return np.zeros((n, 2), np.float32), 1.0
    _, lengths, directions = svds(spread, k=2, v0=rng.standard_normal(min(spread.shape)))
    directions = directions[np.argsort(-lengths)]  # (2, d)
    directions *= np.sign(directions[np.arange(2), np.abs(directions).argmax(axis=1)])[:, None]
    places = np.concatenate(
        [
            (np.asarray(embedding[at : at + BLOCK], np.float64) - mean) @ directions.T
            for at in range(0, n, BLOCK)
        ]
    )
    return places.astype(np.float32), float((lengths**2).sum() / whole)


def excerpts(rows: PoolRows, decode: Decode) -> dict[str, list[str]]:
    """prompt, response: (n,) texts, of long ones the beginning and the end."""
    texts: dict[str, list[str]] = {"prompt": [], "response": []}
    n = len(rows.ids)
    for first in range(0, n, BLOCK):
        block = np.arange(first, min(n, first + BLOCK))
        tokens = rows.tokens(block)
        ends = rows.prompt_length[block]
        texts["prompt"] += _decoded([ids[:end] for ids, end in zip(tokens, ends, strict=True)], decode)
        texts["response"] += _decoded([ids[end:] for ids, end in zip(tokens, ends, strict=True)], decode)
    return texts


def _decoded(pieces: Sequence[Array], decode: Decode) -> list[str]:
    long = [len(piece) > EXCERPT for piece in pieces]
    heads = decode([p[: HEAD if cut else EXCERPT].tolist() for p, cut in zip(pieces, long, strict=True)])
    tails = iter(decode([p[HEAD - EXCERPT :].tolist() for p, cut in zip(pieces, long, strict=True) if cut]))
    return [f"{head} … {next(tails)}" if cut else head for head, cut in zip(heads, long, strict=True)]

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coretune.recording import audit
from coretune.types import Coreset, Pool


def make_pool(n: int, seed: int = 0) -> Pool:
    rng = np.random.default_rng(seed)
    return Pool(
        features={},
        cost=np.full(n, 7),
        measured_at=rng.integers(-1, 4, n).astype(np.int32),
        usable=rng.random(n) > 0.1,
    )


def make_coreset(pool: Pool, size: int, seed: int, components: tuple[str, ...] = ("importance",)) -> Coreset:
    rng = np.random.default_rng(seed)
    return Coreset(
        indices=rng.choice(np.flatnonzero(pool.usable), size, replace=False),
        weights=rng.random(size) + 0.5,
        gains=np.sort(rng.random(size))[::-1],
        reasons={name: rng.random(pool.n) for name in components},
        filters=("duplicates", "noise"),
        filtered=rng.integers(0, 3, pool.n).astype(np.int8),
    )


def ids_of(pool: Pool) -> list[str]:
    return [f"row-{i}" for i in range(pool.n)]


def table_of(pool: Pool, coreset: Coreset, round: int) -> pa.Table:
    return audit.describe(pool, coreset, round=round, ids=ids_of(pool), rows=np.arange(pool.n))


def test_a_component_that_is_not_known_of_a_row_is_null() -> None:
    """Not NaN, which sorts as the largest number there is in some databases."""
    pool = make_pool(9)
    coreset = make_coreset(pool, 3, 0)
    coreset.reasons["importance"][[2, 5]] = np.nan
    found = table_of(pool, coreset, 0)["importance"]
    assert [at for at, value in enumerate(found.to_pylist()) if value is None] == [2, 5]
    assert found.null_count == 2


@settings(deadline=None, max_examples=25)
@given(n=st.integers(2, 40), seed=st.integers(0, 999), round=st.integers(0, 4), data=st.data())
def test_each_line_says_what_the_coreset_says(n: int, seed: int, round: int, data: st.DataObject) -> None:
    pool = make_pool(n, seed)
    pool.usable[0] = True
    size = data.draw(st.integers(1, int(pool.usable.sum())))
    coreset = make_coreset(pool, size, seed, ("importance", "coverage"))
    lines = table_of(pool, coreset, round).to_pylist()
    chosen = coreset.indices.tolist()
    for row, line in enumerate(lines):
        rank = chosen.index(row) if row in chosen else None
        assert line == {
            "round": round,
            "id": f"row-{row}",
            "chosen": row in chosen,
            "rank": rank,
            "weight": None if rank is None else coreset.weights[rank],
            "gain": None if rank is None else coreset.gains[rank],
            "measured": pool.measured_at[row] == round,
            "measured_at": pool.measured_at[row],
            "excluded": None if pool.usable[row] else audit.NOT_FINITE,
            "filtered": ("", "duplicates", "noise")[coreset.filtered[row]],
            "representative": row if row in chosen else None,
            "closeness": 1.0 if row in chosen else None,
            "neighbors": None,
            "importance": np.float32(coreset.reasons["importance"][row]),
            "coverage": np.float32(coreset.reasons["coverage"][row]),
        }


def test_rounds_come_back_one_row_group_each_with_null_for_components_they_lacked(tmp_path: Path) -> None:
    path = tmp_path / "seed=3" / "selection.parquet"  # a name that must not turn into a column
    path.parent.mkdir()
    pool = make_pool(30)
    parts = {"importance": (0,), "coverage": (1, 2)}
    tables = [
        table_of(pool, make_coreset(pool, 5, r, tuple(c for c, rounds in parts.items() if r in rounds)), r)
        for r in range(3)
    ]
    for table in tables:
        audit.append(path, table)
    assert pq.ParquetFile(path).num_row_groups == 3
    for round, table in enumerate(tables):
        got = audit.read(path, round)
        assert got.select(table.schema.names).equals(table)
        for name, rounds in parts.items():
            assert got[name].null_count == (0 if round in rounds else pool.n)
    assert audit.read(path).num_rows == 90
    assert audit.read(path).schema.names == [*audit.FIXED.names, "importance", "coverage"]


def test_a_round_written_again_replaces_itself_and_all_after_it(tmp_path: Path) -> None:
    pool = make_pool(30)
    straight, resumed = tmp_path / "straight.parquet", tmp_path / "resumed.parquet"
    for round in range(4):
        audit.append(straight, table_of(pool, make_coreset(pool, 5, round), round))
    for round in (0, 1, 2, 3):
        audit.append(resumed, table_of(pool, make_coreset(pool, 5, 100 * round), round))
    for round in (1, 2):
        audit.append(resumed, table_of(pool, make_coreset(pool, 5, round), round))
    assert audit.read(resumed)["round"].unique().to_pylist() == [0, 1, 2]
    audit.append(resumed, table_of(pool, make_coreset(pool, 5, 3), 3))
    assert audit.read(resumed).equals(audit.read(straight))
    assert resumed.read_bytes() == straight.read_bytes()


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "selection.parquet"
    pool = make_pool(30)
    audit.append(path, table_of(pool, make_coreset(pool, 5, 0), 0))
    before = path.read_bytes()

    def disk_full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match=r"disk full: .*selection.parquet"):
        audit.append(path, table_of(pool, make_coreset(pool, 5, 1), 1))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["selection.parquet"]


ENDLESS = """
import sys
import numpy as np
from coretune.recording import audit
from coretune.types import Coreset, Pool
n = 3000
pool = Pool({}, np.ones(n), np.zeros(n, dtype=np.int32), np.ones(n, dtype=bool))
ids = [str(i) for i in range(n)]
for round in range(100_000):
    round %= 30
    coreset = Coreset(np.arange(9), np.ones(9), np.ones(9), {"a": np.full(n, float(round))})
    audit.append(sys.argv[1], audit.describe(pool, coreset, round=round, ids=ids, rows=np.arange(n)))
"""


def test_killed_at_any_moment_the_file_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "selection.parquet"
    rng = np.random.default_rng(0)
    for _ in range(4):
        writer = subprocess.Popen([sys.executable, "-c", ENDLESS, str(path)], cwd=Path(__file__).parents[1])
        deadline = time.monotonic() + 60
        start = path.stat().st_mtime_ns if path.exists() else 0
        while not path.exists() or path.stat().st_mtime_ns == start:
            assert time.monotonic() < deadline
            assert writer.poll() is None
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.2))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        rounds = audit.read(path)["round"].to_numpy()
        assert np.array_equal(rounds, np.repeat(np.arange(rounds.max() + 1), 3000))


def test_small_pools_are_kept_whole_and_large_ones_by_sample() -> None:
    small = make_pool(audit.WHOLE_POOL)
    assert np.array_equal(audit.rows_to_keep(small, make_coreset(small, 9, 0), 0, 0), np.arange(small.n))

    pool, others = make_pool(audit.WHOLE_POOL + 30_000), 7000
    first, second = make_coreset(pool, 900, 1), make_coreset(pool, 900, 2)
    kept = audit.rows_to_keep(pool, first, others, seed=5)
    always = set(first.indices.tolist()) | set(np.flatnonzero(~pool.usable).tolist())
    assert always <= set(kept.tolist())
    assert len(kept) == len(set(kept.tolist())) == len(always) + others
    assert set(audit.rows_to_keep(pool, first, 0, seed=5).tolist()) == always
    assert np.array_equal(kept, audit.rows_to_keep(pool, first, others, seed=5))
    assert not np.array_equal(kept, audit.rows_to_keep(pool, first, others, seed=6))
    # Rows can be followed: those of the sample stay in it, but for the few that the chosen ones push out.
    followed = np.isin(kept, audit.rows_to_keep(pool, second, others, seed=5)).sum()
    assert followed >= others - 900


def test_what_is_all_distinct_is_written_as_differences_or_byte_by_byte(tmp_path: Path) -> None:
    path, pool = tmp_path / "selection.parquet", make_pool(500)
    audit.append(path, table_of(pool, make_coreset(pool, 50, 0), 0))
    group = pq.ParquetFile(path).metadata.row_group(0)
    found = {group.column(i).path_in_schema: group.column(i).encodings for i in range(group.num_columns)}
    for name, encoding in {**audit.ENCODINGS, "importance": audit.COMPONENT_ENCODING}.items():
        assert encoding in found[name], name
    for name in audit.REPEATING:
        assert "RLE_DICTIONARY" in found[name], name


def test_bad_input_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "selection.parquet"
    pool = make_pool(30)
    coreset = make_coreset(pool, 5, 0)
    rows = np.arange(30)
    with pytest.raises(ValueError, match="29 ids for a pool of 30 rows"):
        audit.describe(pool, coreset, round=0, ids=ids_of(pool)[:-1], rows=rows)
    clash = Coreset(coreset.indices, coreset.weights, coreset.gains, {"rank": np.zeros(30)})
    with pytest.raises(ValueError, match="'rank' has the name of an audit column"):
        audit.describe(pool, clash, round=0, ids=ids_of(pool), rows=rows)
    short = Coreset(coreset.indices, coreset.weights, coreset.gains, {"a": np.zeros(5)})
    with pytest.raises(ValueError, match=r"'a' has shape \(5,\), the pool has 30 rows"):
        audit.describe(pool, short, round=0, ids=ids_of(pool), rows=rows)
    both = pa.concat_tables([table_of(pool, coreset, 0), table_of(pool, coreset, 1)])
    with pytest.raises(ValueError, match="the table holds 2 rounds"):
        audit.append(path, both)
    audit.append(path, table_of(pool, coreset, 0))
    with pytest.raises(KeyError, match=r"no round 3 .* it has \[0\]"):
        audit.read(path, 3)
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="is not an audit"):
        audit.append(tmp_path / "other.parquet", table_of(pool, coreset, 0))

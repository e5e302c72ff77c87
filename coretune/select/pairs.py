"""The pairs that can still add to a growing set: what dense greedy goes on with as soon as they fit.

Coverage only rises, so a pair with sim(v, j) <= best_v adds nothing to any later gain. After m picks about
one pair in m is left. What is held are the others, by candidate, and gains from them are those of all pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np

from coretune.progress_reports import Reporter, reporter
from coretune.select.dense import DenseSimilarity, slices, spread
from coretune.types import Array, Rows

#: Bytes of a pair held: a row, int32, and a similarity, float32.
PAIR_BYTES = 8
#: Rows whose pairs are counted to know how many there are.
SAMPLE = 256
#: What such a count may be short by.
MARGIN = 1.1
#: Candidates whose pairs are searched together.
PANEL = 512


@dataclass(frozen=True)
class Pairs:
    """A `Similarity`, of gains and coverage those of `whole` from the moment it was made.

    indptr      (n+1,) int64    candidate j can improve rows[indptr[j] : indptr[j + 1]]
    rows        (e,)   int32
    similarity  (e,)   float32
    whole       all pairs
    """

    indptr: Array
    rows: Array
    similarity: Array
    whole: DenseSimilarity

    @property
    def n(self) -> int:
        return self.whole.n

    @property
    def width(self) -> int:
        return 4

    @property
    def rounding(self) -> float:
        return self.whole.rounding

    def gains(self, best: Array, demand: Array, rows: Rows) -> Array:
        least = np.float32(self.rounding)
        return _pair_gains(self.indptr, self.rows, self.similarity, best, demand, rows, least)

    def cover(self, best: Array, demand: Array, row: int) -> float:
        pairs = slice(self.indptr[row], self.indptr[row + 1])
        least = np.float32(self.rounding)
        return float(_pair_cover(self.rows[pairs], self.similarity[pairs], best, demand, least))

    def nearest(self, chosen: Rows) -> Array:
        return self.whole.nearest(chosen)


def pairs_left(
    source: DenseSimilarity, best: Array, demand: Array, columns: Rows, most: int
) -> tuple[int, Pairs | None]:
    """About how many pairs can still add, and those pairs where they are at most `most`.

    columns  (m,) int64, rising: candidates whose gains will be asked for
    """
    asked = np.flatnonzero(demand > 0.0)
    expected = _expected(source, best, asked, columns)
    if MARGIN * expected > most:
        return expected, None
    if source.held is not None:
        return _read_off(source, source.held, best, demand, columns, most)
    room = min(most, int(2.0 * MARGIN * expected) + len(columns) * SAMPLE)
    rows, similarity = np.empty(room, np.int32), np.empty(room, np.float32)
    counts = np.zeros(source.n + 1, dtype=np.int64)
    filled = 0
    tell = Reporter(reporter("pairs that are left"), len(columns))

    def of(panel: Rows) -> tuple[Array, Array, Array]:
        return _panel(source, best, demand, panel)

    for first in range(0, len(columns), 64 * PANEL):  # so that little waits for its place at any time
        together = columns[first : first + 64 * PANEL]
        panels = np.split(together, range(PANEL, len(together), PANEL))
        for panel, (count, found, close) in zip(panels, spread(of, panels), strict=True):
            if filled + len(found) > room:
                return filled * len(columns) // max(1, int(panel[0])), None
            counts[panel + 1] = count
            rows[filled : filled + len(found)] = found
            similarity[filled : filled + len(found)] = close
            filled += len(found)
            tell(len(panel))
    return filled, Pairs(np.cumsum(counts), rows[:filled], similarity[:filled], source)


def _read_off(
    source: DenseSimilarity, held: Array, best: Array, demand: Array, columns: Rows, most: int
) -> tuple[int, Pairs | None]:
    """`pairs_left` where all similarities (n, n) are held."""
    least, counts = np.float32(source.rounding), np.zeros(source.n + 1, dtype=np.int64)
    counts[columns + 1] = _held_counts(held, best, demand, columns, least)
    indptr = np.cumsum(counts)
    many = int(indptr[-1])
    if many > most:
        return many, None
    rows, similarity = np.empty(many, np.int32), np.empty(many, np.float32)
    _held_pairs(held, best, demand, columns, least, indptr, rows, similarity)
    return many, Pairs(indptr, rows, similarity, source)


def _expected(source: DenseSimilarity, best: Array, asked: Rows, columns: Rows) -> int:
    """From evenly spaced rows."""
    some = asked[np.unique(np.linspace(0, len(asked) - 1, min(SAMPLE, len(asked))).astype(np.int64))]

    def of(part: slice) -> int:
        similarity = source.block(some, columns[part])
        return int((similarity > best[some, None] + np.float32(source.rounding)).sum())

    return sum(spread(of, slices(len(columns)))) * len(asked) // max(1, len(some))


def _panel(source: DenseSimilarity, best: Array, demand: Array, panel: Rows) -> tuple[Array, Array, Array]:
    """(m,) int64 pairs of each candidate; their rows, rising, and similarities, candidate after candidate."""
    least = np.float32(source.rounding)
    parts = slices(source.n)
    counts = np.zeros((len(parts), len(panel)), dtype=np.int64)
    found = []
    for position, part in enumerate(parts):
        similarity = source.block(panel, part)
        rows: Array = np.empty(similarity.size, np.int32)
        close: Array = np.empty(similarity.size, np.float32)
        taken = _above(similarity, best[part], demand[part], least, part.start, counts[position], rows, close)
        found.append((rows[:taken].copy(), close[:taken].copy()))
    rows = np.concatenate([each[0] for each in found])
    close = np.concatenate([each[1] for each in found])
    return counts.sum(axis=0), *_by_candidate(counts, rows, close)


@numba.njit(cache=True, nogil=True)
def _held_counts(held: Array, best: Array, demand: Array, columns: Rows, least: np.float32) -> Array:
    counts = np.empty(columns.shape[0], dtype=np.int64)
    for position in range(columns.shape[0]):
        similarity, count = held[columns[position]], 0
        for v in range(similarity.shape[0]):
            count += (similarity[v] - best[v] > least) & (demand[v] > 0.0)
        counts[position] = count
    return counts


@numba.njit(cache=True, nogil=True)
def _held_pairs(
    held: Array,
    best: Array,
    demand: Array,
    columns: Rows,
    least: np.float32,
    indptr: Array,
    rows: Array,
    close: Array,
) -> None:
    for j in columns:
        similarity, at = held[j], indptr[j]
        for v in range(similarity.shape[0]):
            if similarity[v] - best[v] > least and demand[v] > 0.0:  # few do: a branch is well guessed
                rows[at], close[at] = v, similarity[v]
                at += 1


@numba.njit(cache=True, nogil=True)
def _above(
    similarity: Array,
    best: Array,
    demand: Array,
    least: np.float32,
    start: int,
    counts: Array,
    rows: Array,
    close: Array,
) -> int:
    taken = 0
    for j in range(similarity.shape[0]):
        before = taken
        for v in range(similarity.shape[1]):
            rows[taken] = start + v  # written over unless it counts: no branch to guess
            close[taken] = similarity[j, v]
            taken += demand[v] > 0.0 and similarity[j, v] - best[v] > least
        counts[j] = taken - before
    return taken


@numba.njit(cache=True, nogil=True)
def _by_candidate(counts: Array, rows: Array, close: Array) -> tuple[Array, Array]:
    """From part by part, counts (parts, m), to candidate by candidate."""
    into = np.zeros(counts.shape[1], dtype=np.int64)
    into[1:] = np.cumsum(counts.sum(axis=0))[:-1]
    ordered, beside = np.empty_like(rows), np.empty_like(close)
    position = 0
    for part in range(counts.shape[0]):
        for j in range(counts.shape[1]):
            count = counts[part, j]
            ordered[into[j] : into[j] + count] = rows[position : position + count]
            beside[into[j] : into[j] + count] = close[position : position + count]
            into[j] += count
            position += count
    return ordered, beside


@numba.njit(cache=True, nogil=True)
def _pair_gains(
    indptr: Array,
    rows: Array,
    similarity: Array,
    best: Array,
    demand: Array,
    asked: Rows,
    least: np.float32,
) -> Array:
    gains = np.zeros(asked.shape[0])
    for position in range(asked.shape[0]):
        for pair in range(indptr[asked[position]], indptr[asked[position] + 1]):
            improvement = similarity[pair] - best[rows[pair]]
            if improvement > least:
                gains[position] += demand[rows[pair]] * improvement
    return gains


@numba.njit(cache=True, nogil=True)
def _pair_cover(rows: Array, similarity: Array, best: Array, demand: Array, least: np.float32) -> float:
    gain = 0.0
    for pair in range(rows.shape[0]):
        improvement = similarity[pair] - best[rows[pair]]
        if improvement > least:
            gain += demand[rows[pair]] * improvement
            best[rows[pair]] = similarity[pair]
    return gain

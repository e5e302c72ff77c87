"""A binary heap of (worth, row) in two flat arrays, never rebuilt by what is taken and put back.

The top is the largest worth and, among equals, the lowest row.
"""

from __future__ import annotations

import numba
import numpy as np

from coretune.types import Array, Rows


class Heap:
    """Rows ordered by worth; `take` and `put` cost O(m log n) for m rows."""

    def __init__(self, rows: Rows, worth: Array) -> None:
        self.refill(rows, worth)

    def refill(self, rows: Rows, worth: Array) -> None:
        """These rows and no others: rows (m,) int64, worth (m,) float64."""
        order = np.lexsort((rows, -worth))  # a sorted list is a heap
        self._rows = rows[order]
        self._worth = worth[order]
        self.size = len(rows)

    @property
    def top(self) -> tuple[float, int]:
        """(worth, row) of the first; the heap must not be empty."""
        return self._worth[0], self._rows[0]

    def take(self, count: int) -> Rows:
        """Remove the first `count` rows, or all there are; in order."""
        taken = _take(self._worth, self._rows, self.size, min(count, self.size))
        self.size -= len(taken)
        return taken

    def put(self, rows: Rows, worth: Array) -> None:
        """Give back rows that were taken, with their worth of now."""
        _put(self._worth, self._rows, self.size, rows, worth)
        self.size += len(rows)


@numba.njit(cache=True)
def _before(worth: float, row: int, other_worth: float, other_row: int) -> bool:
    return worth > other_worth or (worth == other_worth and row < other_row)


@numba.njit(cache=True)
def _take(worth: Array, rows: Rows, size: int, count: int) -> Rows:
    taken = np.empty(count, dtype=np.int64)
    for position in range(count):
        taken[position] = rows[0]
        size -= 1
        moved_worth, moved_row = worth[size], rows[size]
        hole = 0
        while True:
            child = 2 * hole + 1
            if child >= size:
                break
            right = child + 1
            if right < size and _before(worth[right], rows[right], worth[child], rows[child]):
                child = right
            if not _before(worth[child], rows[child], moved_worth, moved_row):
                break
            worth[hole], rows[hole] = worth[child], rows[child]
            hole = child
        worth[hole], rows[hole] = moved_worth, moved_row
    return taken


@numba.njit(cache=True)
def _put(worth: Array, rows: Rows, size: int, new_rows: Rows, new_worth: Array) -> None:
    for position in range(new_rows.shape[0]):
        added_worth, added_row = new_worth[position], new_rows[position]
        hole = size
        size += 1
        while hole > 0:
            parent = (hole - 1) // 2
            if not _before(added_worth, added_row, worth[parent], rows[parent]):
                break
            worth[hole], rows[hole] = worth[parent], rows[parent]
            hole = parent
        worth[hole], rows[hole] = added_worth, added_row

"""A pool's feature rows as the columns of a least-squares problem: the one pass a pursuit makes over them.

A row's result depends on that row and the residual alone, to the last bit: every dot product is summed in
float64 in one order, whatever the block, shard or process it is computed in. So a pass that is split over
workers and merged with `merge` gives what one machine gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numba
import numpy as np

from coretune.types import Array, Rows

BLOCK = 8192  # rows read at once


@dataclass(frozen=True)
class Candidates:
    """The columns that point most towards a residual, best first; the lower row among equals.

    rows          (m,) int64
    correlations  (m,) float64  ⟨a_i, r⟩ / ‖a_i‖, > 0
    columns       (m, D) float32  a_i
    norms         (m,) float64  ‖a_i‖
    """

    rows: Rows
    correlations: Array
    columns: Array
    norms: Array


#: (residual (D,) float64, count, open (n,) bool) -> the `count` open rows of largest positive correlation, or
#: all there are. The only pass over all columns: another engine (a cluster, a GPU) replaces this function.
Top = Callable[[Array, int, Array], Candidates]


@dataclass(frozen=True)
class Columns:
    """Rows of a feature array, memory-mapped or not, read block by block.

    features  (n, D) float16, float32 or float64; never held as a whole in another type
    norms     (n,) float64; 0 for a row that is zero or not finite, which no pass returns
    first     pool row of features[0]: a shard of a pool is its Columns with another first row
    """

    features: Array
    norms: Array
    first: int = 0

    @classmethod
    def of(cls, features: Array, first: int = 0, block: int = BLOCK) -> Columns:
        squares = np.concatenate([_squares(part) for part in _blocks(features, block)] or [np.zeros(0)])
        norms = np.sqrt(squares)
        norms[~np.isfinite(norms)] = 0.0
        return cls(features, norms, first)

    def correlate(self, residual: Array, block: int = BLOCK) -> Array:
        """(n,) float64 ⟨a_i, r⟩ / ‖a_i‖; 0 where the norm is."""
        residual = np.ascontiguousarray(residual, dtype=np.float64)
        parts = [_products(part, residual) for part in _blocks(self.features, block)]
        inner = np.concatenate(parts or [np.zeros(0)])
        return np.divide(inner, self.norms, out=np.zeros(len(inner)), where=self.norms > 0.0)

    def top(self, residual: Array, count: int, open_rows: Array) -> Candidates:
        """A `Top`. open_rows: (n,) bool of these rows alone."""
        correlation = np.where(open_rows, self.correlate(residual), 0.0)
        best = largest(correlation, count)
        rising = np.sort(best)  # a memory map is read in its own order
        place = np.searchsorted(rising, best)
        columns = np.asarray(self.features[rising], dtype=np.float32)[place]
        return Candidates(best + self.first, correlation[best], columns, self.norms[best])


def largest(correlation: Array, count: int) -> Rows:
    """(m,) int64 positions of the `count` largest positive values, largest first, the lower among equals."""
    positive = np.flatnonzero(correlation > 0.0)
    if len(positive) > count:
        value = correlation[positive]
        least = np.partition(value, len(value) - count)[len(value) - count]
        above, equal = positive[value > least], positive[value == least]
        positive = np.concatenate([above, equal[: count - len(above)]])
    return positive[np.lexsort((positive, -correlation[positive]))]


def merge(parts: Sequence[Candidates], count: int) -> Candidates:
    """What one pass over all shards would have returned, from each shard's pass with the same count."""
    rows = np.concatenate([part.rows for part in parts])
    correlations = np.concatenate([part.correlations for part in parts])
    best = np.lexsort((rows, -correlations))[:count]
    columns = np.concatenate([part.columns for part in parts])[best]
    return Candidates(
        rows[best], correlations[best], columns, np.concatenate([part.norms for part in parts])[best]
    )


def project_rows(features: Array, directions: Array) -> Array:
    """(m, q) float64 ⟨a_i, u_q⟩ of rows (m, D) and directions (q, D); each row's result is its own."""
    wide = HALF[features.view(np.uint16)] if features.dtype == np.float16 else features
    return np.stack([_products(wide, np.ascontiguousarray(u, np.float64)) for u in directions], axis=1)


def mean_column(features: Array, rows: Array) -> Array:
    """(D,) float64 mean of the rows (n,) bool of features, read block by block."""
    mean = np.zeros(features.shape[1])
    part_of = rows / max(1, int(rows.sum()))
    for start in range(0, len(features), BLOCK):
        part = np.asarray(features[start : start + BLOCK], dtype=np.float32)
        mean += combination(part, part_of[start : start + BLOCK])
    return mean


def inner_products(columns: Array, vector: Array) -> Array:
    """(m,) float64 ⟨a_i, v⟩ of columns (m, D) float32 or float64, summed in float64."""
    out = np.empty(len(columns))
    _inner(columns, vector, out)
    return out


def combination(columns: Array, weights: Array) -> Array:
    """(D,) float64 Σ_i w_i a_i, summed in float64; rows of weight 0 are not read."""
    out = np.zeros(columns.shape[1])
    _combine(columns, weights, out)
    return out


def _blocks(features: Array, block: int) -> list[Array]:
    return [features[start : start + block] for start in range(0, len(features), block)]


def _products(part: Array, residual: Array) -> Array:
    out = np.empty(len(part))
    if part.dtype == np.float16:
        _half_inner(np.ascontiguousarray(part).view(np.uint16), HALF, residual, out)
    else:
        _inner(np.ascontiguousarray(part), residual, out)
    return out


def _squares(part: Array) -> Array:
    out = np.empty(len(part))
    if part.dtype == np.float16:
        _half_squares(np.ascontiguousarray(part).view(np.uint16), HALF, out)
    else:
        _plain_squares(np.ascontiguousarray(part), out)
    return out


#: (65536,) float32: the number behind each pattern of 16 bits; four times as fast as numpy's conversion.
HALF = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)

_SUM = {"reassoc", "contract"}  # lets the loop be vectorised; the same machine code sums every row


@numba.njit(cache=True, nogil=True, fastmath=_SUM)
def _inner(columns: Array, vector: Array, out: Array) -> None:
    for i in range(columns.shape[0]):
        total = 0.0
        for j in range(columns.shape[1]):
            total += columns[i, j] * vector[j]
        out[i] = total


@numba.njit(cache=True, nogil=True, fastmath=_SUM)
def _half_inner(bits: Array, half: Array, vector: Array, out: Array) -> None:
    for i in range(bits.shape[0]):
        total = 0.0
        for j in range(bits.shape[1]):
            total += half[bits[i, j]] * vector[j]
        out[i] = total


@numba.njit(cache=True, nogil=True, fastmath=_SUM)
def _plain_squares(columns: Array, out: Array) -> None:
    for i in range(columns.shape[0]):
        total = 0.0
        for j in range(columns.shape[1]):
            total += np.float64(columns[i, j]) * columns[i, j]
        out[i] = total


@numba.njit(cache=True, nogil=True, fastmath=_SUM)
def _half_squares(bits: Array, half: Array, out: Array) -> None:
    for i in range(bits.shape[0]):
        total = 0.0
        for j in range(bits.shape[1]):
            total += np.float64(half[bits[i, j]]) * half[bits[i, j]]
        out[i] = total


@numba.njit(cache=True, nogil=True, fastmath=_SUM)
def _combine(columns: Array, weights: Array, out: Array) -> None:
    for i in range(columns.shape[0]):
        if weights[i] != 0.0:
            for j in range(columns.shape[1]):
                out[j] += weights[i] * columns[i, j]

"""Ridge least squares on some of the columns: argmin ‖Σ_{i∈P} x_i a_i − b‖² + ρ‖x‖², of either sign.

Solved in the smaller of two spaces: the Gram matrix of P's columns, (G + ρI) x = A b, or, for more columns
than dimensions, the (D, D) matrix K = Σ_{i∈P} a_i a_iᵀ, (K + ρI) y = b and x = A y.

The matrix is made and factored in float32, at half the cost. The answer is then refined with residuals in
float64 until rounding hides the rest (LAPACK's dsposv does the same). Where that does not converge, for the
ridge is small beside the columns' dependence on each other, float64 does it all.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from coretune.select.columns import combination, inner_products
from coretune.types import Array, Rows

BLOCK = 2048
REFINED = 1e-11  # part of the right side that a residual may still be
ROUNDS = 30  # of refinement; a ridge of 0.01 takes about five


class Dense:
    """An `Algebra` (nnls.py) of columns (m, D) in memory, float32 or float64; its answers are float64.

    Inner products once made are kept, for up to 2 D columns; K is kept, and changed by what came and went.
    """

    def __init__(self, columns: Array, target: Array, ridge: float) -> None:
        self._columns, self._target, self._ridge = columns, target, ridge
        count, width = columns.shape
        self._outer = np.zeros((width, width), np.float32) if count > width else None
        self._counted: Array = np.zeros(count, dtype=bool)  # columns that `_outer` holds
        self._gram: Array = np.zeros((0, 0), np.float32)  # of columns met as passive:
        self._met: Rows = np.zeros(0, dtype=np.int64)
        self._place = np.full(count, -1)  # of each column in `_met`

    def correlate(self, residual: Array) -> Array:
        return inner_products(self._columns, residual)

    def combine(self, x: Array) -> Array:
        return combination(self._columns, x)

    def fit(self, passive: Array) -> Array:
        x = np.zeros(len(self._columns))
        rows = np.flatnonzero(passive)
        if len(rows):
            x[rows] = self._few(rows) if len(rows) <= self._columns.shape[1] else self._many(passive)
        return x

    def _few(self, rows: Rows) -> Array:
        columns = self._columns[rows]

        def missing(x: Array) -> Array:
            return inner_products(columns, self._target - combination(columns, x)) - self._ridge * x

        x = solved(self._gram_of(rows), self._ridge, missing)
        if x is None:
            wide = np.asarray(columns, np.float64)
            x = solved(wide @ wide.T, self._ridge, missing)
        return _certain(x, self._ridge)

    def _many(self, passive: Array) -> Array:
        columns = self._columns[passive]

        def missing(y: Array) -> Array:
            return self._target - combination(columns, inner_products(columns, y)) - self._ridge * y

        y = solved(self._outer_of(passive).copy(), self._ridge, missing)
        if y is None:
            wide = np.asarray(columns, np.float64)
            y = solved(wide.T @ wide, self._ridge, missing)
        return inner_products(columns, _certain(y, self._ridge))

    def _gram_of(self, rows: Rows) -> Array:
        """(p, p) float32 a copy of the Gram matrix of some columns."""
        new = rows[self._place[rows] < 0]
        if len(self._met) + len(new) > 2 * self._columns.shape[1]:
            self._gram, self._met, new = np.zeros((0, 0), np.float32), np.zeros(0, dtype=np.int64), rows
            self._place[:] = -1
        if len(new):
            known, met = len(self._met), np.concatenate([self._met, new])
            fresh = np.asarray(self._columns[new], np.float32)
            gram = np.empty((len(met), len(met)), np.float32)
            gram[:known, :known] = self._gram
            gram[known:, known:] = fresh @ fresh.T
            for start in range(0, known, BLOCK):
                part = slice(start, min(start + BLOCK, known))
                gram[known:, part] = fresh @ np.asarray(self._columns[met[part]], np.float32).T
            gram[:known, known:] = gram[known:, :known].T
            self._gram, self._met, self._place[new] = gram, met, np.arange(known, len(met))
        place = self._place[rows]
        found: Array = self._gram[np.ix_(place, place)]
        return found

    def _outer_of(self, passive: Array) -> Array:
        """(D, D) float32 Σ_{i∈P} a_i a_iᵀ, from the last one or anew, whichever touches fewer columns."""
        assert self._outer is not None
        came, went = passive & ~self._counted, self._counted & ~passive
        if came.sum() + went.sum() >= passive.sum():
            self._outer[:] = 0.0
            came, went = passive, np.zeros_like(passive)
        for rows, sign in ((np.flatnonzero(came), 1.0), (np.flatnonzero(went), -1.0)):
            for start in range(0, len(rows), BLOCK):
                part = np.asarray(self._columns[rows[start : start + BLOCK]], np.float32)
                self._outer += np.float32(sign) * (part.T @ part)
        self._counted = passive.copy()
        return self._outer


def solved(matrix: Array, ridge: float, missing: Callable[[Array], Array]) -> Array | None:
    """The v of (matrix + ρI) v = right to the last digits, or None where refinement does not converge.

    matrix   (p, p) float32 or float64; overwritten
    missing  v -> right − (matrix + ρI) v (p,) float64, computed in float64 from what the matrix is made of
    """
    from scipy.linalg import cho_factor, cho_solve  # late: a mistake in a config is reported without it

    matrix[np.diag_indices(len(matrix))] += ridge
    try:
        factor = cho_factor(matrix, overwrite_a=True, check_finite=False)
    except np.linalg.LinAlgError:
        return None
    found = np.zeros(len(matrix))
    left = missing(found)
    size = float(np.linalg.norm(left))
    least = REFINED * size
    for _ in range(ROUNDS):
        further = found + cho_solve(factor, left.astype(matrix.dtype), check_finite=False)
        left = missing(further)
        before, size = size, float(np.linalg.norm(left))
        if not size < before:  # rounding, or a factor that is too rough
            return found if before <= 1e3 * least else None
        found = further
        if size <= least:
            return found
    return None


def _certain(found: Array | None, ridge: float) -> Array:
    if found is None:
        raise ArithmeticError(
            f"least squares with a ridge of {ridge}: too small, for columns depend on each other; raise it"
        )
    return found

"""A Cholesky factor kept up to date while columns come and go."""

from __future__ import annotations

import numba
import numpy as np

from coretune.types import Array


@numba.njit(cache=True)
def append(factor: Array, k: int, inner: Array, diagonal: float) -> bool:
    """Make the factor L (k, k) of G that of G with one row more, in place; O(k²).

    factor    (m, m) float64, m > k; its first k rows and columns are L
    inner     (>= k,) the new row of G beside the diagonal
    diagonal  > 0
    False, and nothing usable appended, when the new row depends on the others to rounding.
    """
    left = diagonal
    for i in range(k):
        total = inner[i]
        for j in range(i):
            total -= factor[i, j] * factor[k, j]
        value = total / factor[i, i]
        factor[k, i] = value
        left -= value * value
    if left <= 1e-14 * diagonal:
        return False
    factor[k, k] = np.sqrt(left)
    return True


@numba.njit(cache=True)
def remove(factor: Array, k: int, position: int) -> None:
    """Make the factor of G (k, k) that of G without one row and column, in place; O(k²).

    The rows below move up by one and become triangular again by Givens rotations.
    """
    for i in range(position, k - 1):
        for j in range(i + 2):
            factor[i, j] = factor[i + 1, j]
    for i in range(position, k - 1):
        a, b = factor[i, i], factor[i, i + 1]
        length = np.hypot(a, b)
        cosine, sine = a / length, b / length
        factor[i, i] = length
        for below in range(i + 1, k - 1):
            a, b = factor[below, i], factor[below, i + 1]
            factor[below, i] = cosine * a + sine * b
            factor[below, i + 1] = cosine * b - sine * a


@numba.njit(cache=True)
def solve(factor: Array, k: int, right: Array, out: Array) -> None:
    """out[:k] <- x with L Lᵀ x = right[:k]; O(k²)."""
    for i in range(k):
        total = right[i]
        for j in range(i):
            total -= factor[i, j] * out[j]
        out[i] = total / factor[i, i]
    for i in range(k - 1, -1, -1):
        out[i] /= factor[i, i]
        for j in range(i):
            out[j] -= out[i] * factor[i, j]


@numba.njit(cache=True)
def settle(factor: Array, passive: Array, k: int, right: Array, x: Array, solution: Array) -> int:
    """Move x to the least squares solution on the passive columns, dropping those that would go negative.

    The inner loop of Lawson and Hanson, "Solving Least Squares Problems", 1974, ch. 23: x stays >= 0 and the
    objective falls.

    factor    L of the passive columns' Gram matrix with ridge, in the order of `passive`
    passive   (>= k,) int64 columns
    right     (m,) ⟨a_i, b⟩ of all columns
    x         (m,) >= 0, 0 outside the passive set; changed in place
    solution  (>= k,) scratch
    Returns k, the number of passive columns left.
    """
    inner = np.empty(k)
    while k > 0:
        for i in range(k):
            inner[i] = right[passive[i]]
        solve(factor, k, inner, solution)
        step, blocked = 1.0, -1
        for i in range(k):
            if solution[i] <= 0.0:
                here = x[passive[i]]
                part = here / (here - solution[i]) if here > 0.0 else 0.0
                if part < step or blocked < 0:
                    step, blocked = part, i
        if blocked < 0:
            for i in range(k):
                x[passive[i]] = solution[i]
            return k
        for i in range(k):
            x[passive[i]] += step * (solution[i] - x[passive[i]])
        x[passive[blocked]] = 0.0
        for i in range(k - 1, -1, -1):
            if x[passive[i]] <= 0.0:
                x[passive[i]] = 0.0
                remove(factor, k, i)
                for j in range(i, k - 1):
                    passive[j] = passive[j + 1]
                k -= 1
    return 0

"""Orthogonal matching pursuit, non-negative and with a ridge: one column a step, one pass a step.

    repeat: j ← argmax_i ⟨ã_i, r⟩;  S ← S ∪ {j};  x ← argmin_{x>=0} ‖Ã_S x − b‖² + ρ‖x‖²;  r ← b − Ã_S x

Same problem as `pursuit.py`, and the same answer type. Each step updates one Cholesky factor instead of
building a Gram matrix anew: K picks from n columns of length D cost O(K n D) for the passes and O(K²(K + D))
for the rest.
"""

from __future__ import annotations

import numpy as np

from coretune.select.cholesky import append, settle
from coretune.select.columns import Candidates, Top, combination, inner_products
from coretune.select.pursuit import Pursuit, TokenLimit, checked_target
from coretune.types import Array


def omp(
    top: Top,
    target: Array,
    size: int,
    ridge: float,
    open_rows: Array,
    *,
    tokens: TokenLimit | None = None,
    tolerance: float = 1e-8,
) -> Pursuit:
    """At most `size` open columns and their weights; arguments and errors as `pursuit.pursue`.

    A column whose weight would turn negative leaves, and may come again. Ends when the budget is full, no
    open column points towards the residual, or the objective falls by less than `tolerance` of itself.
    `Pursuit.entered` is the step at which a row came in.
    """
    target, scale = checked_target(target, size)
    support = _Support(len(target), size)
    residual, objective, objectives = target, 1.0, []
    left = open_rows.copy()
    step = 0
    while support.k < size:
        step += 1
        allowed = left if tokens is None else left & tokens.beside(support.rows())
        found = top(residual, 1, allowed)
        if len(found.rows) == 0:
            break
        if not support.add(found, target, ridge, step):
            left[found.rows] = False  # it depends on those chosen to rounding: nothing to gain
            continue
        left = open_rows.copy()
        left[support.rows()] = False
        residual = target - support.combination()
        last, objective = objective, float(residual @ residual + ridge * (support.x @ support.x))
        objectives.append(objective)
        if last - objective < tolerance * last:
            break
    return support.finished(target, scale, residual, objectives)


class _Support:
    """S with its unit columns, its factor and its weights; slots of columns that left are used again."""

    def __init__(self, width: int, size: int) -> None:
        self.k = 0
        capacity = size + 1
        self._factor = np.zeros((capacity, capacity))
        self._passive = np.zeros(capacity, dtype=np.int64)  # slots in the order of the factor
        self._units = np.zeros((capacity, width), dtype=np.float32)
        self._rows = np.full(capacity, -1, dtype=np.int64)
        self._norms, self._right = np.ones(capacity), np.zeros(capacity)
        self._entered = np.zeros(capacity, dtype=np.int64)
        self._scratch = np.empty(capacity)
        self.x = np.zeros(capacity)  # by slot, 0 where unused

    def rows(self) -> Array:
        return self._rows[self._passive[: self.k]]

    def add(self, found: Candidates, target: Array, ridge: float, step: int) -> bool:
        """Whether the first candidate has a weight now."""
        slots = self._passive[: self.k]
        slot = int(np.setdiff1d(np.arange(self.k + 1), slots)[0])
        norm = found.norms[0]
        self._units[slot] = found.columns[0] / np.float32(norm)
        self._rows[slot], self._norms[slot], self._entered[slot] = found.rows[0], norm, step
        wide = self._units[slot].astype(np.float64)
        self._right[slot] = wide @ target
        inner = inner_products(self._units[: slots.max(initial=-1) + 1], wide)[slots]
        if not append(self._factor, self.k, inner, float(wide @ wide) + ridge):
            return False
        self._passive[self.k] = slot
        self.k = settle(self._factor, self._passive, self.k + 1, self._right, self.x, self._scratch)
        return bool(self.x[slot] > 0.0)

    def combination(self) -> Array:
        return combination(self._units, self.x)

    def finished(self, target: Array, scale: float, residual: Array, objectives: list[float]) -> Pursuit:
        slots = self._passive[: self.k]
        slots = slots[np.lexsort((self._rows[slots], -self.x[slots]))]
        x = self.x[slots]
        return Pursuit(
            rows=self._rows[slots],
            weights=scale * x / self._norms[slots],
            gains=x * (self._units[slots] @ target),
            entered=self._entered[slots],
            remainder=scale * residual,
            residual=float(np.linalg.norm(residual)),
            objectives=tuple(objectives),
        )

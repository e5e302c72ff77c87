"""Non-negative least squares with a ridge:  min_{x >= 0} ‖Σ x_i a_i − b‖² + ρ‖x‖²,  ρ > 0.

The same as nnls([A; √ρ I], [b; 0]); `nnls(AᵀA + ρI, Aᵀb)`, found in several published codes, minimises
something else. Strictly convex, so there is one answer whatever the columns: copies share their weight, zero
columns get none. With r = b − A x it is optimal if and only if (KKT)

    ⟨a_i, r⟩ = ρ x_i where x_i > 0,   ⟨a_i, r⟩ <= 0 where x_i = 0.

Newton's method on the dual asks an `Algebra` for its products, which a pursuit keeps while it cuts, and stops
when the KKT conditions hold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from coretune.types import Array

KKT = 1e-9  # a column outside the support may point towards the residual by this part of ‖b‖
STEPS = 1000  # Newton steps
PATIENCE = 5


class Algebra(Protocol):
    """What Newton's method asks of m columns and a target; a GPU has its own (`torch_nnls.py`)."""

    def correlate(self, residual: Array) -> Array:
        """(m,) float64 ⟨a_i, r⟩."""
        ...

    def combine(self, x: Array) -> Array:
        """(D,) float64 Σ x_i a_i."""
        ...

    def fit(self, passive: Array) -> Array:
        """(m,) float64: the ridge solution on the passive (m,) bool columns, of either sign; 0 elsewhere."""
        ...


#: (columns (m, D), target (D,), ridge) -> their Algebra
MakeAlgebra = Callable[[Array, Array, float], Algebra]


def newton_nnls(algebra: Algebra, target: Array, ridge: float, first: Array, allowed: Array) -> Array:
    """(m,) float64 x by Newton's method on the dual, for any number of columns.

    first    (m,) bool, a guess of the columns that get a weight; a good one saves steps
    allowed  (m,) bool, x = 0 for the others

    The optimal x is max(0, ⟨a_i, r⟩)/ρ for the minimiser r of the strictly convex, piecewise quadratic

        φ(r) = ½‖r‖² − ⟨b, r⟩ + 1/(2ρ) Σ_i max(0, ⟨a_i, r⟩)².

    A Newton step solves least squares on the columns with ⟨a_i, r⟩ > 0: it is the exchange of block
    principal pivoting (Kim and Park, SIAM J. Sci. Comput. 33, 2011). Whole steps are taken while the
    columns on the wrong side get fewer, or did within the last PATIENCE; then steps that a line search
    on φ limits, which converge from anywhere [choice]; and where φ can no longer be distinguished from
    rounding, one column at a time is exchanged, the last one on the wrong side, which ends as well
    (Murty's rule). Each step costs |P|·min(|P|, D)·D at most, less when few columns change sides; ten
    steps are usual.
    """
    _check(ridge)
    scale = float(np.linalg.norm(target))
    residual: Array = np.zeros(len(target))
    inner: Array = np.zeros(len(first))
    passive = allowed & first
    fewest, patience = len(first) + 1, PATIENCE
    for _ in range(STEPS):
        x = algebra.fit(passive)
        goal = target - algebra.combine(x)
        goal_inner = algebra.correlate(goal)
        goal_inner[passive] = ridge * x[passive]  # the same but for rounding, which may have the other sign
        wrong = np.where(passive, x <= 0.0, allowed & (goal_inner > KKT * scale))
        count = int(wrong.sum())
        if count == 0:
            return x
        patience = PATIENCE if count < fewest else patience - 1
        fewest = min(fewest, count)
        step = 1.0
        if patience <= 0:
            sides = inner[allowed], goal_inner[allowed]
            step = _line_search(residual, goal, *sides, target, ridge)
        if step == 0.0:
            last = int(np.flatnonzero(wrong)[-1])
            passive = passive.copy()
            passive[last] = not passive[last]
        else:
            residual, inner = residual + step * (goal - residual), inner + step * (goal_inner - inner)
            passive = allowed & (inner > 0.0)
    raise ArithmeticError(
        f"NNLS of {len(first)} columns has {count} on the wrong side after {STEPS} steps: the ridge of "
        f"{ridge} is too small for columns that depend on each other; raise it"
    )


def _line_search(
    residual: Array, goal: Array, inner: Array, goal_inner: Array, target: Array, ridge: float
) -> float:
    """A step in (0, 1] towards `goal` that lowers φ enough (Armijo, halving); 0 when rounding hides it."""
    direction, turn = goal - residual, goal_inner - inner
    before = _dual(residual, inner, target, ridge)
    slope = float(direction @ (residual - target)) + float(turn @ np.maximum(inner, 0.0)) / ridge
    for halvings in range(20):
        step = 0.5**halvings
        if -step * slope < 1e-9 * abs(before):
            return 0.0
        if (
            _dual(residual + step * direction, inner + step * turn, target, ridge)
            <= before + 1e-4 * step * slope
        ):
            return step
    return 0.0


def _dual(residual: Array, inner: Array, target: Array, ridge: float) -> float:
    positive = np.maximum(inner, 0.0)
    return float(0.5 * residual @ residual - target @ residual + positive @ positive / (2.0 * ridge))


def _check(ridge: float) -> None:
    if not ridge > 0.0:
        raise ValueError(f"a ridge of {ridge}: it must be positive, or copies have no one solution")

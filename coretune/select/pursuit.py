"""Joint selection by pursuit: few columns whose non-negative combination is nearest to a target.

    min_{x >= 0, ‖x‖₀ <= M}  ‖Ã x − b‖² + ρ ‖x‖²,   ã_i = a_i / ‖a_i‖,   w_i = x_i / ‖a_i‖

in the manner of CoSaMP (Needell and Tropp, 2009) with signs, as GTP has it:

    S ← ∅; r ← b
    repeat up to `iterations` times:
      c ← Ãᵀ r                                      one pass over all columns: the argument `top`
      U ← S ∪ the 2M largest c with c > 0
      x ← argmin_{x>=0} ‖Ã_U x − b‖² + ρ ‖x‖²
      S ← the M largest positive x; x_S ← solved again on S alone
      r ← b − Ã_S x_S
      keep the iterate of least objective; stop when S repeats or the gain is below the tolerance
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from coretune.select.columns import Candidates, Top, combination
from coretune.select.nnls import Solve, ridge_nnls
from coretune.types import Array, Rows

#: rows in the order of their weight, largest first -> how to choose among them: (k,) positions kept
Keep = Callable[[Rows], Array]


@dataclass(frozen=True)
class Pursuit:
    """The best iterate.

    rows        (K,) int64    distinct, by falling weight of the unit column; K = 0 when no open column points
                              towards the target
    weights     (K,) float64  w > 0, of the columns as they are: Σ w_i a_i is near b
    gains       (K,) float64  x_i ⟨ã_i, b⟩ / ‖b‖²: the part of the target each row accounts for
    entered     (K,) int64    iteration in which a row last came in, from 1
    residual    ‖b − Σ w_i a_i‖ / ‖b‖
    objectives  (‖r‖² + ρ‖x‖²) / ‖b‖² of every iterate, in order; the least of them is the one returned
    """

    rows: Rows
    weights: Array
    gains: Array
    entered: Array
    residual: float
    objectives: tuple[float, ...]


def pursue(
    top: Top,
    target: Array,
    size: int,
    ridge: float,
    open_rows: Array,
    *,
    keep: Keep | None = None,
    solve: Solve = ridge_nnls,
    iterations: int = 10,
    tolerance: float = 1e-3,
) -> Pursuit:
    """At most `size` open columns and their weights.

    top        the pass over all columns (`columns.Columns.top`, or a cluster's)
    target     (D,) b; ValueError when it is zero or not finite
    size       M >= 1
    ridge      ρ > 0, relative to unit columns
    open_rows  (n,) bool: rows that may be chosen
    keep       which rows of an iterate stay, in place of the first M (for a token budget)
    solve      the NNLS engine (`nnls.ridge_nnls`, or one on a GPU)
    tolerance  stop when an iterate lowers the least objective by less than this part of it
    """
    target = np.asarray(target, dtype=np.float64)
    scale = float(np.linalg.norm(target))
    if not np.isfinite(scale) or scale == 0.0:
        raise ValueError(f"the target has norm {scale}: a pursuit needs a finite target other than zero")
    if size < 1:
        raise ValueError(f"a pursuit of {size} rows chooses nothing; ask for at least 1")
    state = _Iterate.empty(target / scale)
    best, objectives, seen = state, [], set()
    for iteration in range(1, iterations + 1):
        found = top(state.residual, 2 * size, open_rows)
        state = _step(state, found, iteration, size, ridge, keep, solve)
        if len(state.rows) == 0:
            break
        objectives.append(state.objective)
        gain = best.objective - state.objective
        if gain > 0.0:
            best = state
        key = np.sort(state.rows).tobytes()
        if key in seen or gain < tolerance * best.objective:
            break
        seen.add(key)
    return best.finished(scale, tuple(objectives))


@dataclass(frozen=True)
class _Iterate:
    """S with its unit columns, for a target of norm 1."""

    target: Array  # (D,)
    rows: Rows
    units: Array  # (K, D) float32
    norms: Array
    x: Array  # (K,) > 0, falling
    entered: Array
    residual: Array  # (D,)
    objective: float

    @classmethod
    def empty(cls, target: Array) -> _Iterate:
        none = np.zeros(0, dtype=np.int64)
        units = np.zeros((0, len(target)), dtype=np.float32)
        return cls(target, none, units, np.zeros(0), np.zeros(0), none, target, 1.0)

    def finished(self, scale: float, objectives: tuple[float, ...]) -> Pursuit:
        gains = self.x * (self.units @ self.target)
        residual = float(np.linalg.norm(self.residual))
        weights = scale * self.x / self.norms
        return Pursuit(self.rows, weights, gains, self.entered, residual, objectives)


def _step(
    state: _Iterate,
    found: Candidates,
    iteration: int,
    size: int,
    ridge: float,
    keep: Keep | None,
    solve: Solve,
) -> _Iterate:
    """S joined with the candidates, solved, cut to size, solved again."""
    new = ~np.isin(found.rows, state.rows)
    rows = np.concatenate([state.rows, found.rows[new]])
    fresh = found.columns[new] / found.norms[new, None].astype(np.float32)
    units = np.concatenate([state.units, fresh])
    norms = np.concatenate([state.norms, found.norms[new]])
    entered = np.concatenate([state.entered, np.full(int(new.sum()), iteration)])
    x = solve(units, state.target, ridge, np.concatenate([state.x, np.zeros(int(new.sum()))]))
    kept = np.lexsort((rows, -x))[: int((x > 0.0).sum())]
    kept = kept[:size] if keep is None else kept[keep(rows[kept])]
    if len(kept) < (x > 0.0).sum():
        units = units[kept]
        x = solve(units, state.target, ridge, x[kept])
    else:
        units, x = units[kept], x[kept]
    rows, norms, entered = rows[kept], norms[kept], entered[kept]
    order = np.lexsort((rows, -x))[: int((x > 0.0).sum())]
    units, x = units[order], x[order]
    residual = state.target - combination(units, x)
    objective = float(residual @ residual + ridge * (x @ x))
    return _Iterate(state.target, rows[order], units, norms[order], x, entered[order], residual, objective)

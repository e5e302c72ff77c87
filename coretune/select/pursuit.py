"""Joint selection by pursuit: few columns whose non-negative combination is nearest to a target.

    min_{x >= 0, ‖x‖₀ <= M}  ‖Ã x − b‖² + ρ ‖x‖²,   ã_i = a_i / ‖a_i‖,   w_i = x_i / ‖a_i‖

in the manner of CoSaMP (Needell and Tropp, 2009) with signs, as GTP has it:

    S ← ∅; r ← b
    repeat up to `iterations` times:
      c ← Ãᵀ r                                      one pass over all columns: the argument `top`
      U ← S ∪ the 2M largest c with c > 0
      x ← argmin_{x>=0} ‖Ã_U x − b‖² + ρ ‖x‖²
      S ← the M largest positive x, cut by a part at a time, solved after each; x_S ← NNLS
      r ← b − Ã_S x_S
      keep the iterate of least objective; stop when S repeats or the gain is below the tolerance

Cutting in steps [choice] is what makes it as good as orthogonal matching pursuit: one cut down to M rows left
an objective up to 1.8 times as high (docs/gtp.md). A repeat costs one pass over all columns, whatever M is.
For many dimensions solving costs more than the passes. So only while iterates halve the objective are there
2M candidates; then M/2, cut more finely [choice]: as low an objective for half the time or less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from coretune.progress_reports import Reporter, reporter
from coretune.select.columns import Candidates, Top, combination
from coretune.select.nnls import MakeAlgebra, newton_nnls
from coretune.select.ridge_fit import Dense
from coretune.types import Array, Rows

HALVED = 0.5  # iterates are rough while they bring the objective to this part of the last one or less
SMALLEST = 1e-6  # a gain that no training would feel


@dataclass(frozen=True)
class Stage:
    """candidates: of an iterate, in parts of M; cut: part of the rows that one cut leaves."""

    candidates: float
    cut: float


ROUGH, FINE = Stage(2.0, 0.6), Stage(0.5, 0.95)


@dataclass(frozen=True)
class TokenLimit:
    """A budget in tokens.

    cost    (n,) int64 > 0, tokens of each pool row
    amount  tokens that may be spent
    """

    cost: Array
    amount: int

    def fitting(self, rows: Rows) -> Array:
        """(k,) int64 positions in `rows`, taken in order; what no longer fits is passed over."""
        kept, left = [], self.amount
        for position, tokens in enumerate(self.cost[rows].tolist()):
            if tokens <= left:
                kept.append(position)
                left -= tokens
        return np.array(kept, dtype=np.int64)

    def beside(self, rows: Rows) -> Array:
        """(n,) bool: what can still be paid for when `rows` are."""
        affordable: Array = self.cost <= self.amount - int(self.cost[rows].sum())
        return affordable


@dataclass(frozen=True)
class Pursuit:
    """The best iterate.

    rows        (K,) int64    distinct, by falling weight of the unit column; K = 0 when no open column points
                              towards the target
    weights     (K,) float64  w > 0, of the columns as they are: Σ w_i a_i is near b
    gains       (K,) float64  x_i ⟨ã_i, b⟩ / ‖b‖²: the part of the target each row accounts for
    entered     (K,) int64    iteration in which a row last came in, from 1
    remainder   (D,) float64  b − Σ w_i a_i
    residual    ‖b − Σ w_i a_i‖ / ‖b‖
    objectives  (‖r‖² + ρ‖x‖²) / ‖b‖² of every iterate, in order; the least of them is the one returned
    """

    rows: Rows
    weights: Array
    gains: Array
    entered: Array
    remainder: Array
    residual: float
    objectives: tuple[float, ...]


def pursue(
    top: Top,
    target: Array,
    size: int,
    ridge: float,
    open_rows: Array,
    *,
    tokens: TokenLimit | None = None,
    algebra: MakeAlgebra = Dense,
    iterations: int = 20,
    tolerance: float = 1e-3,
) -> Pursuit:
    """At most `size` open columns and their weights.

    top        the pass over all columns (`columns.Columns.top`, or a cluster's)
    target     (D,) b; ValueError when it is zero or not finite
    size       M >= 1
    ridge      ρ > 0, relative to unit columns
    open_rows  (n,) bool: rows that may be chosen
    tokens     of an iterate's rows those stay that can be paid for, largest weight first, in place of the
               first M; M then only says how many rows are considered
    algebra    what does the products of NNLS (`ridge_fit.Dense`, or one on a GPU)
    tolerance  stop when an iterate lowers the least objective by less than this part of it, or by less than
               SMALLEST of ‖b‖²
    """
    target, scale = checked_target(target, size)
    state = _Iterate.empty(target)
    best, objectives, seen = state, [], set()
    tell, stage = Reporter(reporter("choosing"), iterations), ROUGH
    for iteration in range(1, iterations + 1):
        found = top(state.residual, math.ceil(stage.candidates * size), open_rows)
        state = _step(state, found, iteration, size, stage.cut, ridge, tokens, algebra)
        tell()
        if len(state.rows) == 0:
            break
        objectives.append(state.objective)
        last, gain = best.objective, best.objective - state.objective
        if gain > 0.0:
            best = state
        key = np.sort(state.rows).tobytes()
        if stage is ROUGH and state.objective > HALVED * last:
            stage = FINE
        elif key in seen or gain < max(tolerance * best.objective, SMALLEST):
            break
        seen.add(key)
    return best.finished(scale, tuple(objectives))


def checked_target(target: Array, size: int) -> tuple[Array, float]:
    """(D,) float64 b / ‖b‖, and ‖b‖."""
    target = np.asarray(target, dtype=np.float64)
    scale = float(np.linalg.norm(target))
    if not np.isfinite(scale) or scale == 0.0:
        raise ValueError(f"the target has norm {scale}: a pursuit needs a finite target other than zero")
    if size < 1:
        raise ValueError(f"a pursuit of {size} rows chooses nothing; ask for at least 1")
    return target / scale, scale


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
        weights, remainder = scale * self.x / self.norms, scale * self.residual
        return Pursuit(self.rows, weights, gains, self.entered, remainder, residual, objectives)


def _step(
    state: _Iterate,
    found: Candidates,
    iteration: int,
    size: int,
    cut: float,
    ridge: float,
    tokens: TokenLimit | None,
    algebra: MakeAlgebra,
) -> _Iterate:
    """S joined with the candidates, solved, cut to size, solved again."""
    new = ~np.isin(found.rows, state.rows)
    count = int(new.sum())
    rows = np.concatenate([state.rows, found.rows[new]])
    fresh = found.columns[new] / found.norms[new, None].astype(np.float32)
    units = np.concatenate([state.units, fresh])
    norms = np.concatenate([state.norms, found.norms[new]])
    entered = np.concatenate([state.entered, np.full(count, iteration)])
    products = algebra(units, state.target, ridge)
    allowed, first = np.ones(len(rows), dtype=bool), np.arange(len(rows)) < len(state.rows) + size // 2
    x = newton_nnls(products, state.target, ridge, first, allowed)
    kept = _by_weight(x, rows)
    while (stay := _stay(rows[kept], size, cut, tokens)) is not None:
        allowed[:] = False
        allowed[kept[stay]] = True
        x = products.fit(allowed)
        kept = _by_weight(x, rows)
    if not allowed.all():
        x = newton_nnls(products, state.target, ridge, allowed, allowed)
        kept = _by_weight(x, rows)
    rows, units, norms, entered, x = rows[kept], units[kept], norms[kept], entered[kept], x[kept]
    residual = state.target - combination(units, x)
    objective = float(residual @ residual + ridge * (x @ x))
    return _Iterate(state.target, rows, units, norms, x, entered, residual, objective)


def _by_weight(x: Array, rows: Rows) -> Array:
    """(k,) positions of the positive x, largest first; the lower row among equals."""
    return np.lexsort((rows, -x))[: int((x > 0.0).sum())]


def _stay(rows: Rows, size: int, cut: float, tokens: TokenLimit | None) -> Array | None:
    """(k,) positions that the next cut leaves of rows in the order of weight; None when all may stay."""
    within = np.arange(min(size, len(rows))) if tokens is None else tokens.fitting(rows)
    if len(within) == len(rows):
        return None
    part = int(cut * len(rows))
    return within if len(within) >= part else np.arange(part)

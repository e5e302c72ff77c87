"""GTP: rows chosen jointly, so that together they move the model as the target would."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from coretune.select.column_copies import copy_ranks
from coretune.select.columns import Candidates, Columns, combination, mean_column
from coretune.select.deflation import Filled, announce, fill, require_budget
from coretune.select.nnls import MakeAlgebra
from coretune.select.pursuit import Pursuit, TokenLimit, pursue
from coretune.select.ranking import coreset, usable_feature
from coretune.select.ridge_fit import Dense
from coretune.types import SHARE, TARGET_NUMBER, TRAJECTORY, Array, Budget, Coreset, Pool


class Passes(Protocol):
    """The passes over all columns, on one machine (`columns.Columns`) or on many."""

    @property
    def norms(self) -> Array: ...

    def correlate(self, residual: Array) -> Array: ...

    def top(self, residual: Array, count: int, open_rows: Array) -> Candidates: ...


@dataclass(frozen=True)
class Gtp:
    """Gradient trajectory pursuit.

    Deng, Li, Li, "Influential Language Data Selection via Gradient Trajectory Pursuit", arXiv:2410.16710:
    match the gradient field of the target in a subspace, along the checkpoints of a training, by non-negative
    least squares under an L0 constraint. With checkpoints θ_t, learning rates η_t and bases P_t

        a_i = (√η_t P_tᵀ ∇ℓ(x_i; θ_t))_t,   b = the target's mean of the same
        min_{w>=0, ‖w‖₀<=M}  ‖b − Σ_i w_i a_i‖² + ρ Σ_i (w_i ‖a_i‖)²

    Feature `trajectory` (n, D) holds a_i. The target is the pool itself (b = its mean over usable rows), or
    the given examples: `references["trajectory"]` (S, D), one b each, with `references["share"]` (S,) of the
    budget, pursued one after the other on rows not taken yet [choice]. Weights are brought to mean 1, for
    each target among its own rows: the scale of b is left to the learning rate. docs/gtp.md has what is the
    paper's and what is ours. No official code is public.

    When no row is left that points towards the target, the rest of the budget stays unfilled, and a warning
    says so.

    Attributes:
        checkpoints_from: "warmup", or a folder of checkpoints.
        checkpoints: T, how many of them are measured at.
        ridge: ρ > 0, relative to unit columns; without it NNLS returns at most rank(A) rows [choice].
        iterations: Of one pursuit.
        copies: Columns of at least this cosine are copies, of which a second one is chosen only when nothing
            distinct is left.

    Reasons: correlation (cosine with b, the largest over the targets), pursuit_weight, iteration (in which a
        row came in, 0 = not chosen), deflation (the pursuit that chose it, from 1), for_target (the number of
        the target that it was chosen for, where there are several; -1 = not chosen).
    """

    checkpoints_from: str = "warmup"
    checkpoints: int = 4
    ridge: float = 0.01
    iterations: int = 20
    copies: float = 0.9999

    name: ClassVar[str] = "gtp"

    def __post_init__(self) -> None:
        if not self.ridge > 0.0:
            raise ValueError(f"ridge is {self.ridge}: give a number above 0, such as 0.01")
        for name in ("checkpoints", "iterations"):
            if vars(self)[name] < 1:
                raise ValueError(f"{name} is {vars(self)[name]}: give at least 1")
        if not 0.0 < self.copies <= 1.0:
            raise ValueError(f"copies is {self.copies}: give a cosine above 0, at most 1")

    @property
    def needs(self) -> tuple[str, ...]:
        return (TRAJECTORY,)

    @property
    def defaults(self) -> Mapping[str, Any]:
        """The settings beside it by default: a static, weighted coreset from exact measurements [choice]."""
        return {
            "weighted": True,
            "refresh_every": "never",
            "refresh": {"anchors": "all", "propagate": "none", "repair": "none"},
            "signals": {"projection_dim": 512, "last_blocks": None, "preconditioner": "linear"},
        }

    def select(self, pool: Pool, budget: Budget, rng: np.random.Generator) -> Coreset:
        return self.choose(pool, budget)

    def choose(
        self,
        pool: Pool,
        budget: Budget,
        passes_over: Callable[[Array], Passes] = Columns.of,
        algebra: MakeAlgebra = Dense,
    ) -> Coreset:
        """`select` with the passes made elsewhere (a cluster) or NNLS (a GPU): the same answer."""
        require_budget(budget, pool.cost, pool.usable)
        features = usable_feature(pool, TRAJECTORY)
        passes = passes_over(features)
        ranks = copy_ranks(features, passes.norms, self.copies)

        def engine(target: Array, size: int, open_rows: Array, tokens: TokenLimit | None) -> Pursuit:
            return pursue(
                passes.top,
                target,
                size,
                self.ridge,
                open_rows,
                tokens=tokens,
                algebra=algebra,
                iterations=self.iterations,
            )

        targets, shares = _targets(pool, features)
        still, filled, spent = pool.usable & (passes.norms > 0.0), [], 0
        for target, until in zip(targets, np.cumsum(shares) / shares.sum(), strict=True):
            part = Budget(round(budget.amount * until) - spent, budget.unit)
            one = fill(engine, target, part, pool.cost, still, ranks)
            still[one.rows] = False
            spent += len(one.rows) if budget.unit == "rows" else int(pool.cost[one.rows].sum())
            filled.append(one)
        if not spent:
            raise ValueError("no usable row points towards the target: give other target examples")
        figures = announce(self.name, filled, budget, ranks)
        return _coreset(pool, passes, targets, filled, figures)

    def value(self, pool: Pool, coreset: Coreset) -> float:
        """1 − min_{s>=0} ‖b − s Σ w_i a_i‖² / ‖b‖², mean over the targets by share; 1 is perfect."""
        features = usable_feature(pool, TRAJECTORY)
        targets, shares = _targets(pool, features)
        sum_ = combination(np.asarray(features[coreset.indices], dtype=np.float32), coreset.weights)
        inner = np.maximum(targets @ sum_, 0.0)
        matched = inner**2 / np.maximum((sum_ @ sum_) * (targets**2).sum(axis=1), 1e-300)
        return float(matched @ shares / shares.sum())


def _targets(pool: Pool, features: Array) -> tuple[Array, Array]:
    """(S, D) float64 targets and (S,) float64 shares: the references, or the pool's own mean."""
    if TRAJECTORY in pool.references:
        targets = np.asarray(pool.references[TRAJECTORY], dtype=np.float64)
        return targets, np.asarray(pool.references[SHARE], dtype=np.float64)
    return mean_column(features, pool.usable)[None], np.ones(1)


def _coreset(
    pool: Pool, passes: Passes, targets: Array, filled: list[Filled], figures: Mapping[str, Any]
) -> Coreset:
    correlation = np.max([passes.correlate(b) / np.linalg.norm(b) for b in targets], axis=0)
    reasons = {"correlation": np.where(pool.usable, correlation, 0.0)}
    rows = np.concatenate([one.rows for one in filled])
    weights = np.concatenate([one.weights / one.weights.mean() for one in filled if len(one.rows)])
    gains = np.concatenate([one.gains for one in filled])
    chosen = coreset(rows, gains, reasons, weights, figures)
    columns = {
        "pursuit_weight": chosen.weights,
        "iteration": np.concatenate([one.entered for one in filled]),
        "deflation": np.concatenate([one.round for one in filled]),
    }
    if len(targets) > 1:
        reasons[TARGET_NUMBER] = np.full(pool.n, -1.0)
        reasons[TARGET_NUMBER][rows] = np.repeat(np.arange(len(filled)), [len(one.rows) for one in filled])
    for name, value in columns.items():
        reasons[name] = np.zeros(pool.n)
        reasons[name][rows] = value
    return chosen

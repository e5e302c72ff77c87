"""GradMatch: few weighted rows whose gradients add up to the pool's, one at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coretune.select.columns import Columns, mean_column
from coretune.select.deflation import announce, fill, require_budget
from coretune.select.omp import omp
from coretune.select.pursuit import Pursuit, TokenLimit
from coretune.select.ranking import coreset, usable_feature
from coretune.types import Array, Budget, Coreset, Pool


@dataclass(frozen=True)
class GradMatch:
    """Orthogonal matching pursuit of the pool's mean gradient.

    Killamsetty et al., "GRAD-MATCH: Gradient Matching based Data Subset Selection for Efficient Deep Model
    Training", ICML 2021, arXiv:2103.00123, Algorithm 2:

        E_λ(S) = min_{w>=0} ‖Σ_{i∈S} w_i ∇ℓ_i − ∇ℓ̄‖² + λ ‖w‖²;   S grows by argmax_i ⟨∇ℓ_i, r⟩

    with r the residual. The columns are not normalised, as in the paper. λ is in units of the mean
    ‖∇ℓ_i‖² [choice], so that it means the same for every model. Weights solve E_λ itself; the published
    code hands NNLS its normal equations, which is another problem. That code fills what OMP leaves of a
    budget with random rows; here further pursuits do (`deflation.py`), and what they leave stays
    unfilled. The paper selects per class, or whole mini-batches; instructions have no classes [choice].

    Attributes:
        signal: `gradient`, or `head_gradient`: the last layer's, as in the paper's experiments.
        lambda_: The ridge λ, above 0.

    Reasons: correlation (cosine with the mean gradient), pursuit_weight, step (a row came in at, 0 = none).
    """

    signal: str = "gradient"
    lambda_: float = 0.5

    name: ClassVar[str] = "gradmatch"

    def __post_init__(self) -> None:
        if not self.lambda_ > 0.0:
            raise ValueError(f"lambda is {self.lambda_}: give a number above 0, such as the paper's 0.5")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.signal,)

    def select(self, pool: Pool, budget: Budget, rng: np.random.Generator) -> Coreset:
        require_budget(budget, pool.cost, pool.usable)
        features = usable_feature(pool, self.signal)
        normed = Columns.of(features)
        as_they_are = Columns(features, np.where(normed.norms > 0.0, 1.0, 0.0))
        still = pool.usable & (normed.norms > 0.0)
        ridge = self.lambda_ * float((normed.norms[still] ** 2).mean()) if still.any() else self.lambda_
        mean = mean_column(features, pool.usable)

        def engine(target: Array, size: int, open_rows: Array, tokens: TokenLimit | None) -> Pursuit:
            return omp(as_they_are.top, target, size, ridge, open_rows, tokens=tokens)

        nobody = np.zeros(pool.n, dtype=np.int64)  # the paper knows no copies
        filled = fill(engine, mean, budget, pool.cost, still, nobody)
        if not len(filled.rows):
            raise ValueError("no usable row points towards the mean gradient: every row has the same right")
        figures = announce(self.name, [filled], budget, nobody)
        cosine = normed.correlate(mean) / np.linalg.norm(mean)
        reasons = {"correlation": np.where(pool.usable, cosine, 0.0)}
        chosen = coreset(filled.rows, filled.gains, reasons, filled.weights, figures)
        for name, value in (("pursuit_weight", chosen.weights), ("step", filled.entered)):
            reasons[name] = np.zeros(pool.n)
            reasons[name][filled.rows] = value
        return chosen

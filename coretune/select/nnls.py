"""Non-negative least squares with a ridge."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import nnls

from coretune.types import Array

#: (columns (m, D), target (D,), ridge, start (m,)) -> x (m,) float64 >= 0, argmin ‖Σ x_i a_i − b‖² + ρ‖x‖²
Solve = Callable[[Array, Array, float, Array], Array]


def ridge_nnls(columns: Array, target: Array, ridge: float, start: Array) -> Array:
    """By scipy on the augmented system [A; √ρ I] x = [b; 0]."""
    augmented = np.concatenate([np.asarray(columns, np.float64).T, np.sqrt(ridge) * np.eye(len(columns))])
    return nnls(augmented, np.concatenate([target, np.zeros(len(columns))]))[0]

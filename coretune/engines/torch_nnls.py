"""Ridge NNLS on a GPU: the products of Newton's method done by torch."""

from __future__ import annotations

import numpy as np
import torch

from coretune.select.nnls import Algebra, MakeAlgebra
from coretune.types import Array


def torch_algebra(device: str) -> MakeAlgebra:
    """For `select.nnls.newton_nnls`: columns on the device in float64, so that answers are the CPU's.

    Holds (m, D) numbers for m columns, and (min(p, D))² for p of them that have a weight.
    """

    def make(columns: Array, target: Array, ridge: float) -> Algebra:
        return _TorchAlgebra(columns, target, ridge, device)

    return make


class _TorchAlgebra:
    """`select.nnls.Algebra` of columns (m, D) on a device."""

    def __init__(self, columns: Array, target: Array, ridge: float, device: str) -> None:
        self._columns = torch.as_tensor(columns, device=device).double()
        self._target = torch.as_tensor(target, device=device).double()
        self._ridge = ridge

    def correlate(self, residual: Array) -> Array:
        return _numpy(self._columns @ self._there(residual))

    def combine(self, x: Array) -> Array:
        return _numpy(self._there(x) @ self._columns)

    def fit(self, passive: Array) -> Array:
        chosen = self._columns[torch.as_tensor(passive, device=self._columns.device)]
        x = np.zeros(len(passive))
        if len(chosen) <= chosen.shape[1]:
            x[passive] = _numpy(_solved(chosen @ chosen.T, self._ridge, chosen @ self._target))
        else:
            x[passive] = _numpy(chosen @ _solved(chosen.T @ chosen, self._ridge, self._target))
        return x

    def _there(self, vector: Array) -> torch.Tensor:
        return torch.as_tensor(vector, device=self._columns.device).double()


def _solved(gram: torch.Tensor, ridge: float, right: torch.Tensor) -> torch.Tensor:
    gram.diagonal().add_(ridge)
    return torch.cholesky_solve(right[:, None], torch.linalg.cholesky(gram))[:, 0]


def _numpy(tensor: torch.Tensor) -> Array:
    found: Array = tensor.cpu().numpy()
    return found

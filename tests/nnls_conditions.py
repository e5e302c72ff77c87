"""What the solution of a non-negative least-squares problem fulfils, and nothing else does."""

from __future__ import annotations

import numpy as np

from coretune.types import Array


def kkt_residual(columns: Array, target: Array, ridge: float, x: Array) -> float:
    """Largest violation of the conditions in `select/nnls.py` over ‖b‖, a negative x too; unit columns."""
    wide = np.asarray(columns, dtype=np.float64)
    inner = wide @ (target - x @ wide)
    off = np.where(x > 0.0, np.abs(inner - ridge * x), np.maximum(inner, 0.0))
    return float(max(off.max(initial=0.0), -x.min(initial=0.0)) / max(np.linalg.norm(target), 1e-300))

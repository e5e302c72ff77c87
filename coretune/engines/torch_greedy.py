"""Similarities between all pairs on a GPU: the products of dense greedy done by torch."""

from __future__ import annotations

import numpy as np
import torch

from coretune.select.dense import At, MakeProducts, Products
from coretune.types import Array


def torch_products(device: str) -> MakeProducts:
    """For `choose(…, products=torch_products("cuda"))` of the methods over all pairs.

    Features are kept on the device in their dtype, products are float32 (torch's default precision, no TF32),
    and blocks come back: 4 bytes a pair for each pass, beside 2d multiplications and additions. Rows chosen
    are numpy's, gains to rounding (`DENSE_TIE`).
    """

    def make(features: Array) -> Products:
        there = torch.as_tensor(np.ascontiguousarray(features), device=device)

        def inner(rows: At, columns: At) -> Array:
            found: Array = (_of(there, rows) @ _of(there, columns).T).cpu().numpy()
            return found

        return inner

    return make


def _of(features: torch.Tensor, at: At) -> torch.Tensor:
    """(b, d) float32."""
    where = at if isinstance(at, slice) else torch.as_tensor(at, device=features.device)
    return features[where].float()

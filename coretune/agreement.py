"""Does a row's gradient point where those of similar rows point? The graph's own sign of a wrong response.

    a_i = ⟨u_i, 1/|J| Σ_{j∈J} u_j⟩,   u = g / ‖g‖,   J = the usable graph neighbours of i

[choice] GRACE's score measures how much a row would change the model; on a dirty pool wrong responses would
change it most. Rows with similar prompts and right responses ask for similar changes, a wrong response asks
for another one, and this shows from the first steps on, long before the losses part (LOG.md has figures).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from coretune.types import Array, NeighborGraph, Rows


def neighbour_agreement(graph: NeighborGraph, gradient: Array, usable: Array, rows: Rows) -> Array:
    """(m,) float32 in [-1, 1]: a_i of `rows`; 0 for a row without a usable neighbour or without a direction.

    gradient  (n, p)   projected gradients, any length; inner products of projections are unbiased
    usable    (n,) bool
    """
    return _agreement(graph.neighbors, gradient, usable, np.asarray(rows, np.int64))


@njit(cache=True, nogil=True, fastmath=True)
def _agreement(neighbors: Array, gradient: Array, usable: Array, rows: Rows) -> Array:
    """1/|J| Σ_j ⟨g_i, g_j⟩ / (‖g_i‖ ‖g_j‖), pair by pair: gathering them would take k pools."""
    agreement = np.zeros(len(rows), np.float32)
    for r in range(len(rows)):
        i = rows[r]
        own, count, total = np.float32(0), 0, np.float32(0)
        for c in range(gradient.shape[1]):
            own += gradient[i, c] * gradient[i, c]
        for j in neighbors[i]:
            if j < 0 or not usable[j]:
                continue
            count += 1
            product, square = np.float32(0), np.float32(0)
            for c in range(gradient.shape[1]):
                product += gradient[i, c] * gradient[j, c]
                square += gradient[j, c] * gradient[j, c]
            if square > 0:
                total += product / np.sqrt(square)
        if count and own > 0:
            agreement[r] = total / (np.sqrt(own) * count)
    return agreement

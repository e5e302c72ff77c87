"""Does a row's gradient point where those of similar rows point? The graph's own sign of a wrong response.

    a_i = ⟨u_i, 1/|J| Σ_{j∈J} u_j⟩,   u = g / ‖g‖,   J = the usable graph neighbours of i

[choice] GRACE's score measures how much a row would change the model; on a dirty pool wrong responses would
change it most. Rows with similar prompts and right responses ask for similar changes, a wrong response asks
for another one, and this shows from the first steps on, long before the losses part (LOG.md has figures).
"""

from __future__ import annotations

import numpy as np

from coretune.types import Array, NeighborGraph, Rows

BLOCK = 4096  # rows whose neighbours' gradients are gathered at once


def neighbour_agreement(graph: NeighborGraph, gradient: Array, usable: Array, rows: Rows) -> Array:
    """(m,) float32 in [-1, 1]: a_i of `rows`; 0 for a row without a usable neighbour or without a direction.

    gradient  (n, p)   projected gradients, any length; inner products of projections are unbiased
    usable    (n,) bool
    """
    agreement = np.zeros(len(rows), np.float32)
    for first in range(0, len(rows), BLOCK):
        block = rows[first : first + BLOCK]
        neighbors = graph.neighbors[block]
        counts = (neighbors >= 0) & usable[neighbors]
        around = _unit(gradient[neighbors]) * counts[:, :, None]
        mean = around.sum(axis=1) / np.maximum(counts.sum(axis=1), 1)[:, None]
        agreement[first : first + BLOCK] = np.einsum("mp,mp->m", _unit(gradient[block]), mean)
    return agreement


def _unit(gradient: Array) -> Array:
    length = np.linalg.norm(gradient, axis=-1, keepdims=True)
    return gradient / np.where(length > 0, length, 1)

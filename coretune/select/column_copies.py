"""Copies among many columns, without comparing all pairs.

The same text gives the same column up to rounding, which depends on the batch it was measured in. Each unit
column is hashed to the cells of a few random grids; those that share a cell are compared, and are copies when
their cosine reaches the threshold. Exact copies always share every cell. Columns that differ by δ = ‖ã − ã'‖
are missed by all three grids with a probability of about (9.6 δ)³: 1e-6 at δ = 1e-3, 2e-3 at a cosine of
0.9999 (δ = 0.014).
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from coretune.select.columns import project_rows
from coretune.types import Array, Rows

GRIDS = 3
DIRECTIONS = 12  # per grid; a cell holds one standard deviation in each
BLOCK = 8192
LEADERS = 16  # rows of a cell that the others are compared with; more distinct columns in one cell are left


def copy_ranks(features: Array, norms: Array, cosine: float) -> Array:
    """(n,) int64: how many lower rows of its group a row has; 0 for the lowest of each group of copies.

    features  (n, D) float, memory-mapped or not; a row of norm 0 is nobody's copy
    norms     (n,) float64
    cosine    columns whose unit vectors have at least this cosine are copies; groups are joined by chains
    """
    n, width = features.shape
    pairs = [np.zeros((0, 2), dtype=np.int64)]
    for grid in range(GRIDS):
        rng = np.random.default_rng([width, grid])  # a fixed hash, not a matter of a run's luck
        cells = _cells(features, norms, rng.standard_normal((DIRECTIONS, width)), rng.random(DIRECTIONS))
        pairs.extend(_pairs(features, norms, cells, cosine))
    joined = np.concatenate(pairs)
    graph = coo_matrix((np.ones(len(joined), dtype=np.int8), (joined[:, 0], joined[:, 1])), shape=(n, n))
    _, group = connected_components(graph, directed=False)
    order = np.argsort(group, kind="stable")  # by group, rising rows within
    first = np.searchsorted(group[order], group[order], side="left")
    ranks = np.empty(n, dtype=np.int64)
    ranks[order] = np.arange(n) - first
    return ranks


def _cells(features: Array, norms: Array, directions: Array, shift: Array) -> Array:
    """(n,) int64 hash of each row's cell; rows of norm 0 have a cell each."""
    cells = np.empty(len(features), dtype=np.int64)
    odd = np.random.default_rng(1).integers(1, 2**62, size=DIRECTIONS) | 1
    for start in range(0, len(features), BLOCK):
        part = slice(start, start + BLOCK)
        projected = project_rows(features[part], directions)
        norm = norms[part, None]
        place = np.divide(projected, norm, out=np.zeros_like(projected), where=norm > 0.0)
        cells[part] = (np.floor(place + shift).astype(np.int64) * odd).sum(axis=1)  # wraps around
    empty = np.flatnonzero(norms == 0.0)
    cells[empty] = -1 - empty
    return cells


def _pairs(features: Array, norms: Array, cells: Array, cosine: float) -> list[Array]:
    """(m, 2) int64 blocks of (row, lower row) that are copies.

    The lowest row of each cell leads; its copies are settled, and of the rest again the lowest leads.
    """
    found: list[Array] = []
    rows = np.flatnonzero(norms > 0.0)
    for _ in range(LEADERS):
        order = rows[np.argsort(cells[rows], kind="stable")]
        begins = np.concatenate([[True], cells[order][1:] != cells[order][:-1]]) if len(order) else order > 0
        leaders = (
            order[np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))] if len(order) else order
        )
        rows, leaders = order[~begins], leaders[~begins]
        if len(rows) == 0:
            break
        same = _cosines(features, norms, rows, leaders) >= cosine
        found.append(np.stack([rows[same], leaders[same]], axis=1))
        rows = np.sort(rows[~same])
    return found


def _cosines(features: Array, norms: Array, rows: Rows, others: Rows) -> Array:
    cosines = np.empty(len(rows))
    for start in range(0, len(rows), BLOCK):
        part = slice(start, start + BLOCK)
        one, other = (np.asarray(features[at[part]], dtype=np.float32) for at in (rows, others))
        cosines[part] = np.einsum("md,md->m", one, other, dtype=np.float64) / (
            norms[rows[part]] * norms[others[part]]
        )
    return cosines

"""GRACE's refresh as it was published, and nothing else. What is ours is in the files beside this one.

    anchors   p_i = β·staleness_i + (1−β)·|g_i − Σ_j α_ij g_j|   the rows of highest priority are measured
    Eq. 21    z_i ← ½ z_i + ½ Σ_j α_ij z_j                       of the rows beside them, scores and vectors
    repair    the neighbours of rows whose embedding drifted are searched for again

    α_ij = max(cos_ij, 0) / Σ_j max(cos_ij, 0)   over the usable neighbours j of i

Tang, Li, Chen, "GRACE: A Dynamic Coreset Selection Framework for Large Language Model Optimization",
arXiv:2604.11810, 2026. [paper] is stated there; [choice] is ours where it says nothing. The preset
`grace-paper` makes a whole run so; what a row is worth to a coreset is in `select/grace.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from coretune.neighbors import graph
from coretune.neighbors.graph import Csr
from coretune.progress_reports import reporter
from coretune.select.importance import scaled
from coretune.types import Array, NeighborGraph, Rows

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

SHORT = np.float32(1e-6)  # a vector of at most this length has no direction


def priority(score: Array, staleness: Array, alpha: csr_matrix, usable: Array, beta: float) -> Array:
    """(n,) float64 in [0, 1]: p_i = β·staleness_i + (1−β)·|g_i − Σ_j α_ij g_j| [paper]; 0 for unusable rows.

    Both parts are brought to [0, 1] [choice]: staleness, in rounds since a measurement, by its maximum;
    the discrepancy by rank, since one outlier would press all the others towards 0. A row without neighbours
    disagrees with nobody.
    """
    g = score.astype(np.float64)
    discrepancy = np.abs(g - alpha.astype(np.float64) @ g)
    discrepancy[np.diff(alpha.indptr) == 0] = 0
    stale = staleness / max(1, int(staleness[usable].max()))
    return np.where(usable, beta * stale + (1 - beta) * scaled(discrepancy, usable), 0)


def highest(priority: Array, candidates: Rows, count: int) -> Rows:
    """The `count` candidates of highest priority [paper], rising; of equals the lowest rows."""
    return np.sort(candidates[np.argsort(-priority[candidates], kind="stable")[:count]])


def propagation_weights(edges: Csr, rows: Rows, usable: Array) -> csr_matrix:
    """(m, n) float32 α of `rows`: α_ij = max(cos_ij, 0) / Σ_j max(cos_ij, 0) over usable neighbours j.

    A row without such a neighbour is empty. Work is proportional to the edges of `rows`.
    """
    from scipy.sparse import csr_matrix  # late: a mistake in a config is reported without it

    indptr, indices, similarity = edges
    n = len(indptr) - 1
    weight = csr_matrix((similarity, indices, indptr), shape=(n, n))[rows]
    weight.data = np.where(usable[weight.indices], weight.data, np.float32(0))
    weight.eliminate_zeros()
    total = np.asarray(weight.sum(axis=1)).ravel()
    weight.data /= np.repeat(total, np.diff(weight.indptr))
    return weight


def rows_beside(edges: Csr, anchors: Rows, usable: Array) -> Rows:
    """Usable rows, no anchors themselves, with at least one anchor among their neighbours; rising."""
    return np.flatnonzero(_beside(*edges[:2], anchors) & usable)


@njit(cache=True, nogil=True)
def _beside(indptr: Array, indices: Array, anchors: Rows) -> Array:
    beside = np.zeros(len(indptr) - 1, np.bool_)
    for i in anchors:
        for e in range(indptr[i], indptr[i + 1]):
            beside[indices[e]] = True
    for i in anchors:
        beside[i] = False
    return beside


def eq21_step(values: Array, weights: csr_matrix, rows: Rows) -> Array:
    """One synchronous step of `rows`: the z that minimises E(z) = ½(z − z_old)² + ½ Σ_j w_j (z − z_j)².

    z ← (z_old + Σ_j w_j z_j) / (1 + Σ_j w_j). [paper, Eq. 21] states z ← ½ z_old + ½ Σ_j α_ij z_j, which is
    this minimiser when Σ_j w_j = 1; [choice] so we take w := α. A row without neighbours stays where it is.

    values  (n,) or (n, d)  before the step      weights  (m, n) sparse, row r holds the w of rows[r]
    returns (m,) or (m, d)  after it
    """
    total = np.asarray(weights.sum(axis=1)).ravel().astype(np.float32)
    moved = weights @ values
    moved += values[rows]
    moved /= (1 + total).reshape(-1, *[1] * (values.ndim - 1))
    return moved


def average(values: Array, edges: Csr, usable: Array, rows: Rows, unit: bool) -> None:
    """`eq21_step` of `rows` with w = α, in place. unit: rows get back their length 1."""
    moved = eq21_step(values, propagation_weights(edges, rows, usable), rows)
    if unit:
        length = np.sqrt(np.einsum("ij,ij->i", moved, moved))
        moved[length <= SHORT] = values[rows[length <= SHORT]]  # one that came to nothing stays where it was
        moved /= np.where(length > SHORT, length, np.float32(1))[:, None]
    values[rows] = moved


def repaired(made: NeighborGraph, embedding: Array, delta: float, moved: Rows, seed: int) -> NeighborGraph:
    """Local repair [paper]: of the rows `moved`, those with 1 − cos(z, z when listed) > delta [choice] are
    searched for again, and offered to whom they meet; all other lists stay."""
    away = graph.drifted(made, embedding, delta, moved)
    return graph.repair(made, embedding, away, seed=seed, progress=reporter("graph"))

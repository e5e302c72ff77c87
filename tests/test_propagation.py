"""Eq. 21 as an argmin, and priorities: each by a slow version."""

from __future__ import annotations

import numpy as np
from clustered_rows import NO_ROWS
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.optimize import minimize

from coretune.policies.paper import average, eq21_step, highest, priority, propagation_weights, rows_beside
from coretune.types import Array

few = settings(deadline=None, max_examples=25)


def random_edges(seed: int, n: int) -> tuple[Array, Array, Array]:
    """A symmetric weighted graph with some empty rows."""
    rng = np.random.default_rng(seed)
    dense = np.triu(rng.uniform(0.05, 1, size=(n, n)) * (rng.random((n, n)) < 0.25), 1)
    dense[: n // 5] = 0
    dense = (dense + dense.T) * (np.arange(n) >= n // 5) * (np.arange(n) >= n // 5)[:, None]
    csr = sparse.csr_matrix(dense.astype(np.float32))
    return csr.indptr.astype(np.int64), csr.indices.astype(np.int32), csr.data


def energy(z: Array, old: Array, weights: Array, neighbours: Array) -> float:
    """E(z) of Eq. 21 for one row; neighbours (k, d), weights (k,)."""
    return 0.5 * np.sum((z - old) ** 2) + 0.5 * np.sum(weights * np.sum((z - neighbours) ** 2, axis=1))


@few
@given(seed=st.integers(0, 10**6), normalised=st.booleans())
def test_eq21_is_the_argmin_of_its_energy(seed: int, normalised: bool) -> None:
    rng = np.random.default_rng(seed)
    n, d = 9, 3
    values = rng.normal(size=(n, d))
    w = rng.uniform(0, 2, size=(n, n)) * (rng.random((n, n)) < 0.5)
    np.fill_diagonal(w, 0)
    if normalised:
        w /= np.maximum(w.sum(axis=1, keepdims=True), 1e-12)
    moved = eq21_step(values, sparse.csr_matrix(w), np.arange(n))
    for i in range(n):
        best = minimize(energy, np.zeros(d), args=(values[i], w[i], values), tol=1e-12).x
        np.testing.assert_allclose(moved[i], best, atol=1e-4)
        if normalised and w[i].any():  # the form the paper states
            np.testing.assert_allclose(moved[i], 0.5 * values[i] + 0.5 * w[i] @ values, atol=1e-6)


@few
@given(seed=st.integers(0, 10**6))
def test_weights_are_the_clipped_cosines_over_usable_neighbours_made_to_sum_to_one(seed: int) -> None:
    n = 20
    edges = random_edges(seed, n)
    usable = np.random.default_rng(seed).random(n) < 0.8
    rows = np.random.default_rng(seed + 1).permutation(n)[:11]
    dense = sparse.csr_matrix((edges[2], edges[1], edges[0]), shape=(n, n)).toarray() * usable
    total = dense.sum(axis=1, keepdims=True)
    expected = np.divide(dense, total, out=np.zeros_like(dense), where=total > 0)
    np.testing.assert_allclose(propagation_weights(edges, rows, usable).toarray(), expected[rows], atol=1e-6)


def test_a_row_that_comes_to_nothing_stays_where_it_was() -> None:
    edges = (np.array([0, 1, 2]), np.array([1, 0], np.int32), np.ones(2, np.float32))
    opposite = np.array([[1, 0], [-1, 0]], np.float32)
    average(opposite, edges, np.ones(2, bool), np.array([1]), True)
    assert opposite.tolist() == [[1, 0], [-1, 0]]


def relabelled(edges: tuple[Array, Array, Array], order: Array) -> tuple[Array, Array, Array]:
    n = len(order)
    csr = sparse.csr_matrix((edges[2], edges[1], edges[0]), shape=(n, n))[order][:, order].tocsr()
    csr.sort_indices()
    return csr.indptr.astype(np.int64), csr.indices.astype(np.int32), csr.data


@few
@given(seed=st.integers(0, 10**6))
def test_the_order_of_the_rows_does_not_matter(seed: int) -> None:
    rng, n = np.random.default_rng(seed), 30
    edges, order = random_edges(seed, n), np.random.default_rng(seed).permutation(30)
    usable = rng.random(n) < 0.9
    usable[0] = True
    score, vectors, staleness = rng.normal(size=n), rng.normal(size=(n, 4)), rng.integers(0, 6, n)
    everyone = np.arange(n)

    alpha = propagation_weights(edges, everyone, usable)
    worth = priority(score, staleness, alpha, usable, 0.4)
    moved = eq21_step(vectors, alpha, everyone)
    picks = highest(worth, np.flatnonzero(usable), 5)

    edges2, usable2 = relabelled(edges, order), usable[order]
    alpha2 = propagation_weights(edges2, everyone, usable2)
    worth2 = priority(score[order], staleness[order], alpha2, usable2, 0.4)
    np.testing.assert_allclose(worth2, worth[order], atol=1e-6)
    np.testing.assert_allclose(eq21_step(vectors[order], alpha2, everyone), moved[order], atol=1e-5)
    picks2 = highest(worth2, np.flatnonzero(usable2), 5)
    np.testing.assert_allclose(np.sort(worth[order[picks2]]), np.sort(worth[picks]), atol=1e-6)


def test_priority_by_hand() -> None:
    # 0–1 and 1–2 with equal cosine; 3 has no neighbour, 4 is unusable.
    dense = np.zeros((5, 5), np.float32)
    dense[0, 1] = dense[1, 0] = dense[1, 2] = dense[2, 1] = 0.5
    csr = sparse.csr_matrix(dense)
    usable = np.array([True, True, True, True, False])
    alpha = propagation_weights((csr.indptr, csr.indices, csr.data), np.arange(5), usable)
    score = np.array([1.0, 4.0, 1.5, 9.0, np.nan])  # discrepancies 3, 2.75, 2.5, 0 -> ranks 1, 2/3, 1/3, 0
    staleness = np.array([1, 2, 4, 4, 100])
    expected = 0.25 * staleness[:4] / 4 + 0.75 * np.array([1, 2 / 3, 1 / 3, 0])
    found = priority(score, staleness, alpha, usable, 0.25)
    np.testing.assert_allclose(found, [*expected, 0], atol=1e-9)


def test_rows_beside_are_the_usable_neighbours_that_are_no_anchors() -> None:
    csr = sparse.csr_matrix(np.array([[0, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]], np.float32))
    edges = (csr.indptr, csr.indices, csr.data)
    usable = np.array([True, True, False, True])
    assert rows_beside(edges, np.array([0]), usable).tolist() == [1]
    assert rows_beside(edges, np.array([0, 1]), usable).tolist() == []
    assert rows_beside(edges, NO_ROWS, usable).tolist() == []

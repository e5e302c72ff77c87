"""Copies: rows that ask the same and answer the same, found along the graph."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from coretune.neighbors.graph import near_copies
from coretune.neighbors.near_lists import edge_products
from coretune.types import Array, Pool

COPY_COSINE = 0.999
RESPONSES = "response_embedding"
BLOCK = 8192  # rows


def copies_by(pool: Pool, embedding: str) -> str:
    """The signal by which rows are near-duplicates: responses where they were measured, else `embedding`.

    By prompts alone rows that ask for the same kind of thing pass for copies of each other.
    """
    return RESPONSES if RESPONSES in pool.features else embedding


def copy_groups(pool: Pool, threshold: float, embedding: str) -> Array:
    """(n,) int32: the lowest row of each row's group of copies; a row without copies is its own group."""
    if pool.graph is None:
        raise ValueError(
            "copies are found along the k-NN graph, but the pool has none: build the graph first"
        )
    return near_copies(replace(pool.graph, similarity=_cosines(pool, embedding)), threshold)


def _cosines(pool: Pool, embedding: str) -> Array:
    """(n, k) float32: cosines of a row and its neighbours about the mean of the usable rows; 0 beside a -1.

    [choice] All hidden states of a small or young model point the same way: about the origin, rows that have
    nothing in common pass for copies. Equal rows have a cosine of 1 wherever it is taken from.
    """
    assert pool.graph is not None
    vectors, neighbors = pool.feature(embedding), pool.graph.neighbors
    myself = np.arange(pool.n, dtype=neighbors.dtype)[:, None]
    centre = np.asarray(np.mean(vectors, axis=0, dtype=np.float64, where=pool.usable[:, None]))
    blocks = [vectors[at : at + BLOCK].astype(np.float64) @ centre for at in range(0, pool.n, BLOCK)]
    beyond = np.sum(centre * centre) - 2 * np.where(pool.usable, np.concatenate(blocks), 0.0)
    away = np.sqrt(np.maximum(edge_products(vectors, myself)[:, 0] + beyond, 0))
    together = edge_products(vectors, neighbors) + (beyond[:, None] + beyond[neighbors]) / 2
    both, either = away[:, None] * away[neighbors], away[:, None] + away[neighbors]
    cosine = np.where(both > 0, together / np.where(both > 0, both, 1), either == 0)
    return np.where(neighbors >= 0, cosine, 0.0).astype(np.float32)

"""Copies: rows that ask the same and answer the same, found along the graph."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from coretune.graph import near_copies
from coretune.near_lists import edge_products
from coretune.types import Array, Pool

COPY_COSINE = 0.999
RESPONSES = "response_embedding"


def best_of_copies(pool: Pool, noise: Array, threshold: float, embedding: str) -> Array:
    """(n,) bool: of each group of usable copies the row of least noise, the lowest row among equals.

    Copies are neighbours in the graph whose unit `embedding` has a cosine of at least `threshold`. The graph
    says which pairs to look at, the embedding whether they are copies: two rows that ask the same and answer
    differently are neighbours in a graph of prompts and no copies by their responses.
    """
    group = copy_groups(pool, threshold, embedding)
    order = np.argsort(np.where(pool.usable, noise, np.inf), kind="stable")
    _, first = np.unique(group[order], return_index=True)
    best = np.zeros(pool.n, bool)
    best[order[first]] = True
    return best & pool.usable


def copies_by(pool: Pool, embedding: str) -> str:
    """The signal by which rows are told to be copies: responses where they were measured, else `embedding`.

    By prompts alone rows that ask for the same kind of thing pass for copies of each other.
    """
    return RESPONSES if RESPONSES in pool.features else embedding


def copy_groups(pool: Pool, threshold: float, embedding: str) -> Array:
    """(n,) int32: the lowest row of each row's group of copies; a row without copies is its own group."""
    if pool.graph is None:
        raise ValueError(
            "copies are found along the k-NN graph, but the pool has none: build the graph first"
        )
    similarity = edge_products(pool.feature(embedding), pool.graph.neighbors)
    return near_copies(replace(pool.graph, similarity=similarity), threshold)

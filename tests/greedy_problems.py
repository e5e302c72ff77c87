"""A similarity along a graph, of a matrix."""

from __future__ import annotations

import numpy as np

from coretune.select.similarity import GraphSimilarity
from coretune.types import Array


def graph_of(matrix: Array) -> GraphSimilarity:
    edges = matrix > 0
    np.fill_diagonal(edges, False)
    indptr = np.concatenate([[0], edges.sum(axis=1).cumsum()]).astype(np.int64)
    return GraphSimilarity(indptr, np.nonzero(edges)[1].astype(np.int32), matrix[edges].astype(np.float32))

"""How close a propagated pool is to a full measurement of the same model: the price of not looking."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from coretune.neighbors.graph import edge_recall
from coretune.select.importance import scaled
from coretune.types import Array, Coreset, Pool


def compare(
    approx: Pool,
    exact: Pool,
    score: str,
    embedding: str,
    approx_coreset: Coreset,
    exact_coreset: Coreset,
    value: Callable[[Pool, Coreset], float] | None = None,
) -> dict[str, float]:
    """Figures over the rows usable in both pools; 1 is perfect in each.

    spearman          rank correlation of the score
    embedding_cosine  mean cosine of a row's two embeddings
    edge_recall       share of the exact graph's edges that the approximate lists hold, ties forgiven
    coreset_share     share of the exact coreset's rows that were chosen
    coreset_jaccard   common rows over all rows of the two coresets
    value_ratio       value(exact, approx_coreset) / value(exact, exact_coreset): both judged by the truth

    A figure that is undefined is left out: spearman of constant scores, edge_recall of no edges, value_ratio
    without `value` or with an exact value of 0. ValueError when the pools differ in size or lack a graph.
    """
    if approx.n != exact.n:
        raise ValueError(f"the pools have {approx.n} and {exact.n} rows: compare two pools of the same rows")
    if approx.graph is None or exact.graph is None:
        raise ValueError("a pool without a graph cannot be compared: update both with a first measurement")
    usable = approx.usable & exact.usable
    rows = np.flatnonzero(usable)
    truth = exact.feature(embedding)
    chosen, wanted = set(approx_coreset.indices.tolist()), set(exact_coreset.indices.tolist())
    figures = {
        "spearman": spearman(approx.feature(score)[usable], exact.feature(score)[usable]),
        "embedding_cosine": _mean_cosine(approx.feature(embedding)[usable], truth[usable]),
        "edge_recall": edge_recall(approx.graph.neighbors[rows], exact.graph.neighbors[rows], truth, rows),
        "coreset_share": _ratio(len(chosen & wanted), len(wanted)),
        "coreset_jaccard": _ratio(len(chosen & wanted), len(chosen | wanted)),
        "value_ratio": float("nan"),
    }
    if value is not None:
        figures["value_ratio"] = _ratio(value(exact, approx_coreset), value(exact, exact_coreset))
    return {name: float(figure) for name, figure in figures.items() if np.isfinite(figure)}


def spearman(a: Array, b: Array) -> float:
    """Rank correlation of two (m,) scores, equal ones sharing their mean rank; NaN if either is constant."""
    everyone = np.ones(len(a), bool)
    x, y = scaled(a, everyone), scaled(b, everyone)
    x, y = x - x.mean(), y - y.mean()
    return _ratio(float(x @ y), float(np.sqrt((x @ x) * (y @ y))))


def _mean_cosine(a: Array, b: Array) -> float:
    product = np.einsum("ij,ij->i", a, b, dtype=np.float64)
    length = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float((product / length).mean()) if len(product) else float("nan")


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")

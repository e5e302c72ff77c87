"""How close what is believed of a pool is to what a measurement finds: the price of measuring few rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from coretune.ledger import Ledger
from coretune.neighbors import graph
from coretune.neighbors.graph import edge_recall
from coretune.policies.update import update
from coretune.rounds.coreset_config import CoresetConfig
from coretune.rounds.measurement import Measurement
from coretune.rounds.state import State
from coretune.select.copies import COPY_COSINE, copies_by, copy_groups
from coretune.select.importance import scaled
from coretune.types import Array, Coreset, Pool, Valued


def graph_figures(config: CoresetConfig, state: State, pool: Pool) -> dict[str, float]:
    """Of a graph that was made anew, else {}: near_copies, the share of rows that have one, where there are
    any; graph_recall, the share of true neighbours listed, where they were not all searched exactly."""
    made = pool.graph
    if made is None or made is state.pool.graph or made.reserve is None:
        return {}
    if made.built_from.dtype == np.float16:  # mended: most lists are from before
        return {}
    group = copy_groups(pool, COPY_COSINE, copies_by(pool, config.refresh.embedding))
    rows = np.bincount(group, minlength=made.n)[group] > 1
    figures = {"near_copies": float(rows.mean())} if rows.any() else {}
    if len(made.reserve.centroids) > 1:
        rng = np.random.default_rng([config.seed, state.round, 5])
        figures["graph_recall"] = graph.recall(made, pool.feature(config.refresh.embedding), rng)
    return figures


def beside_full_measurement(
    config: CoresetConfig,
    state: State,
    pool: Pool,
    coreset: Coreset,
    measurement: Measurement,
    ledger: Ledger,
) -> Mapping[str, float]:
    """How far the propagated pool is from a full measurement at the same weights; its cost is "other"."""
    every = config.audit_every
    if every is None or state.pool.unmeasured or state.selections % every:
        return {}
    refresh, selector = config.refresh, config.selector
    with ledger.phase("other"):
        everyone = np.flatnonzero(state.pool.usable)
        fresh = measurement.signals(everyone, pool, ledger, "other")
        oracle = replace(refresh, anchors="all", repair="none")
        before = replace(state.pool, references=pool.references)  # what rows are compared with now
        exact = update(oracle, before, everyone, fresh, state.round, config.noise)
        rng = np.random.default_rng([config.seed, state.round, 4])
        wanted = config.select(exact, config.budget.resolve(exact), rng)
        value = selector.value if isinstance(selector, Valued) else None
        return compare(pool, exact, refresh.priority_score, refresh.embedding, coreset, wanted, value)


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

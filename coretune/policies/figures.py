"""What a refresh says of itself in the ledger: of its graph, and beside a full measurement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from coretune.ledger import Ledger
from coretune.neighbors import graph
from coretune.policies.approximation import compare
from coretune.policies.update import update
from coretune.rounds.measurement import Measurement
from coretune.rounds.schedule import CoresetConfig
from coretune.rounds.state import State
from coretune.select.copies import COPY_COSINE, copies_by, copy_groups
from coretune.types import Coreset, Pool, Valued


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
        oracle = replace(refresh, anchors="all", repair="rebuild")
        exact = update(oracle, state.pool, everyone, fresh, state.round)
        rng = np.random.default_rng([config.seed, state.round, 4])
        wanted = config.select(exact, config.budget.resolve(exact), rng)
        value = selector.value if isinstance(selector, Valued) else None
        return compare(pool, exact, refresh.priority_score, refresh.embedding, coreset, wanted, value)

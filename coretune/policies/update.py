"""What measured rows tell: a new pool.

write ► previous_loss ► propagate (Eq. 21) ► mend the graph ► score noise
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from coretune.filters import DetectsNoise
from coretune.neighbors.graph import build
from coretune.policies import paper
from coretune.policies.anchors import edges_of
from coretune.progress_reports import reporter
from coretune.rounds.refresh_settings import AnchorRefresh
from coretune.types import EMPTY_PROMPT_LOSS, UNIT, Array, NeighborGraph, Pool, Rows

FINITE_BLOCK = 8192  # rows


def update(
    refresh: AnchorRefresh,
    pool: Pool,
    rows: Rows,
    fresh: Mapping[str, Array],
    round: int,
    noise: DetectsNoise | None = None,
) -> Pool:
    """The pool after `rows` were measured: {signal: (m, ...)}, row r of it describes rows[r]. A new Pool.

    A row with any value that is not finite becomes unusable for good, and nothing of it is written: its
    features stay as they were, or are 0 where it was never measured, and then it has no edge either.
    Unusable rows neither give nor take in the propagation. `measured_at` changes for the rows measured
    well and for no other; their `previous_loss` becomes the loss the pool held of them until now (NaN
    where they were never measured). `empty_prompt_loss` is not propagated, and the score that `noise`
    keeps of a row is the one of its own last measurement. The first call builds the graph. A signal may
    change its width from one call to the next, as trajectories do with the number of checkpoints: it is
    then a new one.

    ValueError when arrays do not fit the rows, when a signal is new but not every usable row was
    measured, when no usable row is left; and what `graph.build` raises.
    """
    if len(rows) == 0:
        return pool
    rows = np.asarray(rows, np.int64)
    good = _finite_rows(rows, fresh)
    usable = pool.usable.copy()
    usable[rows[~good]] = False
    if not usable.any():
        raise ValueError(
            f"none of the {pool.n} rows has finite signals: the model is broken, lower the learning rate"
        )
    anchors, measured_at = rows[good], pool.measured_at.copy()
    measured_at[anchors] = round
    written = {name: _written(pool, name, rows, good, usable, value) for name, value in fresh.items()}
    beside: Rows = np.zeros(0, np.int64)
    if pool.graph is not None and refresh.propagate != "none":
        # What a prompt is worth to its own response does not follow from any other row.
        moving = {name: value for name, value in written.items() if name != EMPTY_PROMPT_LOSS}
        beside = _propagated(pool, moving, usable, anchors)
    features = {**pool.features, **written, **_previous_loss(pool, written, anchors)}
    graph = pool.graph
    if refresh.embedding in features:
        graph = _mended(refresh, pool.graph, features[refresh.embedding], np.union1d(rows, beside), round)
    after = replace(pool, features=features, measured_at=measured_at, usable=usable, graph=graph)
    if noise is None or not written.keys() >= set(
        noise.needs
    ):  # as of training steps, which show the loss alone
        return after
    return noise.when_measured(after, anchors)


def _propagated(pool: Pool, written: Mapping[str, Array], usable: Array, anchors: Rows) -> Rows:
    """Move, in place, every usable row beside an anchor, and say which; the anchors stay as measured."""
    edges = edges_of(pool)
    rows = paper.rows_beside(edges, anchors, usable)
    if len(rows) == 0:  # a whole fresh feature is not ours to write into
        return rows
    for name, values in written.items():
        paper.average(values, edges, usable, rows, unit=name.endswith(UNIT))
    return rows


def _mended(
    refresh: AnchorRefresh, graph: NeighborGraph | None, embedding: Array, moved: Rows, round: int
) -> NeighborGraph:
    """The graph after the rows `moved`, and no others, were given new values."""
    if graph is None or refresh.rebuilds:
        return build(embedding, refresh.k, seed=round, progress=reporter("graph"))
    if refresh.repair == "none":
        return graph
    return paper.repaired(graph, embedding, refresh.delta, moved, seed=round)


def _finite_rows(rows: Rows, fresh: Mapping[str, Array]) -> Array:
    """(m,) bool: rows of which every signal is finite."""
    good = np.ones(len(rows), bool)
    for name, value in fresh.items():
        if len(value) != len(rows):
            raise ValueError(f"{len(rows)} rows were measured, {name} has {len(value)}: return one for each")
        for first in range(0, len(rows), FINITE_BLOCK):  # in blocks: a signal may be larger than the memory
            block = np.asarray(value[first : first + FINITE_BLOCK])
            good[first : first + FINITE_BLOCK] &= np.isfinite(block).all(axis=tuple(range(1, block.ndim)))
    return good


def _written(pool: Pool, name: str, rows: Rows, good: Array, usable: Array, value: Array) -> Array:
    """(n, ...) float32: the feature with the good rows' fresh values; never the old array itself."""
    whole = np.array_equal(rows, np.arange(pool.n))
    if whole and good.all():
        return np.asarray(value, np.float32)  # a whole fresh feature is not copied: it may be memory-mapped
    if whole and name not in pool.features and isinstance(value, np.memmap) and value.mode == "c":
        value[~good] = 0  # a private map: what is set in it never reaches the file
        return np.asarray(value, np.float32)
    if name in pool.features and pool.features[name].shape[1:] == np.shape(value)[1:]:
        written = np.array(pool.features[name], np.float32)
    else:
        known = np.isin(np.flatnonzero(usable), rows)
        if not known.all():
            raise ValueError(
                f"{name} is new, and {(~known).sum()} of {len(known)} usable rows have none: measure all rows"
            )
        written = np.zeros((pool.n, *np.shape(value)[1:]), np.float32)
    written[rows[good]] = value[good]
    written[~usable] = np.nan_to_num(written[~usable], nan=0, posinf=0, neginf=0)
    return written


def _previous_loss(pool: Pool, written: Mapping[str, Array], anchors: Rows) -> dict[str, Array]:
    if "loss" not in written:
        return {}
    previous = pool.features.get("previous_loss", np.full(pool.n, np.nan, np.float32)).copy()
    seen = anchors[pool.measured_at[anchors] >= 0]
    if "loss" in pool.features:
        previous[seen] = pool.features["loss"][seen]
    return {"previous_loss": previous}

"""Which rows to look at again, and how the news spreads along the graph to the rows not looked at.

plan:    priority ► anchors that spread                                     rows to measure
absorb:  write ► previous_loss ► propagate (Eq. 21, changes, fit) ► mend the graph   a new Pool
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from coretune.listening import told
from coretune.neighbors.graph import build, drifted, repair, symmetric_csr
from coretune.refreshing.anchors import pick_spread_anchors, priority, rows_alike
from coretune.refreshing.drift import drift
from coretune.refreshing.propagation import UNIT, Csr, average, propagation_weights, rows_beside, spread
from coretune.types import EMPTY_PROMPT_LOSS, Array, NeighborGraph, Pool, Rows

Anchors = Literal["candidates", "priority", "random", "all", "trained"]
Propagate = Literal["average", "delta", "fit", "none"]
Repair = Literal["local", "rebuild", "none"]
Harvest = Literal["auto", True, False]

#: Signals that the forward pass of a training step shows, for nothing. EMPTY_PROMPT_LOSS beside them stays as
#: it was measured: no step trains on a response without its prompt.
PASSED = frozenset({"loss", "prompt_embedding", "response_embedding"})

FINITE_BLOCK = 8192  # rows


@dataclass(frozen=True)
class AnchorRefresh:
    """Measure a few anchors exactly, spread what they tell along the k-NN graph, mend it where rows drifted.

    Tang, Li, Chen, "GRACE: A Dynamic Coreset Selection Framework for Large Language Model Optimization",
    arXiv:2604.11810, 2026. [paper] priority of staleness and of the discrepancy of importance with the
    neighbourhood; a bounded number of anchors; Eq. 21; local repair. [choice] the rest, as marked below.

    anchors         "candidates" [choice]: the rows about to be chosen (`looking.py` asks the selector);
                    "priority" [paper]: `anchors.priority`; "random"; "all": every
                    usable row, so with repair "rebuild" the same as measuring anew; "trained": the rows the
                    last coreset trained on (feature `trained_at` (n,) int32: its number, -1 = never)
    look_again      at least 1, with "candidates": a look at a row is good until the run is so many times as
                    old as it was then [choice: a model changes fast at first and slowly later]; 1 = each
                    refresh looks at all it may choose
    anchor_share    share of the usable rows measured at a refresh ("priority" and "random"); with
                    "candidates" the most of those held back as contradicted that are looked at again, and
                    those drawn at random while nobody can be told to be wrong (`looking.py`)
    propagate       "average": Eq. 21; "delta": the anchors' changes (`propagation.py`); "fit": what they tell
                    of every row by what rows are like (`drift.py`); "none"
    repair          "local": `graph.repair` of rows with 1 − cos(z, z when listed) > delta; "rebuild"; "none"
    beta            in [0, 1]: weight of staleness in the priority, 1 − beta that of the discrepancy
    k               neighbours of a row
    embedding       the signal whose cosine makes the graph [choice: prompts, since rows that ask alike should
                    be answered alike; LOG.md compares it with the responses]
    scores          further signals to measure
    priority_score  the signal whose discrepancy counts
    count_alike     [choice] with "priority": times the number of rows that a measurement tells of
    spread_anchors  [choice] with "priority": the neighbours of an anchor taken are damped; else the rows of
                    highest priority are taken
    harvest         take the signals of rows that training passes through from the training step itself: at
                    the next refresh they count as measured, at the weights their step had and under its
                    dropout, and only the other anchors are looked at. With anchors "trained" that is all;
                    with "candidates" those are looked at only as long as some are found contradicted
                    (`looking.py`). "auto" [choice]: with these two anchors, where all signals are `PASSED`
                    and the trainer's steps show them

    All that was measured is propagated, scores and vectors alike; `*_embedding` rows get back their length 1.
    Where nothing is done along a graph (anchors "all", propagate "none", repair "none") nothing is measured
    for it: there is a graph only if the selector itself asks for the `embedding`.
    """

    anchors: Anchors = "candidates"
    look_again: float = 2.0
    anchor_share: float = 0.05
    propagate: Propagate = "delta"
    repair: Repair = "local"
    beta: float = 0.5
    delta: float = 0.05
    k: int = 10
    embedding: str = "prompt_embedding"
    scores: tuple[str, ...] = ("loss",)
    priority_score: str = "loss"
    count_alike: bool = True
    spread_anchors: bool = True
    harvest: Harvest = "auto"

    def __post_init__(self) -> None:
        words = {"anchors": Anchors, "propagate": Propagate, "repair": Repair, "harvest": Harvest}
        for name, known in words.items():
            if (value := vars(self)[name]) not in get_args(known):
                raise ValueError(f"{name} is {value!r}: give one of {', '.join(get_args(known))}")
        if not self.look_again >= 1:
            raise ValueError(f"look_again is {self.look_again}: give 1 or more; 1 = at every refresh")
        if not 0 < self.anchor_share <= 1:
            raise ValueError(f"anchor_share is {self.anchor_share}: give a share above 0, at most 1")
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta is {self.beta}: give a number from 0 to 1")
        if not 0 <= self.delta <= 2:
            raise ValueError(f"delta is {self.delta}: give a cosine distance from 0 to 2")
        if self.k < 1:
            raise ValueError(f"k is {self.k}: give at least 1 neighbour")

    @property
    def follows_graph(self) -> bool:
        """Whether anything is chosen, spread or mended along a graph."""
        return (self.anchors, self.propagate, self.repair) != ("all", "none", "none")

    @property
    def needs(self) -> tuple[str, ...]:
        if not self.follows_graph:
            return ()
        return tuple(dict.fromkeys((self.embedding, *self.scores, self.priority_score)))

    def may_harvest(self, signals: Iterable[str]) -> bool:
        """Whether "auto" takes these signals from training steps that show them."""
        return self.anchors in ("candidates", "trained") and PASSED.issuperset(
            {*signals} - {EMPTY_PROMPT_LOSS}
        )

    def plan(self, pool: Pool, round: int, rng: np.random.Generator) -> Rows:
        """The rows to measure, rising: all as long as none ever was, then the anchors, usable rows only."""
        if (pool.measured_at < 0).all():
            return np.arange(pool.n, dtype=np.int64)
        usable = np.flatnonzero(pool.usable).astype(np.int64)
        if self.anchors == "all":
            return usable
        if self.anchors == "trained":
            return _just_trained(pool)
        if self.anchors == "candidates":
            raise ValueError("anchors is candidates: the selector says whom to measure, not the refresh")
        if self.anchors == "random":
            return self.some(pool, rng)
        edges = _edges(pool)
        count = self._count(usable)
        alpha = propagation_weights(edges, np.arange(pool.n), pool.usable)
        score = pool.feature(self.priority_score)
        worth = priority(score, round - pool.measured_at, alpha, pool.usable, self.beta)
        if self.count_alike:
            worth *= rows_alike(edges, score, pool.usable)
        if self.spread_anchors:
            return pick_spread_anchors(worth, edges, usable, count)
        return np.sort(usable[np.argsort(-worth[usable], kind="stable")[:count]])

    def some(self, pool: Pool, rng: np.random.Generator) -> Rows:
        """`anchor_share` of the usable rows, drawn at random, rising."""
        usable = np.flatnonzero(pool.usable).astype(np.int64)
        return np.sort(rng.choice(usable, self._count(usable), replace=False))

    def _count(self, usable: Rows) -> int:
        return min(len(usable), math.ceil(self.anchor_share * len(usable)))

    def unsure(self, pool: Pool, candidates: Rows, round: int) -> Rows:
        """Candidates that are to be looked at before they may be trained on: see `look_again`."""
        return candidates[self.look_again * pool.measured_at[candidates] <= round]

    def absorb(self, pool: Pool, rows: Rows, fresh: Mapping[str, Array], round: int) -> Pool:
        """The pool after `rows` were measured: {signal: (m, ...)}, row r of it describes rows[r]. A new Pool.

        A row with any value that is not finite becomes unusable for good, and nothing of it is written: its
        features stay as they were, or are 0 where it was never measured, and then it has no edge either.
        Unusable rows neither give nor take in the propagation. `measured_at` changes for the rows measured
        well and for no other; their `previous_loss` becomes the loss the pool held of them until now (NaN
        where they were never measured). The first call builds the graph. A signal may change its width from
        one call to the next, as trajectories do with the number of checkpoints: it is then a new one.

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
        if pool.graph is not None and self.propagate != "none":
            beside = self._propagate(pool, written, usable, anchors)
        features = {**pool.features, **written, **_previous_loss(pool, written, anchors)}
        graph = pool.graph
        if self.embedding in features:
            graph = self._mended(pool.graph, features[self.embedding], np.union1d(rows, beside), round)
        return replace(pool, features=features, measured_at=measured_at, usable=usable, graph=graph)

    def _propagate(self, pool: Pool, written: Mapping[str, Array], usable: Array, anchors: Rows) -> Rows:
        """Move, in place, every usable row beside an anchor, and say which; the anchors stay as measured.

        With "fit" every usable row.
        """
        if self.propagate == "fit":
            others = usable.copy()
            others[anchors] = False
            rows = np.flatnonzero(others).astype(np.int64)
            drift(pool.features, written, usable, anchors, rows)
            return rows
        edges = _edges(pool)
        rows = rows_beside(edges, anchors, usable)
        if len(rows) == 0:  # a whole fresh feature is not ours to write into
            return rows
        for name, values in written.items():
            unit = name.endswith(UNIT)
            if self.propagate == "average":
                average(values, edges, usable, rows, unit)
            else:
                change = values[anchors] - pool.feature(name)[anchors]
                spread(values, edges, usable, rows, anchors, change, unit)
        return rows

    def _mended(
        self, graph: NeighborGraph | None, embedding: Array, moved: Rows, round: int
    ) -> NeighborGraph:
        """The graph after the rows `moved`, and no others, were given new values."""
        if graph is None or self.repair == "rebuild":
            return build(embedding, self.k, seed=round, progress=told("graph"))
        if self.repair == "none":
            return graph
        away = drifted(graph, embedding, self.delta, moved)
        return repair(graph, embedding, away, seed=round, progress=told("graph"))


def _edges(pool: Pool) -> Csr:
    if pool.graph is None:
        raise ValueError("the pool has no graph to spread along: absorb a first measurement of all its rows")
    return symmetric_csr(pool.graph)


def _just_trained(pool: Pool) -> Rows:
    trained_at = pool.feature("trained_at")
    if (trained_at < 0).all():
        raise ValueError(
            "anchors is trained, but no row was trained on yet: train a round first, or use priority"
        )
    return np.flatnonzero((trained_at == trained_at.max()) & pool.usable).astype(np.int64)


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

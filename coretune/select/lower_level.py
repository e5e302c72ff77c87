"""Facility location over composite distances at three sizes, and which one a pool gets.

    minimise   Σ_i δ_i min_{j∈C} d_ij,   d_ij = Σ_s mix_s d^s_ij
    by greedy  F(C) = Σ_i δ_i [c_i − min(c_i, min_{j∈C} d_ij)]

    dense       every pair; distances are held where they fit the memory, else computed at every evaluation
    graph       the pairs listed in a k-NN graph, c_i elsewhere (`composite_graph.py`)
    partitions  two rounds: the pool in parts, then the parts' picks (`partitions.py`)

F is monotone and submodular for any d >= 0, so a greedy F is within 1 − 1/e of the best F (rows). That is not
a bound on the error: Σ_i min(c_i, d_i(C)) <= (1 − 1/e) · its best value + (1/e) Σ_i c_i.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from coretune.select.composite import Held, composite_blocks, held_composite, hold
from coretune.select.composite_graph import CompositeGraph, composite_graph
from coretune.select.greedy import lazy_greedy, stochastic_greedy
from coretune.select.objective import Objective, Picks
from coretune.select.similarity import Similarity
from coretune.select.spaces import BLOCK_BYTES, Space, nearest_picks, reduced
from coretune.types import Array, Budget, Rows

KINDS = ("dense", "graph", "partitions")
#: Multiplications and additions that block by block evaluation may take before a graph is chosen instead,
BLOCK_WORK = 1e13
#: … those that an exact k-NN search may take before it runs in projected spaces, minutes on one core each …
SEARCH_WORK = 2e13
#: … of so many dimensions, …
SEARCH_DIMENSIONS = 2048
#: … and the rows above which the pool is parted, into parts of at most PART_ROWS.
GRAPH_ROWS = 250_000
PART_ROWS = 65_536
#: Passes over all pairs that a lazy greedy run takes, as seen on the pools of bench/brief.py.
PASSES = 4.0


@dataclass(frozen=True)
class Task:
    """What a greedy run is asked for.

    budget  rows or tokens
    cost    (n,) int64   tokens of each row
    demand  (n,) float64 how much each row is to be covered, >= 0
    greedy  "lazy" or "stochastic"
    seed    of the stochastic draws: the same for every mix, so that two mixes differ by nothing else
    """

    budget: Budget
    cost: Array
    demand: Array
    greedy: str
    seed: int

    def run(self, similarity: Similarity) -> Picks:
        n = similarity.n
        objective = Objective(similarity, np.zeros(n), 1.0, self.demand)
        everyone = np.ones(n, dtype=bool)
        if self.greedy == "lazy":
            return lazy_greedy(objective, self.budget, self.cost, everyone)
        rng = np.random.default_rng(self.seed)
        return stochastic_greedy(objective, self.budget, self.cost, everyone, rng=rng)


@dataclass(frozen=True)
class Picked:
    """A coreset under one mix.

    rows     (K,) int64    in the order chosen
    gains    (K,) float64
    nearest  mixes (q, S) -> position in `rows` of each row's nearest pick (q, n), and how far it is (q, n)
    """

    rows: Rows
    gains: Array
    nearest: Callable[[Array], tuple[Array, Array]]


class Level(Protocol):
    """The lower level over one pool; made once, asked for any mix."""

    @property
    def recall(self) -> float:
        """Share of the pairs it should know that it does know; 1 where it is exact."""
        ...

    def pick(self, mix: Array, task: Task) -> Picked: ...


@dataclass(frozen=True)
class DenseLevel:
    """Every pair; `held` where the distances are."""

    spaces: tuple[Space, ...]
    held: Held | None

    @property
    def recall(self) -> float:
        return 1.0

    def pick(self, mix: Array, task: Task) -> Picked:
        if self.held is not None:
            picks = task.run(held_composite(self.held, self.spaces, mix))
        else:
            picks = task.run(composite_blocks(self.spaces, mix))
        return Picked(picks.indices, picks.gains, lambda mixes: self._nearest(mixes, picks.indices))

    def _nearest(self, mixes: Array, chosen: Rows) -> tuple[Array, Array]:
        if self.held is not None:
            return self.held.nearest(mixes, chosen)
        return nearest_picks(self.spaces, mixes, chosen)


@dataclass(frozen=True)
class GraphLevel:
    """The listed pairs."""

    graph: CompositeGraph

    @property
    def recall(self) -> float:
        return self.graph.recall

    def pick(self, mix: Array, task: Task) -> Picked:
        picks = task.run(self.graph.mixed(mix))
        return Picked(picks.indices, picks.gains, lambda mixes: self.graph.nearest(mixes, picks.indices))


@dataclass(frozen=True)
class Plan:
    """Which lower level, what it promises, and about what it costs.

    kind       "held", "blocks", "graph" or "partitions"
    guarantee  one line
    memory     bytes above the features
    work       multiplications and additions of matrix products
    dtype      of held distances
    reduced    neighbours are searched in projected spaces
    """

    kind: str
    guarantee: str
    memory: float
    work: float
    dtype: type = np.float32
    reduced: bool = False

    def line(self, n: int) -> str:
        """What is said before it starts. Seconds are from a product timed on this machine, now."""
        return (
            f"{n:,} rows, lower level {self.kind}: about {_duration(2.0 * self.work / _speed())} of matrix "
            f"products and {self.memory / 2**30:.1f} GiB above the features. {self.guarantee}"
        )


def plan(spaces: Sequence[Space], lower: str, memory: int, k: int, runs: int) -> Plan:
    """The level for these spaces, by rows, dimensions and memory alone: the same on every machine.

    lower   "auto", or one of KINDS
    memory  bytes that may be held above the features
    runs    greedy runs to come
    Raises ValueError where what is asked for does not fit the memory.
    """
    n, dimensions, count = spaces[0].n, sum(space.d for space in spaces), len(spaces)
    pairs = float(n) * n
    working = 4.0 * min(BLOCK_BYTES, 4.0 * n * max(space.d for space in spaces))  # blocks of features
    blocks = Plan(
        "blocks",
        "Exact: every pair, computed anew at each evaluation. F is within 1 − 1/e of the best",
        memory=working,
        work=PASSES * runs * pairs * dimensions,
    )
    if lower in ("auto", "dense"):
        for dtype, what in ((np.float32, "held"), (np.uint16, "held in 16 bits, 7.6e-6 of the diameter")):
            held = working + pairs * count * np.dtype(dtype).itemsize
            if held <= memory:
                exact = f"Exact: every pair, {what}. F is within 1 − 1/e of the best"
                return Plan("held", exact, held, pairs * dimensions / 2, dtype)
        if lower == "dense" or blocks.work <= BLOCK_WORK:
            return blocks
    search = pairs * dimensions / 2
    small = search > SEARCH_WORK and dimensions > SEARCH_DIMENSIONS * count
    if small:
        search = pairs * SEARCH_DIMENSIONS * count / 2
    edges = float(n) * (k * count + 1)
    held = edges * (12 + 12 * count)
    if small:  # one projected space at a time, while there are lists but no edges yet
        held = max(held, n * (4.0 * SEARCH_DIMENSIONS + k * (4.0 + 4.0 * count)))
    held += working
    if lower == "graph" or (lower == "auto" and n <= GRAPH_ROWS and held <= memory):
        if held > memory:
            raise ValueError(
                f"a graph of {n:,} rows with {k} neighbors takes {held / 2**30:.1f} GiB, memory_limit is "
                f"{memory / 2**30:.1f} GiB: raise memory_limit, or take fewer neighbors, or lower: partitions"
            )
        which = f"searched in {SEARCH_DIMENSIONS} projected dimensions" if small else "exact"
        guarantee = (
            f"Pairs among the {k} nearest of each space ({which}) at their distance, all others at a typical "
            "one: of that F within 1 − 1/e of the best; the certificate is of the true distances"
        )
        return Plan("graph", guarantee, held, search, reduced=small)
    return _parted(n, dimensions, count, memory, k, runs)


def build(spaces: Sequence[Space], chosen: Plan, k: int, rng: np.random.Generator) -> Level:
    """A level that holds what the plan says; "partitions" is built by `partitions.py`."""
    if chosen.kind == "held":
        return DenseLevel(tuple(spaces), hold(spaces, chosen.dtype))
    if chosen.kind == "blocks":
        return DenseLevel(tuple(spaces), None)
    if chosen.reduced:
        return GraphLevel(
            composite_graph(spaces, k, lambda space: reduced(space, SEARCH_DIMENSIONS, rng), rng)
        )
    return GraphLevel(composite_graph(spaces, k))


def _parted(n: int, dimensions: int, count: int, memory: int, k: int, runs: int) -> Plan:
    size = min(n, PART_ROWS)
    held = (k * count + 1.0) * (n * (4 + 4 * count) + size * (12 + 12 * count))
    if held > memory:
        raise ValueError(
            f"parts of {n:,} rows with {k} neighbors take {held / 2**30:.1f} GiB, memory_limit is "
            f"{memory / 2**30:.1f} GiB: raise memory_limit, or take fewer neighbors"
        )
    guarantee = (
        f"Two rounds over parts of at most {PART_ROWS:,} rows: a weaker guarantee, of each round's F alone; "
        "a row stands with its part's pick, so the errors reported are upper bounds"
    )
    return Plan("partitions", guarantee, held, n * size * min(dimensions, SEARCH_DIMENSIONS * count) / 2)


def _speed() -> float:
    """Floating point operations a second of float32 matrix products here and now."""
    block = np.ones((512, 2048), dtype=np.float32)
    best = np.inf
    for _ in range(3):
        began = time.perf_counter()
        block @ block.T
        best = min(best, time.perf_counter() - began)
    return 2.0 * 512 * 512 * 2048 / best


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"

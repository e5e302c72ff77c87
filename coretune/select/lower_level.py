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

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from coretune.select import engines
from coretune.select.composite import Held, composite_blocks, held_composite, hold
from coretune.select.composite_graph import CompositeGraph, composite_graph
from coretune.select.engines import Plan
from coretune.select.greedy import lazy_greedy, stochastic_greedy
from coretune.select.objective import Objective, Picks
from coretune.select.similarity import Similarity
from coretune.select.spaces import Space, nearest_picks, reduced
from coretune.types import Array, Budget, Rows


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


def build(spaces: Sequence[Space], chosen: Plan, k: int, rng: np.random.Generator) -> Level:
    """A level that holds what the plan says; "partitions" is built by `partitions.py`."""
    if chosen.kind == "held":
        return DenseLevel(tuple(spaces), hold(spaces, chosen.dtype))
    if chosen.kind == "blocks":
        return DenseLevel(tuple(spaces), None)
    if chosen.reduced:
        return GraphLevel(
            composite_graph(spaces, k, lambda space: reduced(space, engines.SEARCH_DIMENSIONS, rng), rng)
        )
    return GraphLevel(composite_graph(spaces, k))

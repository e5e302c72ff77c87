"""Two-round greedy over random parts of a pool: what many workers can do at once.

    pool ─ parts ─► each: greedy on its own rows ─► picks, each with the rows it represents
                                                └─► all picks: greedy, covering what they represent ─► S

Mirzasoleiman, Karbasi, Sarkar, Krause, "Distributed Submodular Maximization: Identifying Representative
Elements in Massive Data" (GreeDi), NeurIPS 2013. Two things are ours [choice], as in `partitions.py`: a part
picks SPARE times its share of the budget, not all of it, and the second round covers the picks, each with the
demand of the rows it represents, not the pool. The guarantee is weaker than one greedy's: each round's greedy
has its factor for its own F, and no factor is proven of the pool's. What a row is similar to is the pick that
represents its part's pick, which need not be its nearest, so the coverage reported is a lower bound.

Parts depend on the pool and the seed alone, never on how many workers there are: neither does the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from coretune.select.dense import DenseSimilarity
from coretune.select.greedy import check_budget, lazy_greedy
from coretune.select.objective import Objective, Picks
from coretune.select.quota import refuse_quota
from coretune.types import Array, Budget, Rows

#: Rows of a part at most; a pool of one part is chosen from in one round.
PART_ROWS = 16_384
#: Bytes that a part's pairs may take: as many parts are in memory as a machine has workers.
PART_MEMORY = 2**28
#: Times its share of the budget that a part picks in round one.
SPARE = 2


@dataclass(frozen=True)
class Part:
    """Some rows with all that a worker needs to pick among them, whatever it is sent to.

    objective   of these rows alone
    budget      of this part
    cost        (m,) int64
    candidates  (m,) bool
    """

    objective: Objective
    budget: Budget
    cost: Array
    candidates: Array

    def pick(self) -> tuple[Rows, Array]:
        """(k,) int64 picks among these rows; (m,) int64 which of them represents each row, -1 = none."""
        picks = lazy_greedy(self.objective, self.budget, self.cost, self.candidates, memory=PART_MEMORY)
        return picks.indices, self.objective.similarity.nearest(picks.indices)


#: The parts' picks, in the order of the parts.
Each = Callable[[Iterable[Part]], Sequence[tuple[Rows, Array]]]


def one_by_one(parts: Iterable[Part]) -> list[tuple[Rows, Array]]:
    """An `Each` of one machine; holds one part at a time."""
    return [part.pick() for part in parts]


def two_rounds(
    objective: Objective,
    budget: Budget,
    cost: Array,
    candidates: Array,
    *,
    seed: int,
    each: Each = one_by_one,
    part_rows: int = PART_ROWS,
) -> Picks:
    """S of a dense objective, and which pick represents each row. Arguments and errors as `lazy_greedy`.

    Rows of demand 0 that are no candidates take part in nothing. One part is one round: `lazy_greedy`.
    ValueError: similarities along a graph, whose edges random parts would cut.
    """
    source = objective.similarity
    if not isinstance(source, DenseSimilarity):
        raise ValueError(
            "two rounds compare rows with each other, and similarity is graph, of which parts would cut most "
            "edges: set similarity to dense, or engine to local, which takes seconds along a graph"
        )
    refuse_quota(budget, "greedy in two rounds")
    check_budget(budget, cost, candidates)
    taking_part = (objective.demand > 0.0) | candidates
    parts = _parts(np.flatnonzero(taking_part), candidates, seed, part_rows)
    if len(parts) == 1:
        return lazy_greedy(objective, budget, cost, candidates)
    shares = [_share(budget, cost, candidates, rows) for rows in parts]
    asked = (
        Part(_within(objective, source, rows), share, cost[rows], candidates[rows])
        for rows, share in zip(parts, shares, strict=True)
    )
    union, represented_by = _gathered(len(cost), parts, each(asked))
    held = represented_by >= 0
    demand = np.bincount(represented_by[held], objective.demand[held], minlength=len(union))
    second = _within(objective, source, union, demand)
    picks = lazy_greedy(second, budget, cost[union], np.ones(len(union), dtype=bool))
    nearest = second.similarity.nearest(picks.indices)
    represented_by[held] = nearest[represented_by[held]]
    chosen = union[picks.indices]
    represented_by[chosen] = np.arange(len(chosen))
    best = _covered(source, chosen, represented_by)
    return Picks(chosen, picks.gains, best, represented_by)


def _parts(rows: Rows, candidates: Array, seed: int, part_rows: int) -> list[Rows]:
    """Random parts, each with its share of the candidates; ascending within a part."""
    may, may_not = rows[candidates[rows]], rows[~candidates[rows]]
    count = min(-(-len(rows) // part_rows), len(may))
    rng = np.random.default_rng(seed)
    pairs = zip(
        np.array_split(rng.permutation(may), count),
        np.array_split(rng.permutation(may_not), count),
        strict=True,
    )
    return [np.sort(np.concatenate(pair)) for pair in pairs]


def _share(budget: Budget, cost: Array, candidates: Array, rows: Rows) -> Budget:
    """SPARE times the part's share of the budget, as far as the part goes."""
    own = rows[candidates[rows]]
    if budget.unit == "rows":
        return Budget(min(len(own), -(-SPARE * budget.amount * len(own) // int(candidates.sum()))))
    share = SPARE * budget.amount * int(cost[own].sum()) // int(cost[candidates].sum())
    return Budget(max(min(share, budget.amount), int(cost[own].min())), "tokens")


def _within(
    objective: Objective, source: DenseSimilarity, rows: Rows, demand: Array | None = None
) -> Objective:
    demand = objective.demand[rows] if demand is None else demand
    return Objective(source.at(rows), objective.modular[rows], objective.scale, demand)


def _gathered(n: int, parts: Sequence[Rows], found: Sequence[tuple[Rows, Array]]) -> tuple[Rows, Array]:
    """(u,) all picks; (n,) position among them of the pick that represents each row, -1 = none."""
    union: list[Rows] = []
    represented_by = np.full(n, -1, dtype=np.int64)
    first = 0
    for rows, (picks, nearest) in zip(parts, found, strict=True):
        represented_by[rows] = np.where(nearest >= 0, first + nearest, -1)
        union.append(rows[picks])
        first += len(picks)
    return np.concatenate(union), represented_by


def _covered(source: DenseSimilarity, chosen: Rows, represented_by: Array) -> Array:
    """(n,) float32 similarity of each row to the pick that represents it; 0 with none."""
    best = np.zeros(len(represented_by), dtype=np.float32)
    order = np.argsort(represented_by, kind="stable")
    ends = np.searchsorted(represented_by[order], np.arange(len(chosen) + 1))
    for pick, (begin, end) in enumerate(pairwise(ends)):
        rows = order[begin:end]
        pair = source.at(np.append(rows, chosen[pick]))
        best[rows] = np.maximum(pair.block(slice(0, len(rows)), np.array([len(rows)]))[:, 0], 0.0)
    return best

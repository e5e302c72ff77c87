"""Which engine a selection gets, by rows, dimensions, memory and deadline; said before it starts.

                      all pairs            listed pairs             parts
    facility_location exact, with          similarity: graph        two rounds, when a deadline is given
    grace, craig      similarity: dense                             and all pairs would pass it
    brief             held, or blocks      a graph of each space    partitions

The choice rests on numbers alone that are the same on every machine, so that a run which is resumed or
replayed elsewhere chooses the same rows: work is set against a deadline at a nominal speed [choice], and
memory is what was given, not what happens to be free [choice]. The seconds that are said are of this machine.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coretune.select.dense import DenseSimilarity
from coretune.select.greedy import Engine, lazy_greedy
from coretune.select.lazy import fits
from coretune.select.objective import Objective, Picks
from coretune.select.pairs import PAIR_BYTES
from coretune.select.spaces import BLOCK_BYTES, Space
from coretune.select.two_rounds import PART_ROWS as ROUND_ROWS
from coretune.select.two_rounds import SPARE, two_rounds
from coretune.types import Array, Budget

log = logging.getLogger("coretune")

#: Multiplications and additions a second that a deadline is turned into work by: one core of these years.
NOMINAL = 5e10
#: … above which the log has the engine: seconds on one core.
WORTH_SAYING = 1e12
#: Passes over all pairs that an exact run between them takes: 3.5 to 4 at 5 % of three kinds of pools.
DENSE_PASSES = 4.0
#: … and one that holds them all: half a pass of products, the rest is reading.
HELD_PASSES = 1.5
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
            f"{n:,} rows, {self.kind}: about {_duration(2.0 * self.work / _speed())} of matrix "
            f"products and {_size(self.memory)} above the features. {self.guarantee}"
        )


def plan(
    spaces: Sequence[Space], lower: str, memory: int, k: int, runs: int, deadline: float | None = None
) -> Plan:
    """BRIEF's lower level for these spaces.

    lower     "auto", or one of KINDS
    memory    bytes that may be held above the features
    runs      greedy runs to come
    deadline  seconds (`NOMINAL`); None: BLOCK_WORK in its place
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
        most = BLOCK_WORK if deadline is None else deadline * NOMINAL
        if lower == "dense" or blocks.work <= most:
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
                f"a graph of {n:,} rows with {k} neighbors takes {_size(held)}, memory_limit is "
                f"{_size(memory)}: raise memory_limit, or take fewer neighbors, or lower: partitions"
            )
        which = f"searched in {SEARCH_DIMENSIONS} projected dimensions" if small else "exact"
        guarantee = (
            f"Pairs among the {k} nearest of each space ({which}) at their distance, all others at a typical "
            "one: of that F within 1 − 1/e of the best; the certificate is of the true distances"
        )
        return Plan("graph", guarantee, held, search, reduced=small)
    return _parted(n, dimensions, count, memory, k, runs)


def engine_within(
    who: str, memory: int, deadline: float | None, seed: int, plans: list[Plan] | None = None
) -> Engine:
    """An engine that goes by what it is given, says which one it is, and runs it.

    who       said first
    memory    bytes that may be held above the features
    deadline  seconds (`NOMINAL`); None: exact, however long it takes
    seed      of the parts, where there are two rounds
    plans     what was chosen is added here
    """

    def engine(objective: Objective, budget: Budget, cost: Array, candidates: Array) -> Picks:
        source = objective.similarity
        if not isinstance(source, DenseSimilarity):
            return lazy_greedy(objective, budget, cost, candidates)
        rows = int(((objective.demand > 0.0) | candidates).sum())
        chosen = plan_pairs(rows, source.dimensions, budget, memory, deadline)
        said = logging.WARNING if chosen.work > WORTH_SAYING else logging.INFO
        if log.isEnabledFor(said):
            log.log(said, "%s: %s", who, chosen.line(rows))
        if plans is not None:
            plans.append(chosen)
        if chosen.kind == "two rounds":
            return two_rounds(objective, budget, cost, candidates, seed=seed)
        return lazy_greedy(objective, budget, cost, candidates, memory=memory // 2)

    return engine


def plan_pairs(n: int, dimensions: int, budget: Budget, memory: int, deadline: float | None) -> Plan:
    """All pairs exactly, or two rounds where those would pass the deadline."""
    runs = 1 if budget.unit == "rows" else 2  # of tokens the better of two
    passes = HELD_PASSES if fits(n, memory // 2) else DENSE_PASSES
    exact = Plan(
        "all pairs",
        "Exact: F is within 1 − 1/e of the best for rows, 0.405 for tokens",
        memory=min(memory / 2.0, float(PAIR_BYTES) * n * n),
        work=passes * runs * n * n * dimensions,
    )
    if deadline is None or exact.work <= deadline * NOMINAL or n <= ROUND_ROWS or budget.quota is not None:
        return exact
    size = float(ROUND_ROWS)
    union = SPARE * (budget.amount if budget.unit == "rows" else n // 10)
    return Plan(
        "two rounds",
        f"Parts of at most {ROUND_ROWS:,} rows, then among their picks: weaker than one greedy's, each "
        "round's factor is of its own objective",
        memory=PAIR_BYTES * size * size,
        work=DENSE_PASSES * runs * dimensions * (n * size + float(union) * union),
    )


def bytes_of(memory: str) -> int:
    """ "4GiB" or "512MiB" as bytes; ValueError for anything else."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(MiB|GiB)\s*", memory)
    if found is None or float(found[1]) == 0.0:
        raise ValueError(f"memory_limit is {memory!r}: write it as 4GiB or 512MiB")
    return int(float(found[1]) * 2 ** {"MiB": 20, "GiB": 30}[found[2]])


def seconds_of(deadline: str | None) -> float | None:
    """ "90s", "10min" or "2h" as seconds; ValueError for anything else."""
    if deadline is None:
        return None
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(s|min|h)\s*", deadline)
    if found is None or float(found[1]) == 0.0:
        raise ValueError(f"deadline is {deadline!r}: write it as 90s, 10min or 2h")
    return float(found[1]) * {"s": 1, "min": 60, "h": 3600}[found[2]]


def _parted(n: int, dimensions: int, count: int, memory: int, k: int, runs: int) -> Plan:
    size = min(n, PART_ROWS)
    held = (k * count + 1.0) * (n * (4 + 4 * count) + size * (12 + 12 * count))
    if held > memory:
        raise ValueError(
            f"parts of {n:,} rows with {k} neighbors take {_size(held)}, memory_limit is "
            f"{_size(memory)}: raise memory_limit, or take fewer neighbors"
        )
    guarantee = (
        f"Two rounds over parts of at most {PART_ROWS:,} rows: a weaker guarantee, of each round's F alone; "
        "a row is represented by its part's pick, so the errors reported are upper bounds"
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


def _size(size: float) -> str:
    """In the units that memory_limit is written in."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"

"""A cheap signal narrows the pool before expensive ones are measured: the first stage of a cascade."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import numpy as np

from coretune.choices import refuse_other
from coretune.filters.room import enough, shrunk
from coretune.select.by_target import examples_of, turns_of_examples
from coretune.select.ranking import usable_feature
from coretune.types import TARGET_SIMILARITY, Array, Budget, Pool, Rows, Verdict

By = Literal["target", "spread"]
EMBEDDING = "weighted_embedding"
LEAF = 4  # rows that are not parted any more


@dataclass(frozen=True)
class Narrow:
    """A few times as many rows as the budget asks for. What it and the filters before it need is measured of
    all rows, what the method and the filters after it need of these rows alone.

    Attributes:
        times: How many times the budget stays; at least 1.
        by: "target": rows nearest to the target's examples, which take turns (as `select/rds.py`); "spread"
            [choice]: without a target, rows spread over the pool as it lies: the pool is halved again and
            again along the line between two far rows of each half, by `weighted_embedding`, and the rows are
            drawn from all parts alike, so dense regions keep more of them.

    Score: "target": 1 − the largest similarity to an example; "spread": place in the order, in [0, 1).
    """

    times: float = 4.0
    by: By = "target"

    name: ClassVar[str] = "narrow"
    says: ClassVar[str] = "narrowed out by a cheap signal before the method's own were measured"

    def __post_init__(self) -> None:
        if not self.times >= 1:
            raise ValueError(f"narrow.times is {self.times}: give how many times the budget stays, 1 or more")
        refuse_other("narrow.by", self.by, get_args(By))

    @property
    def needs(self) -> tuple[str, ...]:
        return (TARGET_SIMILARITY if self.by == "target" else EMBEDDING,)

    def judge(self, pool: Pool, budget: Budget) -> Verdict:
        if self.by == "target":
            near = usable_feature(pool, TARGET_SIMILARITY)
            order = turns_of_examples(pool, near, *examples_of(pool, near.shape[1]), budget)[0]
            score = 1.0 - near.max(axis=1)
        else:
            rows = np.flatnonzero(pool.usable)
            order = rows[spread_order(np.asarray(usable_feature(pool, EMBEDDING)[rows], np.float32))]
            score = np.full(pool.n, np.nan)
            score[order] = np.arange(len(order)) / len(order)
        keep = enough(pool, shrunk(_times(budget, self.times), pool), order)
        return Verdict(keep, np.where(pool.usable, score, np.nan).astype(np.float32))


def _times(budget: Budget, times: float) -> Budget:
    def up(amounts: Array | int) -> Array:
        return np.ceil(times * amounts).astype(np.int64)

    quota = budget.quota
    if quota is not None:
        quota = replace(quota, least=up(quota.least), most=up(quota.most))
    return replace(budget, amount=int(up(budget.amount)), quota=quota)


def spread_order(vectors: Array) -> Rows:
    """(n,) all rows, such that the first K are spread over them as densely as they lie, for any K.

    Neighbours come together in a first order (halves of halves); of it the places 0, 1/2, 1/4, 3/4, 1/8, …
    are taken (van der Corput). Same vectors, same order.
    """
    places = np.array(_halved(vectors, np.arange(len(vectors))), dtype=np.int64)
    bits = max(1, int(len(places) - 1).bit_length())
    turn = np.array([int(format(i, f"0{bits}b")[::-1], 2) for i in range(2**bits)])
    return places[turn[turn < len(places)]]


def _halved(vectors: Array, rows: Rows) -> list[int]:
    """The rows, those of each half together."""
    if len(rows) <= LEAF:
        return list(rows)
    own = vectors[rows]
    first = int(((own - own.mean(axis=0)) ** 2).sum(axis=1).argmax())
    second = int(((own - own[first]) ** 2).sum(axis=1).argmax())
    order = rows[np.argsort(own @ (own[second] - own[first]), kind="stable")]
    middle = len(order) // 2
    return [*_halved(vectors, order[:middle]), *_halved(vectors, order[middle:])]

"""Exact distributed pursuit: the columns of `select.columns` in shards, a task each for every pass.

    residual ─► each worker: its shard's best `count` rows, their correlations and columns ─► merge ─► solve

A row's correlation depends on that row and the residual alone, to the last bit (`select.columns`), and
merging is by correlation and row. So the answer is that of one machine, to the last index, for any number of
workers. A task keeps nothing: when its worker dies, Ray gives it to another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from coretune.cluster.features import Mapped
from coretune.select.columns import Candidates, Columns, merge
from coretune.types import Array

#: How often a task whose worker died is given to another.
RETRIES = 10


@dataclass(frozen=True)
class Shard:
    """Some of the pool's rows, as a task finds them.

    features  the rows themselves, or where to read them
    """

    features: Mapped | Array
    first: int
    last: int

    def rows(self) -> Array:
        if isinstance(self.features, Mapped):
            return self.features.open()[self.first : self.last]
        return self.features


@dataclass(frozen=True)
class RayColumns:
    """`select.columns.Columns` over workers: the same methods, the same answers.

    shards  (w,) one a worker, in the order of the rows: references to `Shard`s in Ray's store
    bounds  (w + 1,) their first rows, and n
    norms   (n,) float64
    """

    shards: tuple[Any, ...]
    bounds: Array
    norms: Array

    @staticmethod
    def of(features: Array, workers: int) -> RayColumns:
        """Needs a connection to Ray. Rows behind a memory map are read by the workers, others are sent."""
        bounds = np.linspace(0, len(features), min(workers, max(1, len(features))) + 1).astype(np.int64)
        mapped = Mapped.of(features)
        spans = zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
        shards = tuple(
            ray.put(Shard(mapped or np.ascontiguousarray(features[first:last]), first, last))
            for first, last in spans
        )
        return RayColumns(shards, bounds, np.concatenate(_asked(_norms, [(shard,) for shard in shards])))

    def correlate(self, residual: Array) -> Array:
        """(n,) float64, as `Columns.correlate`."""
        sent = ray.put(residual)
        return np.concatenate(_asked(_correlate, [(*part, sent) for part in self._parts()]))

    def top(self, residual: Array, count: int, open_rows: Array) -> Candidates:
        """As `Columns.top`: what a pursuit asks for once an iteration."""
        sent = ray.put(residual)
        still = np.split(open_rows, self.bounds[1:-1])
        each = zip(self._parts(), still, strict=True)
        return merge(_asked(_top, [(*part, sent, count, rows) for part, rows in each]), count)

    def _parts(self) -> list[tuple[Any, Array]]:
        return list(zip(self.shards, np.split(self.norms, self.bounds[1:-1]), strict=True))


def _asked(task: Any, arguments: list[tuple[Any, ...]]) -> list[Any]:
    """What the task gives for each of the arguments, in their order."""
    remote = ray.remote(task).options(num_cpus=1, max_retries=RETRIES)
    found: list[Any] = ray.get([remote.remote(*each) for each in arguments])
    return found


def _norms(shard: Shard) -> Array:
    return Columns.of(shard.rows()).norms


def _correlate(shard: Shard, norms: Array, residual: Array) -> Array:
    return Columns(shard.rows(), norms, shard.first).correlate(residual)


def _top(shard: Shard, norms: Array, residual: Array, count: int, open_rows: Array) -> Candidates:
    return Columns(shard.rows(), norms, shard.first).top(residual, count, open_rows)

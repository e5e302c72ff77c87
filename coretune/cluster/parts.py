"""The first of two rounds on Ray: each part of a pool is a worker's, sent with the features of its rows.

A greedy run over a part is a task. BRIEF asks the same parts for one mix after another, so there the lower
levels, expensive to build, stay with the workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import ray

from coretune.cluster.columns import RETRIES
from coretune.select.lower_level import Task
from coretune.select.partitions import first_round, part_level
from coretune.select.spaces import Space
from coretune.select.two_rounds import Each, Part
from coretune.types import Array, Rows

Given = TypeVar("Given")
Found = TypeVar("Found")


def parts_on_ray(workers: int) -> Each:
    """An `Each` that has up to so many parts done at a time; the answer does not depend on how many."""

    def each(parts: Iterable[Part]) -> Sequence[tuple[Rows, Array]]:
        return in_turn(_pick, parts, workers)

    return each


def in_turn(task: Callable[[Given], Found], given: Iterable[Given], workers: int) -> list[Found]:
    """What the task makes of each, in their order.

    No more than twice as many as there are workers are made and sent before others are done, so that the pool
    is never copied as a whole.
    """
    remote = ray.remote(task).options(num_cpus=1, max_retries=RETRIES)
    asked: list[Any] = []
    running: list[Any] = []
    for one in given:
        if len(running) >= 2 * workers:
            _, running = ray.wait(running, num_returns=1)
        asked.append(remote.remote(one))
        running.append(asked[-1])
    found: list[Found] = ray.get(asked)
    return found


def _pick(part: Part) -> tuple[Rows, Array]:
    return part.pick()


class _Worker:
    """Some parts' lower levels, kept for the mixes to come; started again by Ray with the same arguments."""

    def __init__(
        self, inside: Sequence[tuple[Space, ...]], numbers: Sequence[int], k: int, seed: int
    ) -> None:
        pairs = zip(inside, numbers, strict=True)
        self.levels = [part_level(spaces, k, seed, number) for spaces, number in pairs]

    def recall(self) -> list[float]:
        return [level.recall for level in self.levels]

    def pick(self, mix: Array, tasks: Sequence[Task]) -> list[tuple[Rows, Array]]:
        return [first_round(level, mix, task) for level, task in zip(self.levels, tasks, strict=True)]


@dataclass(frozen=True)
class PartsOnRay:
    """`partitions.Parts` over workers: part p is with worker p modulo their number.

    workers  handles of `_Worker` actors
    sent     the features they were made of: Ray could not start them again without
    """

    workers: tuple[Any, ...]
    sent: tuple[Any, ...]
    count: int

    @staticmethod
    def of(inside: Sequence[tuple[Space, ...]], k: int, seed: int, workers: int) -> PartsOnRay:
        """Every part's features are sent once."""
        made = ray.remote(_Worker).options(num_cpus=1, max_restarts=RETRIES, max_task_retries=RETRIES)
        handles, sent = [], []
        for first in range(min(workers, len(inside))):
            numbers = list(range(first, len(inside), workers))
            sent.append(ray.put([tuple(map(_alone, inside[number])) for number in numbers]))
            handles.append(made.remote(sent[-1], numbers, k, seed))
        return PartsOnRay(tuple(handles), tuple(sent), len(inside))

    @property
    def recall(self) -> float:
        each = ray.get([worker.recall.remote() for worker in self.workers])
        return float(np.mean(self._in_order(each)))

    def pick(self, mix: Array, tasks: Sequence[Task]) -> list[tuple[Rows, Array]]:
        step = len(self.workers)
        asked = [worker.pick.remote(mix, tasks[first::step]) for first, worker in enumerate(self.workers)]
        return self._in_order(ray.get(asked))

    def _in_order(self, each: Sequence[Sequence[Any]]) -> list[Any]:
        step = len(self.workers)
        return [each[number % step][number // step] for number in range(self.count)]


def _alone(space: Space) -> Space:
    """The same rows without the array that they are a part of, which would be sent as a whole."""
    return Space((space.block(slice(None)),), np.arange(space.n))

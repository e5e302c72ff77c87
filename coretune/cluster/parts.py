"""The first of two rounds on Ray: each part of a pool is a task, sent with the features of its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import ray

from coretune.cluster.columns import RETRIES
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

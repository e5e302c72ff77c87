"""Several processes, one run: the first decides, all of them measure.

    process 0     decide ─► measure(rows) ──────────► merge ─► … ─► decision ─► all
                              │ a share of rows each     ▲
    processes 1…  answer ─────┴─► measure ───────────────┘

While process 0 decides, the others answer its calls, until it sends them the decision or its failure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch.distributed as dist

from coretune.escaping import first_line
from coretune.recording.run_lock import run_lock
from coretune.types import Array, Measure, Rows

Decided = TypeVar("Decided")
#: What gloo and NCCL say of a process that is gone; they raise plain RuntimeErrors too.
_LOST = re.compile(r"gloo|NCCL|Connection (closed|reset|refused)|Broken pipe", re.IGNORECASE)
DECIDED, FAILED, CALL = "decided", "failed", "call"


class Processes:
    """The processes of a run, over a group of their own on the CPU, so that nothing that is passed between
    them touches a device's memory.

    rank, world  this process, of how many; with one nothing is passed to anybody
    timeout      seconds that a process waits for the others
    """

    def __init__(self, rank: int, world: int, timeout: float) -> None:
        self.rank, self.world, self.timeout = rank, world, timeout
        self._calls: dict[str, Callable[..., Any]] = {}
        self._group: Any = None
        if world > 1:
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))

    @property
    def first(self) -> bool:
        return self.rank == 0

    def decide(self, work: Callable[[], Decided], share: Callable[[Decided], Any]) -> Any:
        """On process 0 what `work` returns; on the others `share` of it. Called on all of them.

        What `work` raises is raised on process 0, and a RuntimeError that names it on the others.
        """
        if self.world == 1:
            return work()
        if not self.first:
            return self._answer()
        try:
            decided = work()
            message = (DECIDED, share(decided))
        except ProcessLost:
            raise
        except BaseException as error:
            self._send((FAILED, f"{type(error).__name__}: {error}"))
            raise
        self._send(message)
        return decided

    def divided(self, name: str, measure: Measure, cost: Array) -> Measure:
        """`measure` with its rows dealt out to all processes; for process 0, while it decides.

        Called on every process. cost (n,): tokens of each row, for shards of equal work.
        A row's values may differ in the last bits with the number of processes: it meets other rows in its
        batches.
        """
        if self.world == 1:
            return measure

        def measure_shard(rows: Rows) -> Mapping[str, Array]:
            mine = shard(cost[rows], self.world)[self.rank]
            return measure(rows[mine])  # of none too: where weights are split, the others wait for it

        self._calls[name] = measure_shard

        def measured(rows: Rows) -> Mapping[str, Array]:
            if not len(rows):
                return measure(rows)
            return merge(self.call(name, rows), shard(cost[rows], self.world))

        return measured

    def answers(self, name: str, work: Callable[..., Any]) -> None:
        """Have every process do `work` when process 0 makes the call of that name."""
        self._calls[name] = work

    def everywhere(self, name: str, work: Callable[[], Any]) -> Callable[[], Any]:
        """`work` done by every process, for process 0 while it decides; gives what it gives there."""
        self.answers(name, work)
        return lambda: self.call(name)[0]

    def call(self, name: str, *arguments: Any) -> list[Any]:
        """What the work of that name gives on every process, by rank; for process 0, while it decides."""
        if self.world == 1:
            return [self._calls[name](*arguments)]
        self._send((CALL, name, arguments))
        given = self._work(name, arguments)
        faults = [(rank, fault) for rank, (fault, _) in enumerate(given) if fault is not None]
        if faults:
            raise ProcessFailed(f"process {faults[0][0]}: {faults[0][1]}")
        return [value for _, value in given]

    @contextmanager
    def alone(self, folder: str) -> Iterator[None]:
        """Inside, no other run is in the folder."""
        with ExitStack() as held:
            self.decide(lambda: held.enter_context(run_lock(folder)), lambda decided: None)
            yield

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            with self._together():
                dist.barrier(group=self._group)

    def total(self, numbers: Array) -> Array:
        """The sum over all processes, on each of them."""
        if self.world == 1:
            return numbers
        every: list[Any] = [None] * self.world
        with self._together():
            dist.all_gather_object(every, numbers, group=self._group)
        return np.sum(every, axis=0)

    def _answer(self) -> Any:
        while True:
            kind, *content = self._receive()
            if kind == DECIDED:
                return content[0]
            if kind == FAILED:
                raise ProcessFailed(f"process 0 stopped: {content[0]}")
            self._work(*content)

    def _work(self, name: str, arguments: tuple[Any, ...]) -> list[Any]:
        """(what went wrong or None, value) of every process on process 0; on the others nothing."""
        fault, value = None, None
        try:
            value = self._calls[name](*arguments)
        except Exception as error:  # sent to process 0, which stops all
            fault = f"{type(error).__name__}: {error}"
        given: list[Any] = [None] * self.world
        with self._together():
            dist.gather_object((fault, value), given if self.first else None, dst=0, group=self._group)
        return given

    def _send(self, message: tuple[Any, ...]) -> None:
        with self._together():
            dist.broadcast_object_list([message], src=0, group=self._group)

    def _receive(self) -> tuple[Any, ...]:
        message: list[Any] = [None]
        with self._together():
            dist.broadcast_object_list(message, src=0, group=self._group)
        received: tuple[Any, ...] = message[0]
        return received

    @contextmanager
    def exchanging(self) -> Iterator[None]:
        """Around what the stock trainer passes between processes: ProcessLost where another one is gone."""
        try:
            yield
        except (ProcessFailed, ProcessLost):
            raise
        except RuntimeError as error:
            if self.world == 1 or not (isinstance(error, dist.DistError) or _LOST.search(str(error))):
                raise
            raise self._lost(error) from error

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise self._lost(error) from error

    def _lost(self, error: RuntimeError) -> ProcessLost:
        return ProcessLost(
            f"process {self.rank} stops: another process is gone, or was silent for {self.timeout:.0f} s "
            f"(ddp_timeout). Start all again with resume_from_checkpoint=True. [{first_line(error)}]"
        )


class ProcessFailed(RuntimeError, OSError):
    """Another process stopped with an error, which is named."""


class ProcessLost(RuntimeError, OSError):
    """Another process does not answer any more."""


def shard(cost: Array, count: int) -> list[Rows]:
    """Positions of `cost` (m,) in shards, rising in each: the most expensive first, forward and backward.

    So the shards differ by one position at most, and in cost by no more than the most expensive one.
    """
    order = np.argsort(-np.asarray(cost), kind="stable")
    turn = np.arange(len(order)) % (2 * count)
    owner = np.where(turn < count, turn, 2 * count - 1 - turn)
    return [np.sort(order[owner == number]).astype(np.int64) for number in range(count)]


def merge(parts: list[Mapping[str, Array]], positions: list[Rows]) -> dict[str, Array]:
    """Each process's arrays put back where its positions say."""
    count = sum(len(where) for where in positions)
    merged: dict[str, Array] = {}
    for part, where in zip(parts, positions, strict=True):
        for name, values in part.items():
            whole = merged.setdefault(name, np.empty((count, *values.shape[1:]), values.dtype))
            whole[where] = values
    return merged

"""A line of the table of bench/scale.py, how it is measured, and a case that makes some."""

from __future__ import annotations

import multiprocessing
import os
import resource
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

#: Seconds after which a peer is ended, and what its line says then.
PEER_LIMIT, CUT = 480.0, "cut: takes longer than this"
#: Runs beside peers that are no longer than so many seconds are made so often.
SHORT, REPEATS = 20.0, 3


@dataclass(frozen=True)
class Line:
    """Who did what in how long; None and "" where it was not measured.

    what     what is done, its sizes but for the rows: "graph, 256 dimensions, k 10"
    who      "coretune", or the peer with its version
    rows     of the pool
    seconds  wall
    busy     processor seconds, of all threads and of children that were waited for
    gib      most anonymous memory of the process meanwhile, inputs included, files behind maps not
    worth    what came out, beside the time: "F 0.7312", "recall 0.973"
    note     "~ extrapolated from …", the error of a peer that does not run
    targets  (what is asked, whether it is met)
    fitted   counts for the exponent that is fitted over rows of the same `what` and `who`
    """

    what: str
    who: str
    rows: int
    seconds: float | None = None
    busy: float | None = None
    gib: float | None = None
    worth: str = ""
    note: str = ""
    targets: tuple[tuple[str, bool], ...] = ()
    fitted: bool = True


@dataclass(frozen=True)
class Case:
    """Lines that are measured side by side, in a fresh process of their own.

    name   for --cases
    run    quick -> lines; a function of a module, not a closure. quick: small sizes, seconds
    long   minutes: run by name, or with --all
    quick  among those of --quick; False: its peers take most of a minute to be compiled
    """

    name: str
    run: Callable[[bool], list[Line]]
    long: bool = False
    quick: bool = True


@dataclass(frozen=True)
class Measured:
    """What a call returned, and what it took (as in `Line`)."""

    result: Any
    seconds: float
    busy: float
    gib: float
    cut: bool = False  # it was ended before it ended: it takes at least so much, and result is None


def measured(call: Callable[[], Any]) -> Measured:
    """Run it once. Threads of its own are seen, and children once they are waited for."""
    over, most = threading.Event(), [anonymous()]

    def watch() -> None:
        while not over.wait(0.02):
            most[0] = max(most[0], anonymous())

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        began, busy = time.perf_counter(), _busy()
        result = call()
        seconds, busy = time.perf_counter() - began, _busy() - busy
    finally:
        over.set()
        watching.join()
    return Measured(result, seconds, busy, max(most[0], anonymous()) / 2**30)


def best(call: Callable[[], Any]) -> Measured:
    """The cheapest of REPEATS runs; of one where that took longer than SHORT seconds."""
    found = [measured(call)]
    if (
        found[0].seconds <= SHORT
    ):  # memory that is touched first alone makes those of a second or two uncertain
        found += [measured(call) for _ in range(REPEATS - 1)]
    return min(found, key=lambda one: one.busy)


def within(limit: float, prepare: Callable[[], Callable[[], Any]]) -> Measured:
    """The call that `prepare` returns, by `best` in a process of its own that is ended after `limit` seconds.

    Preparing is not counted. Raises what the call raises, RuntimeError where its process dies.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_prepared, args=(prepare, there))
    child.start()
    there.close()
    try:
        _told(here)
        busy = _busy_of(child.pid)
        if here.poll(limit):
            return _told(here)
        return Measured(None, limit, _busy_of(child.pid) - busy, anonymous(child.pid) / 2**30, cut=True)
    finally:
        child.kill()
        child.join()


def _prepared(prepare: Callable[[], Callable[[], Any]], told: Connection) -> None:
    try:
        call = prepare()
        told.send(None)
        told.send(best(call))
    except Exception as error:
        told.send(error)


def _told(here: Connection) -> Any:
    try:
        told = here.recv()
    except EOFError:
        raise RuntimeError("its process died") from None
    if isinstance(told, Exception):
        raise told
    return told


def exponent(rows: Sequence[int], seconds: Sequence[float]) -> float:
    """b of seconds = a · rows^b, by least squares of the logarithms."""
    return float(np.polyfit(np.log(rows), np.log(seconds), 1)[0])


def anonymous(pid: int | None = None) -> int:
    """Bytes this process, or another, holds that are no file's."""
    lines = Path(f"/proc/{pid or os.getpid()}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def resident() -> int:
    """The most bytes this process ever held in memory, pages of files behind maps included."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _busy() -> float:
    both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(sum(resource.getrusage(who)[:2]) for who in both)


def _busy_of(pid: int | None) -> float:
    """Processor seconds of a process that runs."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

"""A line of the table of bench/scale.py, how it is measured, and a case that makes some."""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


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
    """

    name: str
    run: Callable[[bool], list[Line]]
    long: bool = False


@dataclass(frozen=True)
class Measured:
    """What a call returned, and what it took (as in `Line`)."""

    result: Any
    seconds: float
    busy: float
    gib: float


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


def exponent(rows: Sequence[int], seconds: Sequence[float]) -> float:
    """b of seconds = a · rows^b, by least squares of the logarithms."""
    return float(np.polyfit(np.log(rows), np.log(seconds), 1)[0])


def anonymous() -> int:
    """Bytes this process holds that are no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def _busy() -> float:
    both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(sum(resource.getrusage(who)[:2]) for who in both)

"""How far a long phase is: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol

from tqdm.auto import tqdm

from coretune.progress_reports import reporting_to

SECONDS = 10.0  # between two plain lines
SOON = 1.0  # seconds before a loop outside the model gets a bar: most are over by then


class Progress(Protocol):
    """What both have in common."""

    def update(self, n: int = 1) -> Any: ...

    def set_description(self, desc: str) -> Any: ...

    def close(self) -> Any: ...

    def __enter__(self) -> Progress: ...

    def __exit__(self, *_: Any) -> None: ...


def progress(
    total: int,
    desc: str = "",
    unit: str = "row",
    *,
    leave: bool = False,
    shown: bool = True,
    delay: float = 0.0,
    initial: int = 0,
) -> Progress:
    """On stderr; nothing at all unless `shown`, and no bar before `delay` seconds.

    initial  what was done before, which says nothing of how fast it goes
    """
    if shown and not sys.stderr.isatty():
        return Lines(total, desc, unit, initial)
    bar: Progress = tqdm(
        total=total, desc=desc, unit=unit, leave=leave, disable=not shown, delay=delay, initial=initial
    )
    return bar


@contextmanager
def loops_shown(shown: bool = True) -> Iterator[None]:
    """Within the block long loops outside the model (`progress_reports.py`) have bars, one at a time."""
    if not shown:
        yield
        return
    loops = _Loops()
    with reporting_to(loops):
        try:
            yield
        finally:
            loops.close()


class _Loops:
    """A listener: one bar at a time. A loop that goes on after another spoke goes on from where it was."""

    def __init__(self) -> None:
        self.bar: Progress | None = None
        self.of: tuple[str, int] | None = None
        self.done = 0
        self.broken_off: dict[tuple[str, int], int] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if self.of != (what, total) or done < self.done:
            self.close()
            before = self.broken_off.pop((what, total), 0)
            self.done = before if before <= done else 0  # less than before: another loop of that size
            self.of = (what, total)
            self.bar = progress(total, what, "step", delay=SOON, initial=self.done)
        if self.bar is not None:
            self.bar.update(done - self.done)
            self.done = done
            if done >= total:
                self.close()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        if self.of is not None and self.done < self.of[1]:
            self.broken_off[self.of] = self.done
        self.bar, self.of, self.done = None, None, 0


class Lines:
    """`measuring: 512 of 2,000 rows, 340 a second, 4 s left`, at most every SECONDS, and nothing if it is
    over before that: a log file is read by people too."""

    def __init__(self, total: int, desc: str, unit: str, initial: int = 0) -> None:
        self.total, self.desc, self.unit = total, desc, unit
        self.done = self.initial = initial
        self.began = self.said = time.monotonic()

    def update(self, n: int = 1) -> None:
        self.done += n
        now = time.monotonic()
        if now - self.said >= SECONDS:
            self.said = now
            print(self.line(now - self.began), file=sys.stderr, flush=True)

    def set_description(self, desc: str) -> None:
        self.desc = desc

    def close(self) -> None:
        pass

    def line(self, seconds: float) -> str:
        rate = (self.done - self.initial) / seconds
        left = f"{(self.total - self.done) / rate:,.0f} s left" if rate else "time left unknown"
        speed = f"{rate:,.0f} a second" if rate >= 1 or not rate else f"{1 / rate:,.1f} s each"
        many = "" if self.total == 1 else "s"
        return f"{self.desc}: {self.done:,} of {self.total:,} {self.unit}{many}, {speed}, {left}"

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

"""How far a long phase is: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Protocol

from tqdm.auto import tqdm

SECONDS = 10.0  # between two plain lines


class Progress(Protocol):
    """What both have in common."""

    def update(self, n: int = 1) -> Any: ...

    def set_description(self, desc: str) -> Any: ...

    def close(self) -> Any: ...

    def __enter__(self) -> Progress: ...

    def __exit__(self, *_: Any) -> None: ...


def progress(
    total: int, desc: str = "", unit: str = "row", *, leave: bool = False, shown: bool = True
) -> Progress:
    """On stderr; nothing at all unless `shown`."""
    if shown and not sys.stderr.isatty():
        return Lines(total, desc, unit)
    bar: Progress = tqdm(total=total, desc=desc, unit=unit, leave=leave, disable=not shown)
    return bar


class Lines:
    """`measuring: 512 of 2,000 rows, 340 a second, 4 s left`, at most every SECONDS, and nothing if it is
    over before that: a log file is read by people too."""

    def __init__(self, total: int, desc: str, unit: str) -> None:
        self.total, self.desc, self.unit = total, desc, unit
        self.done = 0
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
        rate = self.done / seconds
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

"""Progress reporting of long loops outside the model: graph and greedy at a million rows take minutes.

    with reporting_to(bars):               # by whom a run's console is
        ...
            graph.build(embedding, k, seed=0, progress=reporter("graph"))      # deep inside a selection

A loop takes `progress: Advance | None = None` and calls it with (done, total). Whoever calls the loop gets it
here, as a logger is got: it is no part of what is computed, so selectors and refreshes do not pass
it on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

from coretune.types import Advance

#: Called with what is going on ("graph", "choosing"), how many steps are done, and of how many.
Listener = Callable[[str, int, int], None]
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def reporting_to(listener: Listener) -> Iterator[None]:
    """Within the block long loops report to it."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def reporter(what: str) -> Advance | None:
    """The `progress` argument of a long loop; None where nobody asked."""
    listener = _listener.get()
    return None if listener is None else partial(listener, what)


class Reporter:
    """What a loop calls after each of its steps, or some of them; `progress` is called now and then."""

    EVERY = 0.25  # seconds

    def __init__(self, progress: Advance | None, total: int) -> None:
        self.progress, self.total, self.done, self.last = progress, total, 0, time.monotonic()

    def __call__(self, more: int = 1) -> None:
        self.done += more
        if self.progress is None:
            return
        now = time.monotonic()
        if now - self.last > self.EVERY or self.done == self.total:
            self.progress(self.done, self.total)
            self.last = now

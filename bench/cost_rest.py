"""The part of bench/cost.py about everything but the model: a selection of a large pool, and a run's end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from cost_row import Asked, Figure
from scale_files import write_rows
from scale_graph import compiled
from scale_row import best, measured
from scale_select import config_of, given_signals

ROWS, QUICK = 100_000, 1_000
GOAL, END_GOAL = 6.0, 2.0  # 3 s on two cores; the end: a second, and one for each 100,000 rows
WORK = ("graph", "selection", "other")


@contextmanager
def processor_seconds() -> Iterator[None]:
    """Within the block the ledger counts seconds of the processor: neighbours disturb the clock's."""
    from coretune.ledger import Ledger

    made = Ledger.__init__

    def make(ledger: Ledger, *given: Any, **named: Any) -> None:
        made(ledger, *given, **{"clock": time.process_time, **named})

    Ledger.__init__ = make
    try:
        yield
    finally:
        Ledger.__init__ = made


def figures(asked: Asked) -> list[Figure]:
    from coretune import run
    from coretune.recording.run_files import LEDGER
    from coretune.report import write_report

    n, folder = QUICK if asked.quick else ROWS, asked.home / "rest"
    folder.mkdir()
    compiled()
    write_rows(folder / "pool.jsonl", n)
    with given_signals(folder, n), processor_seconds():
        measured(partial(run.select, config_of(folder), quiet=True))
    phases = json.loads((folder / "run" / LEDGER).read_text(encoding="utf-8"))["phases"]
    spent = {name: phases[name]["seconds"] for name in WORK}
    parts = ", ".join(f"{name} {spent[name]:.1f} s" for name in WORK)
    end = best(partial(write_report, folder / "run"))
    of_end = f"{n:,} rows; by the clock {end.seconds:.1f} s"
    return [
        Figure(
            "first selection, all but the model",
            sum(spent.values()),
            GOAL,
            "s",
            f"{n:,} rows; {parts}",
        ),
        Figure("end of a run: page", end.busy, END_GOAL, "s", of_end),
    ]

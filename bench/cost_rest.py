"""The part of bench/cost.py about everything but the model: a selection of a large pool, and a run's end."""

from __future__ import annotations

import json
from functools import partial

from cost_row import Asked, Figure
from scale_files import write_rows
from scale_graph import compiled
from scale_row import best, measured
from scale_select import config_of, given_signals

ROWS, QUICK = 100_000, 5_000
GOAL, END_GOAL = 3.0, 2.0  # the end: a second, and one for each 100,000 rows
WORK = ("graph", "selection", "other")


def figures(asked: Asked) -> list[Figure]:
    from coretune import run
    from coretune.recording.run_files import LEDGER
    from coretune.report import write_report

    n, folder = QUICK if asked.quick else ROWS, asked.home / "rest"
    folder.mkdir()
    compiled()
    write_rows(folder / "pool.jsonl", n)
    with given_signals(folder, n):
        measured(partial(run.select, config_of(folder), quiet=True))
    out = folder / "run"
    phases = json.loads((out / LEDGER).read_text(encoding="utf-8"))["phases"]
    spent = {name: phases[name]["seconds"] for name in WORK}
    of = f"{n:,} rows; by the clock: " + ", ".join(f"{name} {value:.1f} s" for name, value in spent.items())
    end = best(partial(write_report, out))
    of_end = f"{n:,} rows; by the clock {end.seconds:.1f} s"
    return [
        Figure("everything but the model in a refresh", sum(spent.values()), GOAL, "s", of),
        Figure("end of a run: page", end.busy, END_GOAL, "s", of_end),
    ]

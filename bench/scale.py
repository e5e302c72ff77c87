"""How long do a pool's steps around the model take at a million rows, and beside which peers?

    python bench/scale.py                     every case of seconds to a few minutes
    python bench/scale.py --all               the long ones too: most of an hour on two cores
    python bench/scale.py --cases sparse,dense
    python bench/scale.py --quick --check     small sizes, under a minute; exit 1 names each target missed

Every case runs in a process of its own, one at a time; the quick ones share one, without the graph's peers.
All of them use synthetic pools.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from command import parser_of, tell_missed
from rich.console import Console
from rich.table import Table
from scale_graph import CASES as GRAPH_CASES
from scale_greedy import CASES as GREEDY_CASES
from scale_peers import CASES as PEER_CASES
from scale_row import Case, Line, exponent
from scale_select import CASES as SELECT_CASES

CASES = (*GREEDY_CASES, *GRAPH_CASES, *PEER_CASES, *SELECT_CASES)


def run(case: Case, quick: bool) -> list[Line]:
    """Its lines, from a fresh process, whose memory is its own; the quick ones share this one, which has
    imported everything."""
    if quick:
        return case.run(quick)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(case.run, quick).result()  # a process that dies is an error, never a wait


def table(lines: Sequence[Line], title: str) -> Table:
    shown = Table(title=title, title_justify="left")
    for header in ("what", "who", "rows", "seconds", "processor s", "GiB", "came out", "targets", "note"):
        shown.add_column(
            header, justify="right" if header in ("rows", "seconds", "processor s", "GiB") else "left"
        )
    for line in lines:
        targets = "; ".join(f"{'met' if met else 'MISSED'}: {text}" for text, met in line.targets)
        figures = (_figure(line.seconds, 1), _figure(line.busy, 1), _figure(line.gib, 2))
        shown.add_row(line.what, line.who, f"{line.rows:,}", *figures, line.worth, targets, line.note)
    return shown


def growth(lines: Sequence[Line]) -> list[str]:
    """How processor seconds grow with the rows, wherever there are three sizes of one thing."""
    found = {}
    for line in lines:
        if line.fitted and line.busy:
            found.setdefault((line.what, line.who), []).append((line.rows, line.busy))
    return [
        f"{what}, {who}: processor seconds grow with rows^{exponent(*zip(*sorted(points), strict=True)):.2f} "
        f"({min(points)[0]:,} to {max(points)[0]:,})"
        for (what, who), points in found.items()
        if len(points) >= 3
    ]


def _figure(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits if value >= 1 else 2}f}"


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--cases", help=f"of {', '.join(case.name for case in CASES)}")
    parser.add_argument("--all", action="store_true", help="the long ones too")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    given = parser.parse_args()
    names = given.cases.split(",") if given.cases else None
    if unknown := set(names or ()) - {case.name for case in CASES}:
        parser.error(f"no case is named {sorted(unknown)[0]!r}; there are {', '.join(c.name for c in CASES)}")
    usual = [c for c in CASES if (c.quick if given.quick else given.all or not c.long)]
    chosen = [c for c in CASES if c.name in names] if names else usual
    lines: list[Line] = []
    console = Console(width=None if sys.stdout.isatty() else 200)
    machine = platform.processor() or platform.machine()
    print(f"{os.cpu_count()} cores, {machine}, Python {platform.python_version()}")
    for case in chosen:
        print(f"… {case.name}", file=sys.stderr, flush=True)
        made = run(case, given.quick)
        console.print(table(made, case.name))  # at once: what is cut later loses nothing of it
        sys.stdout.flush()
        lines += made
    if len(chosen) > 1:
        console.print(table(lines, "Steps around the model"))
    for told in growth(lines):
        print(told)
    missed = [
        f"{line.what}, {line.rows:,} rows: {text}" for line in lines for text, met in line.targets if not met
    ]
    return tell_missed(missed, given.check)


if __name__ == "__main__":
    sys.exit(main())

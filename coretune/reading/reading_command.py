"""`coretune report`, `explain`, `diff`: what a run directory says. Needs neither the model nor the data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coretune.console import Json, Traceback, guarded, print_json, print_lines

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]


def report(run: Run, as_json: Json = False, traceback: Traceback = False) -> None:
    """Write RUN/_coretune/report.html, one file that opens anywhere: what was chosen, why, at what cost."""

    def work() -> None:
        from coretune.report import write_report

        path = write_report(run)
        if as_json:
            print_json({"report": str(path)})
        else:
            print(f"report: {path}")

    guarded(work, traceback)


def explain(
    run: Run,
    id: Annotated[str, typer.Argument(metavar="ID", help="The row's id.")],
    as_json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Why a row was chosen, or not, at every refresh."""

    def work() -> None:
        from coretune.reading.explain import explain, lines
        from coretune.recording.run_files import RunFiles

        found = explain(RunFiles.of(run), id)
        if as_json:
            print_json(found.to_dict())
        else:
            print_lines(lines(found))

    guarded(work, traceback)


def diff(
    run: Run,
    other: Annotated[Path | None, typer.Argument(metavar="[RUN_B]", help="Another run.")] = None,
    rounds: Annotated[
        tuple[int, int] | None,
        typer.Option(
            help="Two refreshes; left out, the last two of a run, the last one of each of two runs."
        ),
    ] = None,
    as_json: Json = False,
    traceback: Traceback = False,
) -> None:
    """What entered the coreset and what left it: between two refreshes, or two runs."""

    def work() -> None:
        from coretune.reading.diff import Side, diff, last_rounds, lines
        from coretune.recording.run_files import RunFiles

        first = RunFiles.of(run)
        second = first if other is None else RunFiles.of(other)
        asked = rounds or (last_rounds(first) if other is None else (first.rounds[-1], second.rounds[-1]))
        found = diff(Side(first, asked[0]), Side(second, asked[1]))
        if as_json:
            print_json(found.to_dict())
        else:
            print_lines(lines(found))

    guarded(work, traceback)

"""`coretune merge`: an adapter run as one model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coretune.console import Json, Traceback, guarded, print_json


def merge(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A run directory, a checkpoint of one, or an adapter's hub id."),
    ],
    output: Annotated[str | None, typer.Option(metavar="FOLDER", help="Left out: RUN/merged.")] = None,
    as_json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Write the merged model of a run that has trained an adapter."""

    def work() -> None:
        from coretune.commands.merge import merge

        path = merge(run.expanduser(), Path(output).expanduser() if output else None)
        if as_json:
            print_json({"merged": str(path)})
        else:
            print(f"merged model: {path}")

    guarded(work, traceback)

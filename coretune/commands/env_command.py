"""`coretune env`: what a bug report needs."""

from __future__ import annotations

from typing import Annotated

import typer

from coretune.console import Json, Traceback, guarded, print_json, print_lines


def env(
    config: Annotated[
        str | None, typer.Argument(metavar="[CONFIG.yaml]", help="A config to add, without its secrets.")
    ] = None,
    as_json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Versions, devices and settings of this machine, for a bug report."""

    def work() -> None:
        from coretune.commands.env import environment, lines

        found = environment(config)
        if as_json:
            print_json(found)
        else:
            print_lines(lines(found))

    guarded(work, traceback)

"""`coretune chat`: a few lines of conversation with what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coretune.console import Traceback, guarded


def chat(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="A run directory, a checkpoint, a model folder, or an adapter's hub id."
        ),
    ],
    system: Annotated[str | None, typer.Option(help="A system turn before the conversation.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 256,
    traceback: Traceback = False,
) -> None:
    """Talk to the model of a run; /new begins anew, the end of the input ends. Reads a pipe too."""

    def work() -> None:
        from coretune.commands.chat import chat

        chat(run.expanduser(), system, max_new_tokens)

    guarded(work, traceback)

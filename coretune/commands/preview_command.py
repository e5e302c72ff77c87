"""`coretune preview`: rows as the model will see them, before anything is trained."""

from __future__ import annotations

from typing import Annotated

import typer

from coretune.console import Config, Json, Overrides, Traceback, guarded, print_json

FIRST = 2000  # [choice] rows: seconds for any tokenizer


def preview(
    config: Config,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=0, help="Rows to show.")] = 3,
    first: Annotated[int, typer.Option(min=0, help="Rows to read; 0: all of them.")] = FIRST,
    as_json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Rows as the model will see them: tokens, loss mask, turns, cuts, columns, rows left out. No weights."""

    def work() -> None:
        from coretune.config import load_present

        settings = load_present(config, overrides)
        from coretune.commands.preview import preview  # seconds: after what is wrong with the config was said

        found = preview(settings, rows, first or None)
        if as_json:
            print_json(found.to_dict())
            return
        from rich.console import Console

        from coretune.commands.preview_text import show

        show(found, Console())

    guarded(work, traceback)

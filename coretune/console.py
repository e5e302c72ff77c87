"""What every command shares: errors in one line, tables, JSON, silence."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

WIDE = 1000  # characters
#: Warnings from TRL's own defaults (trl 1.16 on transformers 5.23): nothing that a user could mend.
NOISE = "`(is_)?gradient_checkpointing` is deprecated"
Traceback = Annotated[bool, typer.Option("--traceback", help="Show where an error came from.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, for programs.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No bars and no notes; errors still show.")]


def guarded(work: Callable[[], None], traceback: bool) -> None:
    """Run it; an error the user can mend is one line on stderr and exit code 1."""
    try:
        work()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read it has read enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except (ValueError, OSError) as error:
        if traceback:
            raise
        # Libraries' errors about files and models run over many lines; ours break lines only in lists.
        text = " ".join(str(error).split()) if isinstance(error, OSError) else str(error)
        print(f"coretune: {text}", file=sys.stderr)
        raise typer.Exit(1) from None


def print_table(title: str, rows: Sequence[Sequence[str]]) -> None:
    """Rows of text, header first. No cell is cut: on a terminal that is too narrow lines run on."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for number, name in enumerate(rows[0]):
        table.add_column(name, justify="left" if number == 0 else "right", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*row)
    console = Console()
    wanted = console.measure(table, options=console.options.update(max_width=WIDE)).maximum
    Console(width=max(console.width, wanted)).print(table)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))

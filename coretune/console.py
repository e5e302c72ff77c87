"""What every command shares: errors in one line, tables, JSON, silence."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from coretune.escaping import shown, shown_in_json

WIDE = 1000  # characters
OTHERS_WAIT = 2.0  # [choice] seconds
UNFORESEEN = "unforeseen error, whose place --traceback shows: "
#: Warnings from TRL's own defaults (trl 1.16 on transformers 5.23): nothing that a user could mend.
NOISE = "`(is_)?gradient_checkpointing` is deprecated"
Config = Annotated[str, typer.Argument(metavar="CONFIG.yaml", help="The run's config.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="key=value", help="Overrides, as coreset.budget=5%.")
]
Traceback = Annotated[bool, typer.Option("--traceback", help="Show where an error came from.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, for programs.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No bars and no notes; errors still show.")]


def no_notes_of_libraries() -> None:
    """Before they are imported: no warning of theirs that a user can do nothing about."""
    warnings.filterwarnings("ignore", message=NOISE)
    # As PEFT imports it, it names a kernel for 4 bits that it has not, which layers in training cannot use.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # At every product with weights of 8 bits it says that it computes them from float16.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


def first_process() -> bool:
    """Whether this is the only process, or the first of those that torchrun or accelerate has started."""
    return os.environ.get("RANK", "0") == "0"


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
        print_error(error)
        raise typer.Exit(1) from None
    except ImportError as error:
        if traceback:
            raise
        ours = (error.name or "").partition(".")[0] == "coretune"
        print_error(error if ours else ValueError(f"a package is missing: {error}"), unforeseen=ours)
        raise typer.Exit(1) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:  # a fault of ours or of a library, which no message was written for
        if traceback:
            raise
        print_error(error, unforeseen=True)
        raise typer.Exit(1) from None


class Commands(typer.Typer):
    """Commands that refuse an empty value, as of a shell variable that is not set: as a path it would be the
    folder that the command runs in."""

    def command(self, name: str | None = None, **given: Any) -> Any:
        """As of Typer."""
        return super().command(name, cls=_Command, **given)


class _Command(TyperCommand):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = self.make_parser(ctx).parse_args(list(args))[0]
        for each in self.params:
            values = given.get(each.name or "")
            if any(isinstance(one, str) and not one.strip() for one in _listed(values)):
                argument = each.param_type_name == "argument"
                name = str(each.metavar or each.name).strip("[]") if argument else each.opts[0]
                print_error(ValueError(f"{name} is empty: give its value, or leave it out"))
                raise typer.Exit(1)
        return super().parse_args(ctx, args)


def _listed(values: Any) -> Sequence[Any]:
    return values if isinstance(values, (list, tuple)) else [values]


def print_error(error: Exception, unforeseen: bool = False) -> None:
    """`coretune: …` on stderr. Ours break lines in lists only, whose items are indented; libraries' errors
    about files and models run over many lines, and become one.

    Of several processes the first one reports what went wrong in all of them: the launcher stops the others
    while they wait, and a process that is alone with an error reports it then.
    """
    if not first_process():
        time.sleep(OTHERS_WAIT)
    text = str(error)
    if unforeseen or not text:
        text = f"{type(error).__name__}: {text}"
    items = [text] if unforeseen or isinstance(error, OSError) else text.split("\n  ")
    lines = [shown(" ".join(item.split())) for item in items]
    lines[0] = f"coretune: {UNFORESEEN if unforeseen else ''}{lines[0]}"
    print("\n  ".join(lines), file=sys.stderr)


def print_lines(lines: Iterable[str]) -> None:
    """One line each, whatever characters are in them."""
    for line in lines:
        print(shown(line))


class LogFormatter(logging.Formatter):
    """Log lines name rows and files: shown escaped."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return shown(super().formatMessage(record))


def print_table(title: str, rows: Sequence[Sequence[str]]) -> None:
    """Rows of text, header first. No cell is cut: on a terminal that is too narrow lines run on."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(title=cell(title), box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for number, name in enumerate(rows[0]):
        table.add_column(cell(name), justify="left" if number == 0 else "right", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*map(cell, row))
    console = Console()
    wanted = console.measure(table, options=console.options.update(max_width=WIDE)).maximum
    Console(width=max(console.width, wanted)).print(table)


def cell(text: str) -> Any:
    """Not as rich's markup, which a name may resemble."""
    from rich.text import Text

    return Text(shown(text, keep="\n"))


def print_json(value: Any) -> None:
    """Valid JSON: a number that JSON has not (NaN, infinite) is null."""
    print(shown_in_json(json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

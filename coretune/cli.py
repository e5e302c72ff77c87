"""The command: train, select, demo, cache. Heavy packages are imported inside, so that --help is quick."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from coretune import cache_command

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Fine-tune a language model on a small, changing coreset, and see what it cost.",
)
app.add_typer(cache_command.app, name="cache")
Config = Annotated[str, typer.Argument(metavar="CONFIG.yaml", help="The run's config.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="key=value", help="Overrides, as coreset.budget=5%.")
]
SkipBadRows = Annotated[bool, typer.Option("--skip-bad-rows", help="Leave bad rows out and list them.")]
Traceback = Annotated[bool, typer.Option("--traceback", help="Show where an error came from.")]


@app.command()
def train(
    config: Config,
    overrides: Overrides = None,
    skip_bad_rows: SkipBadRows = False,
    traceback: Traceback = False,
) -> None:
    """Fine-tune on a coreset that changes as the model learns."""

    def work() -> None:
        from coretune import run

        settings = _load(config, overrides, skip_bad_rows)
        trainer = run.train(settings)
        _print_table("Cost of this run", run.summary(trainer))
        print(f"run directory: {settings.output_dir}")

    _guarded(work, traceback)


@app.command()
def select(
    config: Config,
    overrides: Overrides = None,
    skip_bad_rows: SkipBadRows = False,
    traceback: Traceback = False,
) -> None:
    """Choose the coreset without training on it, and write it as coreset.jsonl for any trainer."""

    def work() -> None:
        from coretune import run

        settings = _load(config, overrides, skip_bad_rows)
        path = run.select(settings)
        print(f"coreset: {path}")

    _guarded(work, traceback)


@app.command()
def demo(
    output_dir: Annotated[str, typer.Option(help="Where the pool and the runs go.")] = "runs/demo",
    seed: Annotated[int, typer.Option(help="Of the pool and of the runs.")] = 0,
    traceback: Traceback = False,
) -> None:
    """Three arms on a generated pool: everything, a random coreset, a GRACE coreset. No network, no GPU."""

    def work() -> None:
        from pathlib import Path

        from coretune.demo import run_demo

        _print_table("Equal steps; seconds include selection", run_demo(Path(output_dir), seed))
        print(f"run directory: {output_dir}")

    _guarded(work, traceback)


def main() -> None:
    """Entry point of the command `coretune`."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    # From TRL's own defaults (trl 1.16 on transformers 5.23): nothing that a user could mend.
    warnings.filterwarnings("ignore", message="`(is_)?gradient_checkpointing` is deprecated")
    app()


def _load(path: str, overrides: Sequence[str] | None, skip_bad_rows: bool) -> Any:
    from coretune.config import load_config

    config = load_config(path, overrides or ())
    return config.model_copy(update={"skip_bad_rows": True}) if skip_bad_rows else config


def _guarded(work: Callable[[], None], traceback: bool) -> None:
    """Run it; an error the user can mend is one line on stderr and exit code 1."""
    try:
        work()
    except (ValueError, OSError) as error:
        if traceback:
            raise
        # Libraries' errors about files and models run over many lines; ours break lines only in lists.
        text = " ".join(str(error).split()) if isinstance(error, OSError) else str(error)
        print(f"coretune: {text}", file=sys.stderr)
        raise typer.Exit(1) from None


def _print_table(title: str, rows: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for number, name in enumerate(rows[0]):
        table.add_column(name, justify="left" if number == 0 else "right", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()

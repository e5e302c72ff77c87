"""`coretune init` and `coretune schema`: a first config, and what an editor needs to help with it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coretune.console import Traceback, guarded, print_json

if TYPE_CHECKING:
    from coretune.commands.starter import Starter


def init(
    config: Annotated[Path, typer.Argument(metavar="[CONFIG.yaml]", help="The file to write.")] = Path(
        "config.yaml"
    ),
    model: Annotated[str | None, typer.Option(help="A folder or a hub id.")] = None,
    data: Annotated[str | None, typer.Option(help="Rows: a file, a folder or a hub id.")] = None,
    output: Annotated[str | None, typer.Option(help="The run's folder.")] = None,
    eval_data: Annotated[str | None, typer.Option(help="Held-out rows.")] = None,
    budget: Annotated[str, typer.Option(help="Of the coreset: 10%, 600, 2M tokens.")] = "10%",
    full: Annotated[bool, typer.Option("--full", help="Train the whole model, no adapter.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    traceback: Traceback = False,
) -> None:
    """Write a commented config, and its schema for editors. Asks on a terminal for what no flag says."""

    def work() -> None:
        from coretune.adapter_folder import holds_adapter, located
        from coretune.commands.starter import MODEL, Starter
        from coretune.yaml_text import ConfigError

        if config.exists() and not force:
            raise ConfigError(f"{config} is there already: give another name, or --force to replace it")
        known_model = model or _asked("Model, a folder or a hub id", MODEL, "--model", MODEL)
        known_data = data or _asked("Rows, a file, a folder or a hub id", None, "--data", None)
        folder = f"runs/{Path(known_data).stem}"
        known_output = output or _asked("Folder of the run", folder, "--output", folder)
        adapter = holds_adapter(located(os.path.expanduser(known_model), None)[0])
        if adapter and full:
            raise ConfigError(f"{known_model} is an adapter, and only that is trained: leave --full out")
        _write(config, Starter(known_model, known_data, known_output, eval_data, budget, full, adapter))
        print(f"config: {config}")
        print(f"next: coretune preview {config}")

    guarded(work, traceback)


def schema(traceback: Traceback = False) -> None:
    """Print the JSON schema of a config, for editors; `coretune init` writes it beside the config."""

    def work() -> None:
        from coretune.commands.schema import config_schema

        print_json(config_schema())

    guarded(work, traceback)


def _asked(question: str, suggested: str | None, flag: str, otherwise: str | None) -> str:
    """The answer given at the terminal; without one `otherwise`, or ConfigError that names the flag."""
    from coretune.yaml_text import ConfigError

    if _terminal():
        answer: str = typer.prompt(question, default=suggested)
        return answer.strip()
    if otherwise is None:
        raise ConfigError(f"{flag} is missing, and there is no terminal to ask on: give it")
    return otherwise


def _terminal() -> bool:
    return sys.stdin.isatty()


def _write(path: Path, starter: Starter) -> None:
    """Once it is known to be a config that a run takes."""
    from coretune.commands.schema import config_schema
    from coretune.commands.starter import SCHEMA
    from coretune.config import check_config, refuse_absent
    from coretune.files import write_json, write_text
    from coretune.yaml_text import read_text

    text = starter.text(path)
    refuse_absent(check_config(read_text(text, str(path))))
    write_json(path.parent / SCHEMA, config_schema(), indent=1)
    write_text(path, text)

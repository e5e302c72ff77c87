"""The command. Heavy packages are imported inside the functions, so that --help is quick.

train, select, demo are here; `reading_command.py` reads runs, `cache_command.py` stores, `commands/` has what
comes before a run and after it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from coretune.commands import chat_command, env_command, init_command, merge_command, preview_command
from coretune.comparing import compare_command
from coretune.console import (
    Commands,
    Config,
    Json,
    LogFormatter,
    Overrides,
    Quiet,
    Traceback,
    first_process,
    guarded,
    no_notes_of_libraries,
    print_json,
    print_table,
)
from coretune.probing import plan_command
from coretune.reading import cache_command, reading_command

app = Commands(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Fine-tune a language model on a small, changing coreset, and see what it cost.",
)
app.add_typer(cache_command.app, name="cache")
Targets = Annotated[
    list[str] | None,
    typer.Option("--target", metavar="FILE", help="Trusted rows of what is wanted; several share alike."),
]
SkipBadRows = Annotated[bool, typer.Option("--skip-bad-rows", help="Leave bad rows out and list them.")]


@app.command()
def train(
    config: Config,
    overrides: Overrides = None,
    skip_bad_rows: SkipBadRows = False,
    nproc: Annotated[int | None, typer.Option(min=1, help="Processes to start, one a device.")] = None,
    accelerate_config: Annotated[
        str | None,
        typer.Option(
            "--accelerate-config",
            "--accelerate_config",
            help="accelerate's file, or one of TRL's: multi_gpu, zero2, fsdp2, …",
        ),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Fine-tune on a coreset that changes as the model learns."""

    def work() -> None:
        settings = _load(config, overrides, skip_bad_rows)
        if accelerate_config is not None or (nproc or 1) > 1:
            from coretune.commands.launch import launch

            flags = {"--skip-bad-rows": skip_bad_rows, "--quiet": quiet, "--json": as_json}
            given = [flag for flag, on in {**flags, "--traceback": traceback}.items() if on]
            on_cpu = settings.training.get("use_cpu") is True
            raise typer.Exit(
                launch(["train", config, *(overrides or ()), *given], nproc, accelerate_config, on_cpu)
            )
        from coretune import run  # seconds: after what is wrong with the config was said

        if quiet or as_json or not first_process():
            run.quiet()
        trainer = run.train(settings, on_step=(lambda: None) if quiet or as_json else None)
        if not first_process():
            return
        if as_json:
            print_json({"output_dir": settings.output_dir, **trainer.ledger.to_dict()})
            return
        if not quiet:
            print_table("Cost of this run", run.summary(trainer))
            print(run.against_plan(trainer))
            print(trainer.ledger.selection_share())
        print(f"run directory: {settings.output_dir}")

    guarded(work, traceback)


@app.command()
def select(
    config: Config,
    overrides: Overrides = None,
    target: Targets = None,
    skip_bad_rows: SkipBadRows = False,
    quiet: Quiet = False,
    as_json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Choose the coreset without training on it, and write it as _coretune/coreset.jsonl for any trainer."""

    def work() -> None:
        settings = _load(config, [*(overrides or ()), *_as_target(target)], skip_bad_rows)
        from coretune import run  # seconds: after what is wrong with the config was said

        if quiet or as_json or not first_process():
            run.quiet()
        path = run.select(settings, quiet or as_json)
        if not first_process():
            return
        if as_json:
            print_json({"coreset": str(path)})
        else:
            print(f"coreset: {path}")

    guarded(work, traceback)


@app.command()
def demo(
    output_dir: Annotated[str, typer.Option(help="Where the pool and the runs go.")] = "runs/demo",
    seed: Annotated[int, typer.Option(help="Of the pool and of the runs.")] = 0,
    quiet: Quiet = False,
    as_json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Three arms on a generated pool: everything, a random coreset, a GRACE coreset. No network, no GPU."""

    def work() -> None:
        from pathlib import Path

        from coretune.demo import run_demo

        header, *rows = run_demo(Path(output_dir).expanduser(), seed, quiet=quiet or as_json)
        if as_json:
            names = [name.replace("\n", " ") for name in header]
            print_json([dict(zip(names, row, strict=True)) for row in rows])
            return
        print_table("Equal steps; seconds include selection", [header, *rows])
        print(f"run directory: {output_dir}")

    guarded(work, traceback)


@app.command("demo-real")
def demo_real(
    output_dir: Annotated[str, typer.Option(help="Where the pool and the runs go.")] = "runs/demo-real",
    model: Annotated[
        str, typer.Option(help="Model folder; made there if it is not.")
    ] = "runs/models/smollm2",
    seed: Annotated[int, typer.Option(help="Of the pool and of the runs.")] = 0,
    epochs: Annotated[float, typer.Option(help="Total FLOPs of each arm, in epochs over the pool.")] = 1.0,
    quiet: Quiet = False,
    as_json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Two arms on 1,300 real rows with SmolLM2-135M, at equal compute: everything, a GRACE coreset."""

    def work() -> None:
        from pathlib import Path

        from coretune.demo_real import RealDemo, run_demo_real
        from coretune.playground.smollm2 import make_model

        if make_model(Path(model)) and not (quiet or as_json):
            print(f"{model}: SmolLM2-135M-Instruct, dequantised from Q4_1")
        asked = RealDemo(Path(output_dir), Path(model), seed, epochs)
        header, *rows = run_demo_real(asked, quiet=quiet or as_json)
        if as_json:
            names = [name.replace("\n", " ") for name in header]
            print_json([dict(zip(names, row, strict=True)) for row in rows])
            return
        print_table("Equal compute, choosing included", [header, *rows])
        print(f"report: {output_dir}/grace/_coretune/report.html")

    guarded(work, traceback)


for command in (reading_command.report, reading_command.explain, reading_command.diff):
    app.command()(command)


app.command()(init_command.init)
app.command()(init_command.schema)
app.command()(preview_command.preview)
app.command()(chat_command.chat)
app.command()(merge_command.merge)
app.command()(env_command.env)
app.command()(plan_command.plan)
app.command()(compare_command.compare)


def main() -> None:
    """Entry point of the command `coretune`."""
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter("%(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    no_notes_of_libraries()
    app()


def _as_target(files: Sequence[str] | None) -> list[str]:
    """The override of target_data that the option --target makes."""
    if not files:
        return []
    if len(set(files)) < len(files):
        raise ValueError(f"--target is given {len(files)} times, some file twice: give each file once")
    given = files[0] if len(files) == 1 else {file: 1 / len(files) for file in files}
    return [f"target_data={json.dumps(given)}"]


def _load(path: str, overrides: Sequence[str] | None, skip_bad_rows: bool) -> Any:
    from coretune.config import load_present

    config = load_present(path, overrides)
    return config.model_copy(update={"skip_bad_rows": True}) if skip_bad_rows else config


if __name__ == "__main__":
    main()

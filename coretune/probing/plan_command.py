"""`coretune plan`: what a run will cost, before it."""

from __future__ import annotations

from coretune.console import (
    Config,
    Json,
    Overrides,
    Quiet,
    Traceback,
    guarded,
    print_json,
    print_lines,
    print_table,
)


def plan(
    config: Config,
    overrides: Overrides = None,
    quiet: Quiet = False,
    as_json: Json = False,
    traceback: Traceback = False,
) -> None:
    """What a run will cost and whether it can pay: a short probe on this machine, and nothing is trained."""

    def work() -> None:
        from coretune.config import load_present

        settings = load_present(config, overrides)
        from coretune import run  # seconds: after what is wrong with the config was said
        from coretune.ledger import TABLE_HEADER, table_of
        from coretune.planning.plan import lines, write
        from coretune.probing.probe import PARTS, make_plan
        from coretune.progress import progress

        run.quiet()
        with progress(len(PARTS), PARTS[0], "part", shown=not (quiet or as_json)) as bar:

            def over(part: str) -> None:
                bar.update()
                bar.set_description(part)

            found = make_plan(settings, over=over)
        path = write(found, settings.output_dir)
        if as_json:
            print_json(found.to_dict())
            return
        if not quiet:
            print_table("Predicted cost", [TABLE_HEADER, *table_of(found.phases)])
            print_lines(lines(found))
        print(f"plan: {path}; `coretune train` holds the outcome against it")

    guarded(work, traceback)

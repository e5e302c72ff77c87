"""`coretune compare`: arms against each other, at equal steps and at equal compute."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coretune.console import Json, Overrides, Quiet, Traceback, guarded, print_json, print_table

if TYPE_CHECKING:
    from coretune.comparing.compare import Job, Result

log = logging.getLogger("coretune")


def compare(
    config: Annotated[str, typer.Argument(metavar="CONFIG.yaml", help="What all arms share.")],
    overrides: Overrides = None,
    arms: Annotated[
        str, typer.Option(help="Methods with settings, as grace:refresh.anchors=all, and full.")
    ] = ("full,random,grace"),
    seeds: Annotated[int, typer.Option(min=1, help="Seeds, from the config's on.")] = 3,
    out: Annotated[str | None, typer.Option(metavar="FOLDER", help="Left out: output_dir.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Runs at a time, one thread each if several.")] = 1,
    equal_compute: Annotated[bool, typer.Option(help="Also train cheaper arms for longer.")] = True,
    quiet: Quiet = False,
    as_json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Arms from one config over several seeds: means, errors, paired tests, loss against compute."""

    def work() -> None:
        from coretune.comparing.arms import split_arms
        from coretune.config import load_present

        settings = load_present(config, overrides)
        folder = Path(out or settings.output_dir).expanduser()
        chosen = split_arms(arms)
        found = run_comparison(
            settings, chosen, seeds, folder, workers, equal_compute, bars=not (quiet or as_json)
        )
        if as_json:
            print_json(found)
            return
        for one in () if quiet else found["tables"]:
            print_table(one["title"], [one["header"], *one["rows"]])
        print(f"comparison: {folder / 'compare.json'}, a report of each run beside it")

    guarded(work, traceback)


def run_comparison(
    config: Any,
    arms: Sequence[str],
    seeds: int,
    out: Path,
    workers: int,
    equal_compute: bool,
    bars: bool = True,
) -> dict[str, Any]:
    """Run what is not finished; what compare.json holds, which is written after every job."""
    from coretune.files import writing
    from coretune.recording.run_lock import run_lock

    with run_lock(out), writing(out, None, "make room, and run it again: what is finished is kept"):
        return _compared(config, arms, seeds, out, workers, equal_compute, bars)


def _compared(
    config: Any,
    arms: Sequence[str],
    seeds: int,
    out: Path,
    workers: int,
    equal_compute: bool,
    bars: bool,
) -> dict[str, Any]:
    from coretune.comparing import compare
    from coretune.data.sources import described
    from coretune.recording.run_files import REPORT
    from coretune.report import write_report
    from coretune.training.saving import side_product

    numbers = range(config.seed, config.seed + seeds)
    jobs = compare.jobs_of(config, arms, numbers, out)
    baseline = compare.BASELINE if compare.BASELINE in arms else arms[0]
    data, model = Path(described(config.train_data)).name, Path(config.model_name_or_path).name
    title = f"{data}, {model}, {jobs[0].steps} steps"
    said = partial(compare.summary, title, baseline=baseline)

    def note(steps: list[Result], more: list[Result]) -> None:
        compare.write_summary(out, said(steps, more))

    at_steps = _run(jobs, out, workers, bars, lambda done: note(done, []))
    at_compute: list[Result] = []
    if equal_compute and not compare.counted(at_steps):
        log.warning("no arms at equal compute: FLOPs of this architecture are unknown")
    elif equal_compute:
        afford = compare.afforded(at_steps)
        longer = [compare.job_of(config, job.arm, job.seed, afford[job.arm], out) for job in jobs]
        at_compute = _run(longer, out, workers, bars, lambda done: note(at_steps, done))
    found = said(at_steps, at_compute)
    compare.write_summary(out, found)
    for result in found["results"]:
        folder = out / result["folder"]
        if folder.is_dir():
            with side_product(folder / REPORT):
                write_report(folder)
    return found


def _run(
    jobs: list[Job], out: Path, workers: int, bars: bool, note: Callable[[list[Result]], None]
) -> list[Result]:
    """Every job's result, in the order of the jobs; `note` is called after each."""
    from coretune.comparing.arm_runs import outcomes, run_job
    from coretune.comparing.compare import RESULTS
    from coretune.progress import progress

    done: dict[tuple[str, int], Result] = {}
    order = [(job.arm, job.seed) for job in jobs]
    with progress(len(jobs), "comparing", "run", leave=True, shown=bars) as bar:
        for job, result in outcomes(jobs, out / RESULTS, workers, run_job, bar.set_description):
            # Two arms may be the same job in other words, and have one result.
            done[job.arm, job.seed] = {**result, "arm": job.arm}
            bar.update()
            note([done[which] for which in order if which in done])
    return [done[which] for which in order]

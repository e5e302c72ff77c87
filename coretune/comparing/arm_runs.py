"""Arms trained and judged, several at a time; what is finished is on disk and never run again.

for job, result in outcomes(jobs, Path("OUT/results"), workers=2, run=run_job):
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coretune.comparing.compare import Job, Prices, Result
from coretune.console import no_notes_of_libraries
from coretune.files import read_json, write_json
from coretune.ledger import Cost
from coretune.planning.workload import rows_remeasured
from coretune.recording.run_files import METRICS
from coretune.storing.fingerprint import checksum

if TYPE_CHECKING:
    from coretune.training.mixin import CoresetMixin

Run = Callable[[Job], Result]
CHECKSUM = "checksum"  # of a result, in its file
log = logging.getLogger("coretune")


def outcomes(
    jobs: Sequence[Job],
    results: Path,
    workers: int,
    run: Run,
    begun: Callable[[str], object] = lambda name: None,
) -> Iterator[tuple[Job, Result]]:
    """Every job with its result, as they are finished; in the order of the jobs with one worker.

    results  folder of the finished ones, a file each
    workers  processes, one thread each; 1 = in this process
    run      trains and judges; with several workers a function of a module, for they import it
    begun    called with the name of a job before it is run, where there is one worker
    """
    if workers == 1:
        for job in jobs:
            begun(job.name)
            yield job, finished(job, results, run)
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the processes when they begin
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin) as pool:
        futures = {pool.submit(finished, job, results, run): job for job in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # an error ends it now, not after all that waits
            raise


def _begin() -> None:
    """In a worker: spared the stock libraries' warnings, and gone when its parent is, however that went."""
    no_notes_of_libraries()
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def finished(job: Job, results: Path, run: Run) -> Result:
    """The job's result, from its file when it was run before."""
    key = job.key
    path = results / f"{key}.json"
    if path.is_file() and (known := _known(path)) is not None:
        return known
    shutil.rmtree(job.config.output_dir, ignore_errors=True)  # of an attempt that was cut
    result = run(job)
    if job.key == key:
        write_json(path, {CHECKSUM: _checksum(result), **result})
    else:
        log.warning("%s: what its config names was written to while it ran; its result is not kept", job.name)
    return result


def _known(path: Path) -> Result | None:
    """The result in this file; None, with a line, where it is not as it was written."""
    try:
        found: Result = read_json(path)
        if found.pop(CHECKSUM) == _checksum(found):
            return found
    except (ValueError, KeyError, AttributeError, TypeError):
        pass
    log.warning("%s is damaged, and its run is made again", path)
    return None


def _checksum(result: Result) -> str:
    return checksum(json.dumps(result, sort_keys=True).encode())


def run_job(job: Job) -> Result:
    """Train and judge one arm on one seed, silently."""
    from coretune import run

    run.quiet()
    trainer = run.train(job.config, on_step=lambda: None, save=False)
    folder = Path(job.config.output_dir)
    metrics = read_json(folder / METRICS)
    costs = trainer.ledger.by_phase()
    charged = [cost for name, cost in costs.items() if name != "evaluation"]
    history = [line for line in trainer.state.log_history if "eval_loss" in line and "cost/flops" in line]
    return {
        "arm": job.arm,
        "seed": job.seed,
        "steps": job.steps,
        "metrics": _metrics(metrics),
        "flops": sum(charged, Cost()).flops,
        "prices": vars(_prices(trainer)),
        "seconds": sum(cost.seconds for cost in charged),
        "choosing": trainer.ledger.selecting().seconds,
        "tokens": costs["training"].tokens + costs["warm-up"].tokens,
        "curve": [[line["step"], line["cost/flops"], line["eval_loss"]] for line in history],
        "folder": folder.name,
    }


def _prices(trainer: CoresetMixin) -> Prices:
    """What the run's steps and measurements cost."""
    costs, rounds, schedule = trainer.ledger.by_phase(), trainer.ledger.rounds, trainer.schedule
    seen, measured = [entry.rows_measured for entry in rounds], costs["measurement"].flops or 0.0
    per_row = measured / sum(seen) if sum(seen) else 0.0
    warm, every = schedule.warmup_rounds * schedule.steps, schedule.every * schedule.steps
    known = Prices(
        once=(costs["warm-up"].flops or 0.0) + per_row * (seen[0] if seen else 0),
        step=(costs["training"].flops or 0.0) / max(1, trainer.state.global_step - warm),
        refresh=0.0,
        warm=warm,
        every=every,
    )
    refreshes = known.refreshes(trainer.state.global_step)
    if not refreshes:  # none was seen: a longer run will have some
        config, chosen = trainer.coreset_config, rounds[0].rows_chosen if rounds else 0
        rows = rows_remeasured(config.refresh, len(trainer.pool_rows.length), chosen) if every else 0.0
        return replace(known, refresh=per_row * rows)
    later = seen[1:]
    # Measurements grow rarer as a run grows older: what a longer run adds is like its second half.
    late = later[len(later) // 2 :] if len(later) == refreshes else [sum(later) / refreshes]
    return replace(known, refresh=per_row * sum(late) / len(late))


def _metrics(found: Mapping[str, Any]) -> dict[str, float]:
    """Those of the `evaluate` section, without what the trainer adds; the loss first."""
    extra = ("runtime", "per_second", "entropy", "mean_token_accuracy", "num_tokens")
    kept = {
        name.removeprefix("eval_"): float(value)
        for name, value in found.items()
        if name.startswith("eval_") and not name.endswith(extra)
    }
    return {**({"loss": kept["loss"]} if "loss" in kept else {}), **kept}

"""Does choosing rows pay on a real pretrained model? Arms at equal steps or at equal compute.

    python bench/models.py smollm2                                      # the model, once
    python bench/real.py --pool "FOLDER;characters=300;rows=2000" --steps 60 --seeds 0,1,2
    python bench/real.py --pool FOLDER --budget-epochs 0.1,0.3,1 --arms full,distinct,grace,clean

Arms are those of real_arms.py, and methods with settings, which are paths in the `coreset` section:
d2:method.d2.embedding=response_embedding;refresh.anchors=all. --steps gives all arms the same steps;
--budget-epochs the same total FLOPs, choosing counted: those of training on the whole pool for that share of
an epoch.
A pool folder holds pool.jsonl and eval.jsonl, labels.jsonl where wrong rows are known, target.jsonl for arms
with a target; further forms (parts of it, corrupted copies of a clean one) are those of pools.py.
Each finished run is a line of RESULTS/POOL-MODEL-TUNING.jsonl and is never run again; a run that was cut
begins anew. Settings are chosen on seeds 0-2 and reported on 10-14. Every arm is trained with the same
speed-ups (playground/cpu_speed.py), one thread a run, as many runs at a time as there are cores.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from command import parser_of, quiet, tell_missed
from pools import pool_and_model
from real_arms import UNTOUCHED
from real_run import Run, content_of, machine, run_one
from real_table import HEADER, Result, append_result, lines_of, markdown, missed, read_results

from coretune.comparing.arms import split_arms

RESULTS = Path("results/real")
ARMS = "untouched,random,full,distinct,clean,grace"
LEARNING_RATE = {True: 1e-3, False: 1e-4}  # LoRA, full; chosen on the arm full


def runs_of(args: argparse.Namespace, pool: Path, model: Path) -> list[Run]:
    """What is asked for, the untouched model once."""
    budgets: list[tuple[int | None, float | None]] = [(args.steps, None)]
    if args.budget_epochs:
        budgets = [(None, float(share)) for share in args.budget_epochs.split(",")]
    content = content_of(pool, model)
    rate = args.learning_rate or LEARNING_RATE[args.lora > 0]
    found = []
    for steps, epochs in budgets:
        for seed in [int(seed) for seed in args.seeds.split(",")]:
            for arm in split_arms(args.arms):
                shared = (args.lora, rate, args.budget, content)
                if arm != UNTOUCHED:
                    found.append(Run(pool.name, model.name, arm, seed, steps, epochs, *shared))
                elif not any(run.arm == arm for run in found):
                    found.append(Run(pool.name, model.name, arm, 0, None, None, 0, 0.0, "", content))
    return found


def run_all(
    runs: Sequence[Run], file: Path, finished: Callable[[Sequence[Run]], Iterator[Result]]
) -> list[Result]:
    """Every run's result in the order given; what is in the file is read, what is not is run and appended.

    finished  runs them, and yields each result as it is there
    """
    known = {result["key"]: result for result in read_results(file)}
    waiting = {run.key: run for run in runs if run.key not in known}
    file.parent.mkdir(parents=True, exist_ok=True)
    for result in finished(list(waiting.values())):
        append_result(file, {**result, "machine": machine()})
        known[result["key"]] = {**result, "machine": machine()}
        done = f"[{sum(run.key in known for run in runs)}/{len(runs)}] {result['arm']} seed {result['seed']}"
        told = f"{done}: loss {result['loss']:.3f}, {result['wall_seconds']:.0f} s"
        print(told, file=sys.stderr, flush=True)
    return [known[run.key] for run in runs]


def in_processes(
    pool: Path, model: Path, data: Path, guard: Path | None, workers: int, runs: Sequence[Run]
) -> Iterator[Result]:
    """Results as they are finished: so many runs at a time, each in a process of its own."""
    return in_workers(partial(run_one, pool=pool, model=model, data=data, guard=guard), runs, workers)


def in_workers(work: Callable[[Any], Any], jobs: Sequence[Any], workers: int) -> Iterator[Any]:
    """What the work gives of each job, as it is finished: so many at a time, each in a process of its own.

    A job that fails ends it: nobody would read what jobs after it give.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the workers when they begin
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, context, quiet, max_tasks_per_child=1) as executor:
        try:
            for future in as_completed([executor.submit(work, job) for job in jobs]):
                yield future.result()
        finally:
            executor.shutdown(cancel_futures=True)


def print_table(title: str, results: Sequence[Result]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for name in HEADER:
        table.add_column(name, justify="left" if name == "arm" else "right", no_wrap=name != "arm")
    for line in lines_of(results):
        table.add_row(*line)
    Console(width=200).print(table)


def title_of(run: Run) -> str:
    tuning = f"LoRA {run.lora}" if run.lora else "full fine-tuning"
    allowed = f"{run.steps} steps of 16" if run.epochs is None else f"the FLOPs of {run.epochs:g} epochs"
    rest = f"learning rate {run.learning_rate:g}, budget {run.budget}"
    return f"{run.pool}, {run.model}, {tuning}, {allowed}, {rest}"


def groups_of(runs: Sequence[Run], results: Sequence[Result]) -> dict[str, list[Result]]:
    """Title -> the results of one budget, the untouched model in each."""
    trained = [(run, result) for run, result in zip(runs, results, strict=True) if run.arm != UNTOUCHED]
    untouched = [result for run, result in zip(runs, results, strict=True) if run.arm == UNTOUCHED]
    found: dict[str, list[Result]] = {}
    for run, result in trained:
        found.setdefault(title_of(run), list(untouched)).append(result)
    return found or {"untouched": untouched}


def arguments() -> Any:
    parser = parser_of(__doc__)
    parser.add_argument("--pool", help="folder with pool.jsonl and eval.jsonl; see pools.py for parts of it")
    parser.add_argument("--model", help="model folder", default="runs/models/smollm2")
    parser.add_argument("--arms", default=ARMS)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument(
        "--steps", type=int, default=60, help="of 16 rows, for all arms; not with --budget-epochs"
    )
    parser.add_argument("--budget-epochs", default="", help="total FLOPs, in epochs over the pool: 0.1,0.3,1")
    parser.add_argument("--budget", default="10%", help="of the pool, for arms that choose")
    parser.add_argument("--lora", type=int, default=16, help="rank")
    parser.add_argument("--full", action="store_true", help="full fine-tuning")
    parser.add_argument("--learning-rate", type=float, help="left out: 1e-3 with LoRA, 1e-4 without")
    parser.add_argument(
        "--guard", type=Path, help="plain text (.txt, .gz) whose loss is the forgetting guard"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument(
        "--quick", action="store_true", help="the playground's pool and model, 20 steps, one seed"
    )
    parser.add_argument("--check", action="store_true", help="exit 1 unless grace meets its targets")
    args = parser.parse_args()
    args.lora = 0 if args.full else args.lora
    return args


def main() -> int:
    args = arguments()
    with tempfile.TemporaryDirectory() as folder:
        if args.quick:
            args.pool, args.model, args.seeds, args.budget_epochs, args.steps = None, None, "0", "", 20
            args.results = Path(folder) / "results"
        elif args.pool is None:
            raise SystemExit("give --pool FOLDER, or --quick")
        data = Path(folder) / "data"
        pool, model = map(Path, pool_and_model(args.pool, args.model, folder, Path(folder)))
        if not (model / "config.json").is_file():
            raise SystemExit(f"{model}: no model there; make it with python bench/models.py smollm2 {model}")
        runs = runs_of(args, pool, model)
        file = args.results / f"{pool.name}-{model.name}-{f'lora{args.lora}' if args.lora else 'full'}.jsonl"
        finished = partial(in_processes, pool, model, data, args.guard, args.workers)
        results = run_all(runs, file, finished)
    misses = []
    for title, some in groups_of(runs, results).items():
        print_table(f"{title}; {machine()}, {args.workers} at a time", some)
        if not args.quick:
            name = f"{file.stem}-{title.split(', ')[3].replace(' ', '-')}.md"
            (args.results / name).write_text(markdown(title, some), encoding="utf-8")
        misses += [f"{title}: {miss}" for miss in missed(some)] if args.check else []
    return tell_missed(misses)


if __name__ == "__main__":
    sys.exit(main())

"""Do a few trusted examples find the rows that teach the task? Targeted selection on a real pretrained model.

    python bench/models.py smollm2                                      # the model, once
    python bench/targets.py --data FOLDER --tasks gsm8k,code --examples 5 --budgets 2.5% --seeds 0,1,2
    python bench/targets.py --data FOLDER --seeds 10,11,12,13,14 --check

FOLDER holds mixed-clean, choice-clean and dialogsum, each with pool.jsonl (and eval.jsonl). The pool is their
rows of at most --characters; tasks, examples and rows to score are those of targets_pools.py.
Every arm is trained with the same total FLOPs, choosing counted: those of --epochs over the whole pool;
`full` with those of one epoch too, which is to be reached. Arms are those of real_arms.py; methods with a
target get the examples. Arms that know no target are trained once and scored on all tasks.
Each finished run is a line a task of RESULTS/POOL-MODEL-TUNING.jsonl, never run again. --check exits with
1 and names each target that is missed (targets_table.py).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from command import parser_of, quiet, tell_missed
from real import LEARNING_RATE, in_workers, print_table
from real_arms import BM25, UNTOUCHED
from real_run import Run, Unaffordable, content_of, machine, score, train, untouched
from real_table import Result, append_result, read_results
from targets_pools import TASKS, Plan, Task, data_folders, make_folders
from targets_table import groups, markdown, missed, summary, title, trained, unaffordable

from coretune.comparing.arms import split_arms

RESULTS = Path("results/targets")
FULL = "full"
TARGETED = ("gtp", "less", "rds", "loss_drop", BM25)
ROOM = ("anchors=all", "propagate=none", "repair=none", "warmup=0")
ONCE = ";".join(["refresh_every=never", *(f"refresh.{setting}" for setting in ROOM)])
NARROW = "filters=[{narrow: {times: 4}}]"
NEVER = "refresh_every=never"  # real_arms.py chooses anew after each pass where an arm says nothing
ARMS = (
    f"random,gtp:{NEVER},gtp:{NEVER};{NARROW},less:{ONCE},less:{ONCE};{NARROW},rds:{NEVER},loss_drop,{BM25}"
)
BUDGETS = "0.5%,1%,2.5%,5%,10%"


@dataclass(frozen=True)
class Job:
    """One model to train, and the tasks that it is scored on: all of them, or the one that it was chosen for.

    folders  task -> its folder; the first is trained on
    """

    run: Run
    examples: int
    folders: tuple[tuple[str, Path], ...]

    def key(self, task: str) -> str:
        return hashlib.sha256(f"{self.run.key} {task} {self.examples}".encode()).hexdigest()[:16]


def jobs_of(args: argparse.Namespace, folders: Mapping[tuple[str, int], Path], model: Path) -> list[Job]:
    seeds, budgets = [int(seed) for seed in args.seeds.split(",")], args.budgets.split(",")
    rate = args.learning_rate or LEARNING_RATE[args.lora > 0]
    first = min(count for _, count in folders)
    everything = tuple((task, folder) for (task, count), folder in folders.items() if count == first)
    pool = everything[0][1]
    whole = content_of(pool, model)

    def run(name: str, arm: str, seed: int, epochs: float, budget: str, content: str) -> Run:
        return Run(name, model.name, arm, seed, None, epochs, args.lora, rate, budget, content)

    name = pool.name.split(f"-{everything[0][0]}-")[0]
    found = [Job(Run(name, model.name, UNTOUCHED, 0, None, None, 0, 0.0, "", whole), 0, everything)]
    for seed in seeds:
        for epochs in dict.fromkeys((1.0, args.epochs)):
            found.append(Job(run(name, FULL, seed, epochs, "100%", whole), 0, everything))
        for arm in split_arms(args.arms):
            for budget in budgets:
                if arm.partition(":")[0] not in TARGETED:
                    found.append(Job(run(name, arm, seed, args.epochs, budget, whole), 0, everything))
                    continue
                for (task, count), folder in folders.items():
                    own = hashlib.sha256((folder / "target.jsonl").read_bytes()).hexdigest()[:16]
                    content = f"{content_of(folder, model)} {own}"
                    one = run(folder.name, arm, seed, args.epochs, budget, content)
                    found.append(Job(one, count, ((task, folder),)))
    return found


def run_job(job: Job, model: Path, data: Path) -> list[dict[str, Any]]:
    """Train, and score on each task: everything a table needs."""
    run, pool = job.run, job.folders[0][1]
    arm = run.arm.partition(":")[0]
    target = pool / "target.jsonl" if arm in TARGETED and arm != BM25 else None
    network, cost = None, {"flops": 0.0, "steps": 0}
    if arm == UNTOUCHED:
        network, tokenizer = untouched(model)
    else:
        try:
            (network, tokenizer), cost = train(run, pool, model, data, target)
        except Unaffordable as error:
            cost = {"choosing_flops": error.choosing, "flops": error.choosing, "epoch_flops": error.epoch}
    label = run.arm if run.arm != FULL or run.epochs == 1 else f"{FULL}, {run.epochs:g} epochs"
    budget = "" if arm in (FULL, UNTOUCHED) else run.budget
    facts = {**asdict(run), **cost, "arm": label, "budget": budget, "examples": job.examples}
    return [
        {
            **facts,
            **({"loss": None} if network is None else score(network, tokenizer, folder, None)),
            "task": task,
            "key": job.key(task),
        }
        for task, folder in job.folders
    ]


def run_all(
    jobs: Sequence[Job], file: Path, finished: Callable[[Sequence[Job]], Iterator[list[dict[str, Any]]]]
) -> list[Result]:
    """The results of every job; what is in the file is read, what is not is run and appended."""
    known = {result["key"]: result for result in read_results(file)}
    waiting = [job for job in jobs if any(job.key(task) not in known for task, _ in job.folders)]
    file.parent.mkdir(parents=True, exist_ok=True)
    for number, results in enumerate(finished(waiting), 1):
        for result in results:
            if result["key"] not in known:
                append_result(file, {**result, "machine": machine()})
                known[result["key"]] = {**result, "machine": machine()}
        print(f"[{number}/{len(waiting)}] {summary(results[0])}", file=sys.stderr, flush=True)
    return [known[job.key(task)] for job in jobs for task, _ in job.folders]


def arguments() -> Any:
    parser = parser_of(__doc__)
    parser.add_argument("--data", type=Path, help="folder of mixed-clean, choice-clean and dialogsum")
    parser.add_argument("--model", type=Path, help="model folder", default=Path("runs/models/smollm2"))
    parser.add_argument("--tasks", default=",".join(task.name for task in TASKS))
    parser.add_argument("--examples", default="5,50")
    parser.add_argument("--arms", default=ARMS, help="beside untouched and full")
    parser.add_argument("--budgets", default=BUDGETS, help="of the pool, for arms that choose")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=float, default=0.4, help="total FLOPs, in epochs over the pool")
    parser.add_argument("--rows", type=int, default=8000, help="of the pool")
    parser.add_argument("--characters", type=int, default=400, help="of a row, at most")
    parser.add_argument("--scored", type=int, default=200, help="rows of a task, at most")
    parser.add_argument("--lora", type=int, default=16, help="rank; 0 = full fine-tuning")
    parser.add_argument("--learning-rate", type=float, help="left out: 1e-3 with LoRA, 1e-4 without")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument(
        "--quick", action="store_true", help="two skills of the playground, its model, one seed"
    )
    parser.add_argument("--check", action="store_true", help="exit 1 unless all targets are met")
    return parser.parse_args()


def quick(args: argparse.Namespace, folder: Path) -> Plan:
    """What runs in under a minute; the arguments are changed in place."""
    from coretune.playground import BASE_MODEL, make_pool
    from coretune.playground.skills import SKILLS

    make_pool(0, rows=600, copies=0, wrong=0).write(folder / "playground")
    args.model, args.seeds, args.budgets, args.examples = BASE_MODEL, "0", "10%", "4"
    args.epochs, args.lora, args.learning_rate = 1.0, 0, 1e-3
    args.results, args.arms = folder / "results", f"random,less:{ONCE};{NARROW},rds:{NEVER},loss_drop"
    skills = [skill.name for skill in SKILLS[:2]]
    return Plan({folder / "playground": 10**6}, tuple(Task(name, (name,)) for name in skills), (4,), 20, 500)


def plan_of(args: argparse.Namespace) -> Plan:
    if args.data is None:
        raise SystemExit("give --data FOLDER, or --quick")
    if BM25 in split_arms(args.arms) and find_spec("bm25s") is None:
        raise SystemExit("the arm bm25 needs bm25s: pip install coretune[bench]")
    names = args.tasks.split(",")
    if unknown := sorted(set(names) - {task.name for task in TASKS}):
        raise SystemExit(f"{unknown[0]}: there are {', '.join(task.name for task in TASKS)}")
    if not (args.model / "config.json").is_file():
        raise SystemExit(
            f"{args.model}: no model there; make it with python bench/models.py smollm2 {args.model}"
        )
    tasks = tuple(task for task in TASKS if task.name in names)
    counts = tuple(int(count) for count in args.examples.split(","))
    return Plan(data_folders(args.data, args.characters), tasks, counts, args.scored, args.rows)


def main() -> int:
    args = arguments()
    with tempfile.TemporaryDirectory() as folder:
        plan = quick(args, Path(folder)) if args.quick else plan_of(args)
        folders = make_folders(plan, Path(folder) / "pools")
        jobs = jobs_of(args, folders, Path(args.model))
        tuning = f"lora{args.lora}" if args.lora else "full"
        file = args.results / f"{jobs[0].run.pool}-{args.model.name}-{tuning}.jsonl"
        work = partial(run_job, model=args.model, data=Path(folder) / "data")
        if args.quick:  # one process: what starts several takes longer than all of it
            quiet()
            results = run_all(jobs, file, partial(map, work))
        else:
            results = run_all(jobs, file, lambda some: in_workers(work, some, args.workers))
    for key, some in groups(results).items():
        print_table(f"{title(key)}; {args.epochs:g} epochs of FLOPs; {machine()}", trained(some))
        for line in unaffordable(some):
            print(line)
        if not args.quick:
            name = f"{file.stem}-{key[0]}-{key[1]}-{key[2].rstrip('%')}-{args.epochs:g}-epochs.md"
            (args.results / name).write_text(markdown(key, some), encoding="utf-8")
    misses = missed(results) if args.check else []
    return tell_missed(misses)


if __name__ == "__main__":
    sys.exit(main())

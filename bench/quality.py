"""Does it pay? Arms trained at equal steps, scored on held-out rows: mean ± standard error over seeds.

    python bench/quality.py --pool FOLDER --model FOLDER --seeds 10,11,12,13,14 \\
                            --methods full,random:refresh_every=never,random,grace

An arm is a method and its settings: `grace:refresh.anchors=all;method.grace.lambda=0.5`. Settings are paths
in the `coreset` section, and steps; what an arm does not say is --steps, --budget and --refresh-every. Three
are no methods:
    full    the whole pool, reshuffled all the time
    distinct  the same, of rows with equal prompt and response but one
    clean   rows that labels.jsonl calls clean or copy, drawn anew at every refresh: the ceiling, not a method
Methods with a warm-up run (brief, gtp) select once unless the arm says otherwise, and are trained
weighted: brief:method.brief.alpha=0, brief:weighted=false. With --target-skill all arms that take a
target get that skill's rows of target.jsonl, and rows of that skill alone are scored; without it gtp matches
the pool itself, and gtp:target=all the whole of target.jsonl.
A pool folder holds pool.jsonl and eval.jsonl; `--pool "made:wrong=0.4;copies=0;seed=1"` makes one of the
playground's kind, with those arguments of `make_pool`, and `--pool "dirty:FOLDER"` spoils a clean one: half
of its rows stay, 20 % have another row's response, 30 % are copies of 60 rows. `;characters=200` after either
folder leaves the rows of at most that length, prompt and response together. Of a pool without rows to score a
fifth of its own is held out. Finished runs are kept under
--out and never repeated; nothing else of a run is.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from bootstrap import bootstrap
from command import parser_of, quiet, tell_missed
from pools import clean_rows, distinct_rows, labels_of, of_skill, pool_and_model, target_file, whole

from coretune.comparing.arm_runs import outcomes, run_job
from coretune.comparing.arms import arm_section, split_arms
from coretune.comparing.compare import Job, mean_se
from coretune.config import check_config
from coretune.recording.run_files import RunFiles

DIRTY_TARGET = 2.0  # standard errors by which the first method must beat random, refreshed alike
CLEAN, DISTINCT = "clean", "distinct"
AUDITED = ("spearman", "coreset_share")  # of what is propagated with the truth, see `approximation.py`
PLAIN = {CLEAN: "random", DISTINCT: "full"}  # the method that draws from their rows


def job_of(arm: str, seed: int, asked: argparse.Namespace, data: Path) -> Job:
    """data: a folder for the rows that only some arms see."""
    pool = Path(asked.pool)
    method, colon, settings = arm.partition(":")
    shared = {"budget": asked.budget, "refresh_every": _number(asked.refresh_every)}
    section = arm_section(f"{PLAIN.get(method, method)}{colon}{settings}", shared)
    steps = int(section.pop("steps", asked.steps))
    target = target_file(arm, section.pop("target", None), asked, data)
    rows = {CLEAN: clean_rows, DISTINCT: distinct_rows}.get(method, whole)(pool, data)
    scored = pool / "eval.jsonl"
    if asked.target_skill:
        scored = of_skill(scored, asked.target_skill, data)
    config = check_config(
        {
            "model_name_or_path": asked.model,
            "train_data": str(rows),
            "target_data": None if target is None else str(target),
            "output_dir": str(data / "run"),
            "seed": seed,
            "skip_bad_rows": True,
            "report": "never",
            "coreset": section,
            "evaluate": {"file": str(scored), "metric": asked.metrics.split(",")},
            "training": {
                "max_steps": steps,
                "per_device_train_batch_size": asked.batch,
                "learning_rate": asked.learning_rate,
                "bf16": _gpu(),
                "gradient_checkpointing": False,
                "save_strategy": "no",
                "logging_strategy": "no",
                "disable_tqdm": True,
                "report_to": "none",
                "dataloader_pin_memory": False,
            },
        }
    )
    return Job(arm, seed, steps, config)


def score(job: Job, asked: argparse.Namespace) -> dict[str, Any]:
    """Train and score one arm on one seed, and leave nothing behind; everything a table needs."""
    quiet()
    pool = Path(asked.pool)
    with tempfile.TemporaryDirectory() as folder:
        here = job.config.model_copy(update={"output_dir": f"{folder}/run"})
        found = run_job(replace(job, config=here))
        run = RunFiles.of(here.output_dir)
        chosen, audited, audits_flops = run.chosen(run.rounds[-1]), *audits_of(run)
    wrong = None
    if (pool / "labels.jsonl").exists():
        kinds = labels_of(pool)
        wrong = float(np.mean([kinds.get(name) == "wrong" for name in chosen]))
    shown = ("pool", "model", "budget", "refresh_every", "batch", "learning_rate", "target_skill")
    told = {name: vars(asked)[name] for name in shown}
    return {
        "job": {"arm": job.arm, "seed": job.seed, "steps": job.steps, **told},
        **found["metrics"],
        "seconds": found["seconds"],
        "flops": found["flops"] - audits_flops,
        "selection_seconds": found["choosing"],
        "tokens": found["tokens"],
        "wrong": wrong,
        **audited,
    }


def audits_of(run: RunFiles) -> tuple[dict[str, float], float]:
    """Means over an arm's audits (`refresh.audit_every`), if it has any; and the FLOPs that they took."""
    told = [entry["approximation"] for entry in run.ledger["rounds"]]
    found = {name: [one[name] for one in told if one.get(name) is not None] for name in AUDITED}
    flops = run.ledger["phases"]["other"]["flops"] if any(found.values()) else 0.0
    return {name: float(np.mean(values)) for name, values in found.items() if values}, flops


def run_all(
    jobs: list[Job], out: Path, workers: int, run: Callable[[Job], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Every job's result in the order given."""
    results: dict[tuple[str, int], dict[str, Any]] = {}
    for job, result in outcomes(jobs, out, workers, run):
        named = {**result["job"], "arm": job.arm}  # two arms may be the same job in other words
        results[job.arm, job.seed] = {**result, "job": named}
        matched = f", exact match {result['exact_match']:.3f}" if "exact_match" in result else ""
        told = f"{job.arm} seed {job.seed}: loss {result['loss']:.3f}{matched}"
        print(f"[{len(results)}/{len(jobs)}] {told}", file=sys.stderr, flush=True)
    return [results[job.arm, job.seed] for job in jobs]


HEADER = (
    "arm",
    "steps",
    "held-out loss",
    "95 %",
    "exact match",
    "95 %",
    "loss − random",
    "95 %",
    "wrong rows",
    "Spearman",
    "overlap",
    "tokens",
    "seconds",
    "selecting",
    "FLOPs",
)


def print_table(results: list[dict[str, Any]], title: str) -> None:
    """95 %: bootstrap intervals of the mean to their left. loss − random: paired by seed.

    Spearman of the loss and overlap of the coreset with a full measurement: of arms with
    `refresh.audit_every`; the FLOPs of their audits do not count.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for name in HEADER:
        table.add_column(name, justify="left" if name == "arm" else "right", no_wrap=name != "arm")
    by_arm: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        by_arm.setdefault(result["job"]["arm"], []).append(result)
    for arm, rows in by_arm.items():
        costs = ("tokens", "seconds", "selection_seconds", "flops")
        mean = {name: float(np.mean([r[name] for r in rows])) for name in costs}
        wrong = [r["wrong"] for r in rows if r["wrong"] is not None]
        table.add_row(
            arm,
            f"{rows[0]['job']['steps']:,}",
            *_figure([r["loss"] for r in rows]),
            *_figure([r["exact_match"] for r in rows if "exact_match" in r]),
            *(_against(rows, by_arm["random"]) if arm != "random" and "random" in by_arm else ("", "")),
            f"{np.mean(wrong):.0%}" if wrong else "-",
            *(_mean([r[name] for r in rows if name in r]) for name in AUDITED),
            f"{mean['tokens']:,.0f}",
            f"{mean['seconds']:.0f}",
            f"{mean['selection_seconds']:.0f}",
            f"{mean['flops']:.2e}",
        )
    Console(width=200).print(table)


def _figure(values: list[float], sign: str = "") -> tuple[str, str]:
    """Mean ± standard error, and the bootstrap interval of the mean."""
    if len(values) < 2:
        return f"{values[0]:{sign}.3f}" if values else "", ""
    mean, error = mean_se(values)
    low, high = bootstrap(values)
    return f"{mean:{sign}.3f} ± {error:.3f}", f"{low:{sign}.3f} … {high:{sign}.3f}"


def _mean(values: list[float]) -> str:
    return f"{np.mean(values):.2f}" if values else ""


def _against(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> tuple[str, str]:
    """Of the differences in loss on the seeds that both have."""
    other = {r["job"]["seed"]: r["loss"] for r in theirs}
    differences = [r["loss"] - other[r["job"]["seed"]] for r in ours if r["job"]["seed"] in other]
    return _figure(differences, "+") if differences else ("", "")


def missed(results: list[dict[str, Any]], method: str) -> list[str]:
    """Targets that `method` misses against random refreshed alike: both figures, by two standard errors."""
    by_arm = {arm: [r for r in results if r["job"]["arm"] == arm] for arm in (method, "random")}
    if not all(by_arm.values()):
        return [f"the arms {method} and random are both needed for --check"]
    if min(map(len, by_arm.values())) < 2:
        return ["one seed has no standard error to judge by: --check needs two or more, and no --quick"]
    misses = []
    for name, sign in (("loss", -1.0), ("exact_match", 1.0)):
        if name not in results[0]:
            continue
        (ours, our_error), (theirs, their_error) = (
            mean_se([r[name] for r in by_arm[arm]]) for arm in (method, "random")
        )
        margin = sign * (ours - theirs) / float(np.hypot(our_error, their_error))
        if not margin > DIRTY_TARGET:
            misses.append(
                f"{name}: {ours:.3f} against {theirs:.3f}, {margin:.1f} standard errors, not {DIRTY_TARGET}"
            )
    return misses


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--pool", help="folder with pool.jsonl and eval.jsonl; left out, the playground's")
    parser.add_argument("--model", help="model folder; left out, the playground's")
    parser.add_argument("--methods", default="full,random:refresh_every=never,random,grace")
    parser.add_argument(
        "--seeds", default="10,11,12,13,14", help="settings are chosen on 0-2, reported on 10-14"
    )
    parser.add_argument("--budget", default="10%")
    parser.add_argument("--refresh-every", default="20")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--metrics", default="loss,exact_match", help="long responses: loss alone is fast")
    parser.add_argument("--target-skill", default="", help="the skill that is wanted, a `source` of the pool")
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument(
        "--quick", action="store_true", help="the playground, one seed, 40 steps: under a minute"
    )
    parser.add_argument(
        "--check", action="store_true", help="exit 1 unless grace beats random refreshed alike"
    )
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        if args.quick:
            args.seeds, args.steps, args.refresh_every, args.out = "0", 40, "10", Path(folder) / "results"
        args.pool, args.model = pool_and_model(args.pool, args.model, folder, args.out)
        arms, seeds = split_arms(args.methods), [int(seed) for seed in args.seeds.split(",")]
        jobs = [job_of(arm, seed, args, args.out / "data") for seed in seeds for arm in arms]
        results = run_all(jobs, args.out, args.workers, partial(score, asked=args))
    wanted = f", for {args.target_skill}" if args.target_skill else ""
    steps = ", ".join(f"{n:,}" for n in sorted({job.steps for job in jobs}))
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    print_table(
        results,
        f"{Path(args.pool).name}, {Path(args.model).name}: {steps} steps of {args.batch}, "
        f"learning rate {args.learning_rate:g}, budget {args.budget}, refresh every {args.refresh_every}, "
        f"seeds {args.seeds}{wanted}; {machine}, {args.workers} at a time",
    )
    misses = missed(results, next(a for a in arms if a.startswith("grace"))) if args.check else []
    return tell_missed(misses)


def _number(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def _gpu() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    sys.exit(main())

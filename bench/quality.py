"""Does it pay? Arms trained at equal steps, scored on held-out rows: mean ± standard error over seeds.

    python bench/quality.py --pool FOLDER --model FOLDER --seeds 10,11,12,13,14 \\
                            --methods full,random:refresh_every=never,random,grace

An arm is a method and its settings: `grace:anchors=all;propagate=delta`. Settings are those of the `coreset`
section; what an arm does not say is --budget and --refresh-every. Two arms are not methods:
    full    the whole pool, reshuffled all the time
    clean   rows that labels.jsonl calls clean or copy, drawn anew at every refresh: the ceiling, not a method
Methods that look through a teacher (brief, gtp) select once unless the arm says otherwise, and are trained
weighted: brief:alpha=0, brief:objective=sft, brief:weighted=false. With --target-skill all arms that take a
target get that skill's rows of target.jsonl, and rows of that skill alone are scored; without it gtp matches
the pool itself, and gtp:target=all the whole of target.jsonl.
A pool folder holds pool.jsonl and eval.jsonl. Finished runs are kept under --out and never repeated.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import platform
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import coretune
from coretune.compare import mean_se
from coretune.select import SELECTORS
from coretune.types import Taught

DIRTY_TARGET = 2.0  # standard errors by which the first method must beat random, refreshed alike


@dataclass(frozen=True)
class Job:
    """One training run: an arm on a seed."""

    arm: str
    seed: int
    pool: str
    model: str
    budget: str
    refresh_every: str
    steps: int
    batch: int
    learning_rate: float
    target_skill: str = ""

    @property
    def key(self) -> str:
        """Of the job and of the package's code: a result is never taken for that of other code."""
        return hashlib.sha256(json.dumps([asdict(self), code()], sort_keys=True).encode()).hexdigest()[:16]


@cache
def code() -> str:
    files = sorted(Path(coretune.__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def coreset_section(job: Job) -> dict[str, Any]:
    """The `coreset` section of an arm."""
    method, _, settings = job.arm.partition(":")
    section: dict[str, Any] = {"method": method, "budget": job.budget, "refresh_every": job.refresh_every}
    if isinstance(SELECTORS.get(method, object)(), Taught):
        del section["refresh_every"]
    if method == "full":
        section |= {"method": "random", "budget": "100%", "refresh_every": "never"}
    if method == "clean":
        section["method"] = "random"
    for setting in filter(None, settings.split(";")):
        name, _, value = setting.partition("=")
        section[name] = yaml.safe_load(value)
    if str(section.get("refresh_every")).isdigit():
        section["refresh_every"] = int(section["refresh_every"])
    return section


def target_file(job: Job, given: str | None, folder: str) -> str | None:
    """The target rows of an arm: a file, or None. given: "all", "none", None where the arm does not say."""
    path = Path(job.pool) / "target.jsonl"
    if given is None:
        given = "none" if job.arm.startswith("gtp") and not job.target_skill else "all"
    if given == "none" or not path.exists():
        return None
    if not job.target_skill:
        return str(path)
    rows = of_skill(path.read_text(encoding="utf-8").splitlines(), job.target_skill)
    beside = Path(folder) / "target.jsonl"
    beside.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return str(beside)


def of_skill(lines: list[str], skill: str) -> list[str]:
    """The lines whose `source` is that skill; ValueError when there is none."""
    found = [line for line in lines if json.loads(line).get("source") == skill]
    if not found:
        known = sorted({str(json.loads(line).get("source")) for line in lines})
        raise ValueError(f"no row has the skill {skill!r}; there are {', '.join(known)}")
    return found


def clean_rows(pool: Path, folder: str) -> Path:
    """The pool without the rows that labels.jsonl calls wrong."""
    labels = [json.loads(line) for line in (pool / "labels.jsonl").open(encoding="utf-8")]
    wrong = {label["id"] for label in labels if label["kind"] == "wrong"}
    path = Path(folder) / "clean.jsonl"
    rows = (pool / "pool.jsonl").read_text(encoding="utf-8").splitlines()
    path.write_text("".join(f"{r}\n" for r in rows if json.loads(r)["id"] not in wrong), encoding="utf-8")
    return path


def run_job(job: Job) -> dict[str, Any]:
    """Train and score one arm on one seed; everything a table needs."""
    import torch
    from transformers.utils import logging as transformers_logging

    from coretune.config import check_config
    from coretune.evaluate import evaluate
    from coretune.run import build_trainer

    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    pool = Path(job.pool)
    scored = (pool / "eval.jsonl").read_text(encoding="utf-8").splitlines()
    held_out = [
        json.loads(row) for row in (of_skill(scored, job.target_skill) if job.target_skill else scored)
    ]
    section = coreset_section(job)
    with tempfile.TemporaryDirectory() as folder:
        data = clean_rows(pool, folder) if job.arm.startswith("clean") else pool / "pool.jsonl"
        target = target_file(job, section.pop("target", None), folder)
        config = check_config(
            {
                "model_name_or_path": job.model,
                "train_data": str(data),
                "target_data": target,
                "output_dir": f"{folder}/run",
                "seed": job.seed,
                "skip_bad_rows": True,
                "coreset": section,
                "training": {
                    "max_steps": job.steps,
                    "per_device_train_batch_size": job.batch,
                    "learning_rate": job.learning_rate,
                    "bf16": torch.cuda.is_available(),
                    "gradient_checkpointing": False,
                    "save_strategy": "no",
                    "logging_strategy": "no",
                    "disable_tqdm": True,
                    "report_to": "none",
                    "dataloader_pin_memory": False,
                },
            }
        )
        trainer = build_trainer(config)
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
        score = evaluate(trainer.model, trainer.processing_class, held_out)
        wrong = wrong_share(pool, trainer) if (pool / "labels.jsonl").exists() else None
    costs = trainer.ledger.by_phase()
    return {
        "job": asdict(job),
        **score,
        "seconds": seconds,
        "flops": sum(cost.flops or 0.0 for cost in costs.values()),
        "selection_seconds": sum(costs[name].seconds for name in ("measurement", "graph", "selection")),
        "tokens": costs["training"].tokens + costs["warm-up"].tokens,
        "wrong": wrong,
    }


def wrong_share(pool: Path, trainer: Any) -> float:
    """Share of wrong rows in the last coreset. For the table alone: no selector sees a label."""
    labels = {r["id"]: r["kind"] for r in map(json.loads, (pool / "labels.jsonl").open(encoding="utf-8"))}
    ids = trainer.pool_rows.ids
    return float(np.mean([labels.get(ids[row]) == "wrong" for row in trainer.coreset_state.coreset.indices]))


def finished(job: Job, out: Path) -> dict[str, Any]:
    """The result of a job, from disk when it was run before."""
    path = out / f"{job.key}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    result = run_job(job)
    out.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(result), encoding="utf-8")
    os.replace(beside, path)
    return result


def _quiet() -> None:
    logging.disable(logging.WARNING)
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    import warnings

    warnings.filterwarnings("ignore")


def run_all(jobs: list[Job], out: Path, workers: int) -> list[dict[str, Any]]:
    """Every job's result in the order given; one process a core, one thread a process."""
    results: dict[str, dict[str, Any]] = {}
    with ProcessPoolExecutor(workers, initializer=_quiet) as pool:
        futures = {pool.submit(finished, job, out): job for job in jobs}
        for done, future in enumerate(futures, 1):
            job = futures[future]
            results[job.key] = result = future.result()
            print(
                f"[{done}/{len(jobs)}] {job.arm} seed {job.seed}: loss {result['loss']:.3f}, "
                f"exact match {result['exact_match']:.3f}",
                file=sys.stderr,
                flush=True,
            )
    return [results[job.key] for job in jobs]


def print_table(results: list[dict[str, Any]], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for name in (
        "arm",
        "held-out loss",
        "exact match",
        "wrong rows",
        "tokens",
        "seconds",
        "selecting",
        "FLOPs",
    ):
        table.add_column(name, justify="left" if name == "arm" else "right", no_wrap=name != "arm")
    for arm in dict.fromkeys(r["job"]["arm"] for r in results):
        rows = [r for r in results if r["job"]["arm"] == arm]
        figures = {name: mean_se([r[name] for r in rows]) for name in ("loss", "exact_match")}
        mean = {
            k: float(np.mean([r[k] for r in rows]))
            for k in ("tokens", "seconds", "selection_seconds", "flops")
        }
        wrong = [r["wrong"] for r in rows if r["wrong"] is not None]
        table.add_row(
            arm,
            "{:.3f} ± {:.3f}".format(*figures["loss"]),
            "{:.3f} ± {:.3f}".format(*figures["exact_match"]),
            f"{np.mean(wrong):.0%}" if wrong else "-",
            f"{mean['tokens']:,.0f}",
            f"{mean['seconds']:.0f}",
            f"{mean['selection_seconds']:.0f}",
            f"{mean['flops']:.2e}",
        )
    Console(width=160).print(table)


def missed(results: list[dict[str, Any]], method: str) -> list[str]:
    """Targets that `method` misses against random refreshed alike: both figures, by two standard errors."""
    by_arm = {arm: [r for r in results if r["job"]["arm"] == arm] for arm in (method, "random")}
    if not all(by_arm.values()):
        return [f"the arms {method} and random are both needed for --check"]
    misses = []
    for name, sign in (("loss", -1.0), ("exact_match", 1.0)):
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
            args.seeds, args.steps, args.refresh_every = "0", 40, "10"
        pool, model = pool_and_model(args.pool, args.model, folder)
        jobs = [
            Job(
                arm,
                int(seed),
                pool,
                model,
                args.budget,
                args.refresh_every,
                args.steps,
                args.batch,
                args.learning_rate,
                args.target_skill,
            )
            for seed in args.seeds.split(",")
            for arm in args.methods.split(",")
        ]
        out = Path(folder) / "results" if args.quick else args.out
        results = run_all(jobs, out, args.workers)
    wanted = f", for {args.target_skill}" if args.target_skill else ""
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    print_table(
        results,
        f"{Path(pool).name}, {Path(model).name}: {args.steps} steps of {args.batch}, "
        f"learning rate {args.learning_rate:g}, budget {args.budget}, refresh every {args.refresh_every}, "
        f"seeds {args.seeds}{wanted}; {machine}, {args.workers} at a time",
    )
    misses = (
        missed(results, next(a for a in args.methods.split(",") if a.startswith("grace")))
        if args.check
        else []
    )
    for miss in misses:
        print(f"missed: {miss}")
    return 1 if misses else 0


def pool_and_model(pool: str | None, model: str | None, folder: str) -> tuple[str, str]:
    from coretune.playground import BASE_MODEL, make_pool

    if pool is None:
        pool = f"{folder}/playground"
        make_pool(seed=0).write(pool)
    return pool, model or str(BASE_MODEL)


if __name__ == "__main__":
    sys.exit(main())

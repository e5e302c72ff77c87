"""`coretune demo-real`: does choosing rows pay on a real pretrained model? A quarter of an hour on a CPU.

    SmolLM2-135M (package index) + 1,200 real rows, of which 30 % are copies and 20 % wrong
        ├─ untouched   scored as it is
        ├─ full        LoRA on the whole pool: `epochs` epochs
        └─ grace       LoRA on a GRACE coreset: as many steps as the same FLOPs afford, choosing
                       included

Both arms train at the same time, a process and a thread each, with the same speed-ups (`cpu_speed.py`).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coretune.console import no_notes_of_libraries
from coretune.playground.real_pool import make_real_pool
from coretune.progress import progress

if TYPE_CHECKING:
    from coretune.training.mixin import CoresetMixin

UNTOUCHED = "untouched"
ARMS: Mapping[str, Mapping[str, Any]] = {
    "full": {"method": "random", "budget": "100%", "refresh_every": "never"},
    "grace": {"method": "grace", "budget": "10%", "refresh_every": "pass"},
}
BATCH, MICRO = 16, 4  # rows a step, and of one forward pass
CHOICES = "openbookqa"  # rows whose exact match is an accuracy
HEADER = (
    "arm",
    "held-out\nloss",
    "accuracy",
    "wrong rows\nchosen",
    "steps",
    "FLOPs",
    "seconds",
    "of them\nchoosing",
)
PARTS = 1000  # of an arm's steps, for the bar
POLL = 0.5  # seconds
_done: Any = [0] * len(
    ARMS
)  # how far each arm is, in PARTS; in a worker shared with the process that shows it


@dataclass(frozen=True)
class RealDemo:
    """What all arms share.

    folder  where the pool and the runs go
    model   model folder
    epochs  total FLOPs of each arm, in epochs of training on the whole pool
    """

    folder: Path
    model: Path
    seed: int = 0
    epochs: float = 1.0


def run_demo_real(asked: RealDemo, workers: int = 2, quiet: bool = False) -> list[tuple[str, ...]]:
    """Make the pool, train the arms; the printable table, header first. All is under `asked.folder`."""
    prepare(asked)
    context = get_context("spawn")
    done = context.Array("i", len(ARMS))
    with ProcessPoolExecutor(workers, context, _begin, (done,), max_tasks_per_child=1) as pool:
        jobs = {name: pool.submit(run_arm, asked, name) for name in [*ARMS, UNTOUCHED]}
        _show(jobs, done, quiet)
        return table_of({name: job.result() for name, job in jobs.items()})


def prepare(asked: RealDemo) -> None:
    """Write the pool. The folders of an earlier demo are replaced; nothing else there is touched."""
    for name in ("data", *ARMS):
        shutil.rmtree(asked.folder / name, ignore_errors=True)
    make_real_pool(asked.seed).write(asked.folder / "data")


def table_of(found: Mapping[str, Mapping[str, float]]) -> list[tuple[str, ...]]:
    """Printable rows under HEADER; found: arm -> its figures."""
    return [HEADER, *(_row(name, found[name]) for name in (UNTOUCHED, *ARMS))]


def _begin(done: Any) -> None:
    """In a worker: one thread, nothing on the console but errors."""
    no_notes_of_libraries()
    import torch

    from coretune import run

    global _done
    _done = done
    torch.set_num_threads(1)
    run.quiet()


def _show(jobs: Mapping[str, Future[Any]], done: Any, quiet: bool) -> None:
    """A bar over the steps of all arms, until all jobs are over."""
    with progress(PARTS * len(ARMS), "training both arms", unit="part", shown=not quiet) as bar:
        shown = 0
        while not all(job.done() for job in jobs.values()):
            time.sleep(POLL)
            now = sum(done)
            bar.update(now - shown)
            shown = now


def run_arm(asked: RealDemo, name: str) -> dict[str, Any]:
    """Train one arm, or none, and score the model."""
    if name == UNTOUCHED:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(
            asked.model, attn_implementation="eager", dtype="float32"
        )
        return _scores(model, AutoTokenizer.from_pretrained(asked.model), asked)
    trainer = _trained(asked, name)
    return {**_scores(trainer.model, trainer.processing_class, asked), **_costs(trainer, asked, name)}


def _trained(asked: RealDemo, name: str) -> Any:
    """The trainer after its run, with as many steps as the FLOPs of `epochs` epochs afford."""
    from coretune import run
    from coretune.comparing.compute import affordable_steps
    from coretune.playground.cpu_speed import sped_up

    counting = _config(asked, name, f"{name}-counted", steps=1000)
    trainer = run.build_trainer(counting)
    epoch = trainer.cost.training(np.arange(len(trainer.pool_rows.length)))
    steps = affordable_steps(trainer, counting, asked.epochs * epoch)
    if steps == 0:
        raise ValueError(f"choosing alone costs more than {asked.epochs:g} epochs of the pool: raise epochs")
    place = list(ARMS).index(name)
    passed = 0

    def on_step() -> None:
        nonlocal passed
        passed += 1
        _done[place] = PARTS * passed // steps

    del trainer
    shutil.rmtree(counting.output_dir, ignore_errors=True)
    with sped_up():
        trainer = run.train(_config(asked, name, name, steps), on_step=on_step)
    _done[place] = PARTS
    return trainer


def _scores(model: Any, tokenizer: Any, asked: RealDemo) -> dict[str, float]:
    """Mean loss of the held-out responses in nats a token; share of choice questions answered rightly."""
    import torch

    from coretune.scoring.evaluate import evaluate

    held_out = make_real_pool(asked.seed).held_out
    choices = [row for row in held_out if row["source"] == CHOICES]
    others = [row for row in held_out if row["source"] != CHOICES]
    with torch.autocast(next(model.parameters()).device.type, torch.bfloat16):
        first, second = evaluate(model, tokenizer, choices), evaluate(model, tokenizer, others)
    loss = (first["loss"] * len(choices) + second["loss"] * len(others)) / len(held_out)
    return {"loss": loss, "accuracy": first["exact_match"]}


def _costs(trainer: CoresetMixin, asked: RealDemo, name: str) -> dict[str, float]:
    """`wrong` is the mean over the selections of the share of chosen rows whose response is wrong."""
    from coretune.comparing.compute import charged_flops
    from coretune.recording.run_files import RunFiles

    labels, run = make_real_pool(asked.seed).labels, RunFiles.of(asked.folder / name)
    wrong = [np.mean([labels[row] == "wrong" for row in run.chosen(round)]) for round in run.rounds]
    costs = trainer.ledger.by_phase()
    choosing = trainer.ledger.selecting().seconds
    return {
        "wrong": float(np.mean(wrong)),
        "steps": trainer.state.global_step,
        "flops": charged_flops(trainer),
        "seconds": choosing + costs["training"].seconds + costs["warm-up"].seconds,
        "choosing": choosing,
    }


def _row(name: str, found: Mapping[str, float]) -> tuple[str, ...]:
    scores = (name, f"{found['loss']:.3f}", f"{found['accuracy']:.1%}")
    if "steps" not in found:
        return (*scores, "", "", "", "", "")
    costs = (f"{found['flops']:.2e}", f"{found['seconds']:.0f}", f"{found['choosing']:.0f}")
    return (*scores, f"{found['wrong']:.0%}", f"{found['steps']}", *costs)


def _config(asked: RealDemo, name: str, folder: str, steps: int) -> Any:
    from coretune.config import check_config

    return check_config(
        {
            "model_name_or_path": str(asked.model),
            "train_data": str(asked.folder / "data" / "pool.jsonl"),
            "output_dir": str(asked.folder / folder),
            "seed": asked.seed,
            "coreset": dict(ARMS[name]),
            "peft": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
            "training": {
                "max_steps": steps,
                "per_device_train_batch_size": MICRO,
                "gradient_accumulation_steps": BATCH // MICRO,
                "learning_rate": 1e-3,
                "bf16": True,
                "gradient_checkpointing": False,
                "model_init_kwargs": {"attn_implementation": "eager"},
                "save_strategy": "no",
                "report_to": "none",
                "dataloader_pin_memory": False,
            },
        }
    )

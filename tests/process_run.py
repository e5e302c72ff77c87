"""Tiny runs of several processes, forked from an interpreter in which nothing has run yet.

    python tests/process_run.py FOLDER     writes FOLDER/<scenario>-<rank>.json for every scenario below

Loading the libraries takes longer than all the runs, so they are loaded once; torch must not have computed
anything before a fork, so this is a process of its own and no test.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import socket
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_method import ByCheckpoints
from peft import LoraConfig
from tiny_run import coreset_config, corpus, model_folder, records, trainer, weights, write_jsonl
from trl import SFTConfig

from bench.ways import DDP, FSDP, arguments, as_devices, whole_weights
from coretune import run
from coretune.config import check_config
from coretune.select import SELECTORS
from coretune.training.identity import tensors_fingerprint
from coretune.training.refusals import can_weigh
from coretune.training.row_signals import RowSignals

FORK = multiprocessing.get_context("fork")
ROWS = 8  # a step, over all processes
SPLIT = {way.rpartition(" ")[2]: way for way in FSDP}  # by the kind of state dict
WAIT = 120  # seconds a process waits for the others, on a busy machine too


def a_trainer(folder: Path, world: int, **settings: Any) -> Any:
    """Rounds of 3 steps, anchors for fewer rows than there may be processes, weights where TRL has them."""
    config = coreset_config(
        "grace",
        warmup=0.2,
        refresh_every=3,
        anchors="priority",
        anchor_share=0.06,
        weighted=can_weigh(version("trl")),
    )
    usual = {
        "max_steps": 8,
        "per_device_train_batch_size": ROWS // world,
        "save_strategy": "steps",
        "save_steps": 4,
        "eval_dataset": corpus(12, 1).dataset,
        "learning_rate": 1e-3,
        "ddp_timeout": WAIT,
    }
    return trainer(folder, config, **{**usual, **settings})


def watched(made: Any) -> dict[str, Any]:
    """Train; what this process did, in plain values. `coresets`: round of the selection -> its rows."""
    coresets: dict[int, list[int]] = {}
    begin = made.begin_round

    def begun(step: int) -> Any:
        state = begin(step)
        if state.selections:
            coresets[state.selected_in] = state.coreset.indices.tolist()
        return state

    made.begin_round = begun
    made.train(made.args.resume_from_checkpoint)
    made.evaluate()
    costs = made.ledger.by_phase()
    return {
        "trained": made.trained,
        "coresets": coresets,
        "weights": tensors_fingerprint(weights(made)),
        "norm": float(torch.cat([value.flatten() for value in weights(made).values()]).norm()),
        "measured": [entry.rows_measured for entry in made.ledger.rounds],
        "evaluated": [costs["evaluation"].rows, costs["evaluation"].tokens],
        "tokens": costs["warm-up"].tokens + costs["training"].tokens,
        "logged": sum("coreset/round" in entry for entry in made.state.log_history),
    }


def plain(folder: Path, rank: int, world: int) -> dict[str, Any]:
    return watched(a_trainer(folder / f"run-{world}", world))


def resumed(folder: Path, rank: int, world: int) -> dict[str, Any]:
    """From step 4 of the run of two processes."""
    mine = folder / f"resumed-{world}"
    if rank == 0:
        shutil.copytree(folder / "run-2" / "checkpoint-4", mine / "checkpoint-4")
    return watched(a_trainer(mine, world, resume_from_checkpoint=str(mine / "checkpoint-4")))


def warmed(folder: Path, rank: int, world: int) -> dict[str, Any]:
    """At checkpoints of a warm-up run that all processes train, then at the live model."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(SELECTORS, "by_checkpoints", ByCheckpoints)
        alone = {"anchors": "all", "propagate": "none", "repair": "none"}
        config = coreset_config("by_checkpoints", refresh_every=3, warmup=0.5, **alone)
    return watched(
        trainer(
            folder / f"warmed-{world}",
            config,
            per_device_train_batch_size=ROWS // world,
            eval_dataset=corpus(12, 1).dataset,
            learning_rate=1e-3,
            ddp_timeout=WAIT,
            max_steps=5,
        )
    )


def told(made: Any, checkpoint: Path | None = None) -> dict[str, Any]:
    """Rows, loss and gradient norm of every step of a run with measurements between them, and its weights."""
    made.train(None if checkpoint is None else str(checkpoint))
    made.save_model()
    steps = [line for line in made.state.log_history if "grad_norm" in line]
    return {
        "trained": made.trained,
        "losses": [line["loss"] for line in steps],
        "norms": [line["grad_norm"] for line in steps],
        "weights": {name: value.flatten().tolist() for name, value in whole_weights(made.model).items()},
        "saved": sorted(path.name for path in Path(made.args.output_dir).glob("*model.safetensors")),
    }


def measured(folder: Path, adapter: bool, way: str, **settings: Any) -> Any:
    """Measured before steps 0, 2 and 4: all weights with GRACE, an adapter with a method of gradients."""
    usual = {"max_steps": 5, "save_strategy": "steps", "save_steps": 3, "logging_steps": 1, **arguments(way)}
    usual |= {"per_device_train_batch_size": 2, "ddp_timeout": WAIT, "gradient_checkpointing": False}
    if adapter:
        usual["peft_config"] = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    config = settings.pop("coreset", coreset_config("craig" if adapter else "grace"))
    return trainer(folder, config, **{**usual, **settings})


def sharing(
    way: str, adapter: bool = False, resume: bool = False
) -> Callable[[Path, int, int], dict[str, Any]]:
    """Two processes that share a model in this way; resume: from step 3."""

    def run(folder: Path, rank: int, world: int) -> dict[str, Any]:
        as_devices(way)
        name = f"{way}-{adapter}"
        made = measured(folder / (f"{name}-resumed" if resume else name), adapter, way)
        return told(made, folder / name / "checkpoint-3" if resume else None)

    return run


def warmed_in_parts(folder: Path, rank: int, world: int) -> dict[str, Any]:
    """Methods with a warm-up run, under FSDP 2."""
    as_devices(SPLIT["FULL"])
    errors = {}
    for method in ("brief", "gtp"):
        alone = {"refresh_every": "never", "anchors": "all", "propagate": "none", "repair": "none"}
        config = coreset_config(method, warmup=0.5, weighted=method == "gtp", **alone)
        try:
            measured(folder / method, False, SPLIT["FULL"], coreset=config)
        except ValueError as error:
            errors[method] = str(error)
    return {"errors": errors, "written": [path.name for path in folder.glob("brief/*")]}


def command(folder: Path, rank: int, world: int) -> dict[str, Any]:
    """What `coretune train` and `coretune select` do once their config is read."""
    data = write_jsonl(folder / f"pool-{rank}.jsonl", records(24))
    raw = {
        "model_name_or_path": str(model_folder()),
        "train_data": str(data),
        "eval_data": str(data),
        "columns": {"prompt": "prompt", "completion": "completion"},
        "coreset": {"method": "loss", "budget": "25%", "refresh_every": 1, "refresh": {"warmup": 0}},
        "training": {"max_steps": 2, "per_device_train_batch_size": 2, "bf16": False, "ddp_timeout": WAIT},
    }
    made = run.train(check_config({**raw, "output_dir": str(folder / "command")}))
    chosen = run.select(check_config({**raw, "output_dir": str(folder / "selected")}))
    return {"rounds": len(made.ledger.rounds), "selected": str(chosen)}


def strangers(folder: Path, rank: int, world: int) -> dict[str, Any]:
    """Arguments that do not join the processes, as where use_cpu is not set."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(SFTConfig, "world_size", property(lambda _: 1))
        try:
            a_trainer(folder / "strangers", world)
        except ValueError as error:
            return {"error": str(error)}
    return {"error": None}


def failing(how: Callable[[], None]) -> Callable[[Path, int, int], dict[str, Any]]:
    """Process 1 does `how` in the first measurement of the pool."""

    def run(folder: Path, rank: int, world: int) -> dict[str, Any]:
        made = a_trainer(folder / "failing", world, save_strategy="no")
        if rank == 1:
            RowSignals.measurer = lambda *_: how()  # type: ignore[assignment,method-assign,return-value]
        try:
            made.train()
        except RuntimeError as error:
            return {"error": f"{type(error).__name__}: {error}"}
        return {"error": None}

    return run


def dies() -> None:
    os._exit(9)


def raises() -> None:
    raise ValueError("no such layer")


SCENARIOS: dict[str, tuple[Callable[[Path, int, int], dict[str, Any]], int]] = {
    "one": (plain, 1),
    "two": (plain, 2),
    "four": (plain, 4),
    "resumed by four": (resumed, 4),
    "resumed by one": (resumed, 1),
    "warm-up, one": (warmed, 1),
    "warm-up, two": (warmed, 2),
    "DDP": (sharing(DDP), 2),
    "DDP, adapter": (sharing(DDP, adapter=True), 2),
    **{f"{kind}": (sharing(way), 2) for kind, way in SPLIT.items()},
    **{f"{kind} resumed": (sharing(way, resume=True), 2) for kind, way in SPLIT.items()},
    **{f"{kind}, adapter": (sharing(way, adapter=True), 2) for kind, way in SPLIT.items()},
    "SHARDED, adapter resumed": (sharing(SPLIT["SHARDED"], adapter=True, resume=True), 2),
    "warm-up, split": (warmed_in_parts, 2),
    "command": (command, 2),
    "strangers": (strangers, 2),
    "dies": (failing(dies), 2),
    "raises": (failing(raises), 2),
}


def process(scenario: str, folder: Path, rank: int, world: int, port: int) -> None:
    if world > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    torch.set_num_threads(1)
    found = SCENARIOS[scenario][0](folder, rank, world)
    (folder / f"{scenario}-{rank}.json").write_text(json.dumps(found), encoding="utf-8")


def main(folder: Path) -> None:
    for scenario, (_, world) in SCENARIOS.items():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        processes = [
            FORK.Process(target=process, args=(scenario, folder, rank, world, port)) for rank in range(world)
        ]
        for one in processes:
            one.start()
        for one in processes:
            one.join(2 * WAIT)
            one.kill()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

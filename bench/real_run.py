"""One run of bench/real.py: train one arm with one seed, score the model, and say what it cost."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from pools import labels_of, read_rows
from real_arms import UNTOUCHED, rows_of, section_of, target_of

BATCH, MICRO = 16, 4  # rows a step, and of one forward pass
LONGEST = 1024  # tokens of a row, SFTConfig's default
OFF = 0.05  # of the FLOPs asked for: a run that is further from them is made again with other steps
LORA = {"lora_alpha": 32, "target_modules": "all-linear"}
GUARD_CHUNKS, GUARD_TOKENS = 64, 128  # of plain text whose loss is the forgetting guard


@dataclass(frozen=True)
class Run:
    """What decides a run; every field is part of its key.

    steps   optimiser steps; None: as many as `epochs` affords
    epochs  total FLOPs allowed, in epochs of training on the whole pool; None: `steps` decides
    lora    rank; 0 = full fine-tuning
    """

    pool: str
    model: str
    arm: str
    seed: int
    steps: int | None
    epochs: float | None
    lora: int
    learning_rate: float
    budget: str
    content: str  # fingerprint of the pool's files and the model's config

    @property
    def key(self) -> str:
        settings = {} if self.arm == UNTOUCHED else _spelled_out(self)
        return hashlib.sha256(json.dumps([asdict(self), settings], sort_keys=True).encode()).hexdigest()[:16]


def _spelled_out(run: Run) -> Mapping[str, Any]:
    """All settings of the coreset with their values: a default that changes makes another run. None where
    nothing is measured: what the arm's name says is all that counts."""
    from coretune.coreset_section import build_coreset, spelled_out

    section = section_of(run.arm, run.budget)
    made = build_coreset(section, run.seed)
    return spelled_out(made, section) if made.needs else {}


class Unaffordable(SystemExit):
    """Choosing alone costs more than a run may. choosing: its FLOPs; epoch: those of the whole pool once."""

    def __init__(self, arm: str, allowed: float, trainer: Any, config: Any, epoch: float) -> None:
        from coretune.planning.workload import counted

        super().__init__(f"{arm}: choosing alone costs more than the {allowed:.2e} FLOPs allowed")
        trainer.args.max_steps = 1  # one selection
        phases = counted(trainer, config)["phases"]
        self.choosing = sum(phases[name]["flops"] or 0.0 for name in ("warm-up", "measurement"))
        self.epoch = epoch


def content_of(pool: Path, model: Path) -> str:
    """Of what the pool's files hold, and of the model's configuration."""
    found = hashlib.sha256()
    for file in (pool / "pool.jsonl", pool / "eval.jsonl", model / "config.json"):
        found.update(file.read_bytes())
    return found.hexdigest()[:16]


def run_one(run: Run, pool: Path, model: Path, data: Path, guard: Path | None) -> dict[str, Any]:
    """Train and score; everything a table needs. Nothing is left on disk but files of rows in `data`."""
    began = time.perf_counter()
    if run.arm == UNTOUCHED:
        trained, cost = untouched(model), {"flops": 0.0, "steps": 0}
    else:
        target = target_of(run.arm, pool)
        trained, cost = train(run, pool, model, data, target)
        over = cost["flops"] / (run.epochs * cost["epoch_flops"]) if run.epochs else 1.0
        if abs(over - 1.0) > OFF:  # what a refresh measures depends on what it finds: once more, corrected
            trained, cost = train(run, pool, model, data, target, round(cost["steps"] / over))
    network, tokenizer = trained
    scores = score(network, tokenizer, pool, guard)
    return {**asdict(run), "key": run.key, **scores, **cost, "wall_seconds": time.perf_counter() - began}


def untouched(model: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = AutoModelForCausalLM.from_pretrained(model, dtype="float32", attn_implementation="eager")
    return network, AutoTokenizer.from_pretrained(model)


def train(
    run: Run, pool: Path, model: Path, data: Path, target: Path | None, steps: int | None = None
) -> tuple[tuple[Any, Any], dict[str, Any]]:
    """The trained model with its tokenizer, and what it cost.

    steps  of an arm with a budget of FLOPs; None: as many as are predicted to cost that
    """
    from transformers import TrainerCallback

    from coretune import run as coretune_run
    from coretune.comparing.compute import UNCHARGED, affordable_steps
    from coretune.config import check_config
    from coretune.playground.cpu_speed import sped_up

    share = float(run.budget.rstrip("%")) / 100
    rows = rows_of(run.arm, pool, data, share, run.seed)
    with TemporaryDirectory() as folder, redirect_stdout(None), sped_up():
        config = check_config(_config(run, model, rows, folder, target))
        seen: list[np.ndarray] = []

        class Seen(TrainerCallback):
            """The rows of each step."""

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                at = (state.global_step - 1) % trainer.schedule.steps * trainer.schedule.batch
                seen.append(trainer._order.of(at, at + trainer.schedule.batch))

        trainer = coretune_run.build_trainer(config, callbacks=[Seen()])
        if run.epochs is not None:
            allowed = run.epochs * epoch_flops(trainer, pool)
            trainer.args.max_steps = steps or affordable_steps(trainer, config, allowed)
            if trainer.args.max_steps == 0:
                raise Unaffordable(run.arm, allowed, trainer, config, epoch_flops(trainer, pool))
        trainer.train()
        costs = trainer.ledger.by_phase()
        charged = {name: cost for name, cost in costs.items() if name not in UNCHARGED}
        aside = trainer.signals.warmup is not None or trainer.signals.target_warmups is not None
        choosing = ("measurement", "graph", "selection", *(["warm-up"] if aside else []))
        ids = [trainer.pool_rows.ids[row] for row in np.concatenate(seen)]
        found = {
            "steps": trainer.state.global_step,
            "flops": sum(cost.flops or 0.0 for cost in charged.values()),
            "choosing_flops": sum(charged[name].flops or 0.0 for name in choosing),
            "epoch_flops": epoch_flops(trainer, pool),
            "seconds": sum(cost.seconds for cost in charged.values()),
            "choosing_seconds": sum(charged[n].seconds for n in ("measurement", "graph", "selection")),
            "tokens": charged["training"].tokens + charged["warm-up"].tokens,
            "rows_distinct": len(set(ids)),
            "wrong": wrong_share(ids, pool),
            "sources": source_shares(ids, pool),
        }
        return (trainer.model, trainer.processing_class), found


def _config(run: Run, model: Path, rows: Path, folder: str, target: Path | None) -> dict[str, Any]:
    return {
        "model_name_or_path": str(model),
        "train_data": str(rows),
        "target_data": None if target is None else str(target),
        "output_dir": f"{folder}/run",
        "seed": run.seed,
        "skip_bad_rows": True,
        "report": "never",
        "coreset": section_of(run.arm, run.budget),
        "peft": {"r": run.lora, **LORA} if run.lora else None,
        "training": {
            "max_steps": run.steps or 10,
            "per_device_train_batch_size": MICRO,
            "gradient_accumulation_steps": BATCH // MICRO,
            "learning_rate": run.learning_rate,
            "bf16": True,
            "gradient_checkpointing": False,
            "model_init_kwargs": {"attn_implementation": "eager"},
            "save_strategy": "no",
            "logging_strategy": "no",
            "disable_tqdm": True,
            "report_to": "none",
            "dataloader_pin_memory": False,
        },
    }


def epoch_flops(trainer: Any, pool: Path) -> float:
    """Of training once on every row of the whole pool, whatever rows the arm may train on."""
    from coretune.ledger import training_flops

    cost = trainer.cost
    lengths = np.array([len(ids) for ids, _ in encoded(trainer.processing_class, pool / "pool.jsonl")])
    return float(training_flops(cost.shape, lengths, adapter_parameters=cost.adapter_parameters))


def wrong_share(ids: list[str], pool: Path) -> float | None:
    """Of the rows trained on, each as often as it was; None where nobody knows."""
    if not (pool / "labels.jsonl").is_file():
        return None
    kinds = labels_of(pool)
    return float(np.mean([kinds.get(name) == "wrong" for name in ids]))


def source_shares(ids: list[str], pool: Path) -> dict[str, float]:
    """Source -> its share of the rows trained on, each as often as it was."""
    rows = (json.loads(line) for line in read_rows(pool / "pool.jsonl"))
    sources = {str(row["id"]): str(row.get("source")) for row in rows if "id" in row}
    counts = Counter(sources.get(name, "None") for name in ids)
    return {source: count / len(ids) for source, count in counts.most_common()}


def score(network: Any, tokenizer: Any, pool: Path, guard: Path | None) -> dict[str, float]:
    """Held-out loss in nats a response token, exact match, and the guard's loss in nats a token."""
    import torch

    from coretune.scoring.evaluate import evaluate_rows

    device = next(network.parameters()).device.type
    with torch.autocast(device, torch.bfloat16):
        found = evaluate_rows(network, tokenizer, encoded(tokenizer, pool / "eval.jsonl"))
        if guard is not None:
            rows = [(ids, 1) for ids in _chunks(tokenizer, guard)]
            found["guard"] = evaluate_rows(network, tokenizer, rows)["loss"]
    return found


def encoded(tokenizer: Any, file: Path) -> list[tuple[list[int], int]]:
    """Token ids of a file's rows, as training sees them, and how many of them are the prompt's."""
    from coretune.scoring.evaluate import encode

    records = [json.loads(line) for line in read_rows(file)]
    return encode(
        tokenizer, [{name: row[name] for name in ("prompt", "completion")} for row in records], LONGEST
    )


def _chunks(tokenizer: Any, text: Path) -> list[list[int]]:
    """The first pieces of a plain text, of equal length."""
    opened = gzip.open if text.suffix == ".gz" else open
    with opened(text, "rt", encoding="utf-8") as file:
        ids = tokenizer(file.read(GUARD_CHUNKS * GUARD_TOKENS * 8), add_special_tokens=False)["input_ids"]
    pieces = [ids[at : at + GUARD_TOKENS] for at in range(0, len(ids), GUARD_TOKENS)][:GUARD_CHUNKS]
    return [piece for piece in pieces if len(piece) == GUARD_TOKENS]


def machine() -> str:
    import platform

    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return f"{device}, {os.cpu_count()} cores"

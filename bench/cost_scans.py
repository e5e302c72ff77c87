"""The part of bench/cost.py about measurements: a row's signals, in training steps of that row.

The rows are SAMPLE of like length at each of three places of the pool, as the batches of a scan of the whole
pool have them. Padding is counted on the pool's own lengths, in the blocks that a scan takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import cost_peer
import numpy as np
from cost_row import TUNINGS, Asked, Figure, section
from transformers import PrinterCallback, TrainerCallback

from coretune.measure.batches import pack
from coretune.measure.settings import MeasureSettings
from coretune.storing.store import BLOCK
from coretune.types import EMPTY_PROMPT_LOSS, Array, Rows

SAMPLE, STEP = 16, 16  # rows of like length; rows of a step
LOOK = ("loss", "response_embedding", "prompt_embedding")
#: (what, signals, tuning, goal, blocks, projection_dim)
SCANS: tuple[tuple[str, tuple[str, ...], str, float, int | None, int], ...] = (
    ("loss and two embeddings", LOOK, "full", 0.33, 2, 512),
    ("loss and two embeddings", LOOK, "LoRA", 0.45, 2, 512),
    ("the same with contrast", (*LOOK, EMPTY_PROMPT_LOSS), "full", 0.55, 2, 512),
    ("the same with contrast", (*LOOK, EMPTY_PROMPT_LOSS), "LoRA", 0.70, 2, 512),
    ("gradient norm, 2 last blocks", ("gradient_norm",), "full", 0.45, 2, 512),
    ("gradients to 1,024, all blocks", ("gradient",), "LoRA", 0.75, None, 1024),
)
PADDING_GOAL = 0.05
PEER = "gradients, 256 numbers a matrix, LoRA"


class Prompts:
    """Rows without their responses."""

    def __init__(self, rows: Any) -> None:
        self.rows, self.prompt_length = rows, rows.prompt_length

    def tokens(self, rows: Rows) -> list[Array]:
        ends = self.prompt_length[rows]
        return [ids[:end] for ids, end in zip(self.rows.tokens(rows), ends, strict=True)]

    def labels(self, rows: Rows) -> list[Array]:
        ends = self.prompt_length[rows]
        return [ids[:end] for ids, end in zip(self.rows.labels(rows), ends, strict=True)]


@dataclass
class StepTime(TrainerCallback):
    began: float = 0.0
    last: float = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.last = time.process_time() - self.began


@dataclass
class Bench:
    """One tuning of the model under the stock trainer, and the rows that are trained on and measured."""

    trainer: Any
    timer: StepTime
    corpus: Any
    rows: Rows
    special: dict[str, int]
    best: dict[str, float] = field(default_factory=dict)

    def step(self) -> float:
        """Seconds a row of the last of two steps: the first makes the optimiser's state."""
        self.trainer.train()
        return self.timer.last / STEP

    def signals(self, corpus: Any, names: tuple[str, ...], blocks: int | None, dim: int) -> float:
        from coretune.measure.signals import measurer

        settings = MeasureSettings(last_blocks=blocks, projection_dim=dim, autocast="bfloat16")
        measure = measurer(self.trainer.model, corpus, names, settings, **self.special)
        measure(self.rows[:1])  # what a model does behind its head is checked once
        began = time.process_time()
        measure(self.rows)
        return (time.process_time() - began) / len(self.rows)

    def peer(self) -> float:
        """A peer's gradients of the same rows, in the batches that ours would have."""
        batches = pack(self.corpus.length[self.rows], MeasureSettings().batch_tokens)
        tokens, labels = self.corpus.tokens(self.rows), self.corpus.labels(self.rows)
        return cost_peer.seconds(self.trainer.model, tokens, labels, batches)


def bench_of(asked: Asked, tuning: str) -> Bench:
    from trl import SFTTrainer

    from coretune import run
    from coretune.config import check_config
    from coretune.training.corpora import pool_of
    from coretune.training.row_signals import first_token
    from coretune.training.sections import adapter_config, training_arguments
    from coretune.training.tokenizers import longest_row, row_tokenizer

    file, out = asked.pool / "pool.jsonl", asked.home / f"scans-{tuning}"
    config = check_config(
        section(asked, tuning == "LoRA", file, out, {"method": "grace", "budget": "10%"}, max_steps=2)
    )
    args = training_arguments(config)
    tokenizer = run.load_tokenizer(config.model_name_or_path, args)
    corpus, _ = pool_of(config, row_tokenizer(tokenizer, args), longest_row(config.model_name_or_path, args))
    order = np.argsort(corpus.length, kind="stable")
    size = 4 if asked.quick else SAMPLE
    middles = [len(order) * sixths // 6 for sixths in (1, 3, 5)]
    rows = np.concatenate([order[middle - size // 2 : middle + size // 2] for middle in middles])
    shown = np.random.default_rng(0).permutation(np.resize(rows[:: max(1, len(rows) // STEP)], 2 * STEP))
    timer = StepTime()
    trainer = SFTTrainer(
        config.model_name_or_path,
        args,
        train_dataset=corpus.dataset.select(shown),
        processing_class=tokenizer,
        peft_config=adapter_config(config),
        callbacks=[timer],
    )
    trainer.remove_callback(PrinterCallback)
    special = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": first_token(tokenizer)}
    return Bench(trainer, timer, corpus, rows, special)


def arms_of(bench: Bench, tuning: str) -> dict[str, Callable[[], float]]:
    from coretune.playground.cpu_speed import sped_up

    def labelled_alone() -> float:
        with sped_up():
            return bench.step()

    arms: dict[str, Callable[[], float]] = {
        "step": bench.step,
        "step, labelled": labelled_alone,
        "floor": lambda: bench.signals(Prompts(bench.corpus), ("prompt_embedding",), 2, 512),
    }
    for what, names, of, _, blocks, dim in SCANS:
        if of == tuning:
            arms[what] = lambda names=names, blocks=blocks, dim=dim: bench.signals(
                bench.corpus, names, blocks, dim
            )
    if tuning == "LoRA" and cost_peer.installed():
        arms[PEER] = bench.peer
    return arms


def figures(asked: Asked) -> list[Figure]:
    benches = {tuning: bench_of(asked, tuning) for tuning in TUNINGS}
    arms = {tuning: arms_of(bench, tuning) for tuning, bench in benches.items()}
    for _ in range(1 if asked.quick else 2):  # by turns; the quickest counts
        for tuning, bench in benches.items():
            for name, arm in arms[tuning].items():
                bench.best[name] = min(bench.best.get(name, np.inf), arm())
    found = []
    for what, _, tuning, goal, _, _ in SCANS:
        best, full = benches[tuning].best, benches["full"].best
        unit = full["step"] if what.startswith("gradients") else best["step"]
        labelled = best[what] / best["step, labelled"]
        of = f"{1e3 * best[what]:.0f} ms; of a step by labelled positions {labelled:.2f}"
        if unit is not best["step"]:
            of += f"; in full steps, of a LoRA step {best[what] / best['step']:.2f}"
        found.append(Figure(f"{what}, {tuning}", best[what] / unit, goal, measured=of))
    if PEER in benches["LoRA"].best:
        took, ours = benches["LoRA"].best[PEER], benches["LoRA"].best["gradients to 1,024, all blocks"]
        of = f"{1e3 * took:.0f} ms; {took / ours:.2f} times ours"
        found.append(
            Figure(f"{PEER}, {cost_peer.installed()}", took / benches["full"].best["step"], measured=of)
        )
    for tuning, bench in benches.items():
        of = f"a step's row takes {1e3 * bench.best['step']:.0f} ms"
        share = bench.best["floor"] / bench.best["step"]
        found.append(Figure(f"floor: forward over prompts, no head, {tuning}", share, measured=of))
    return [*found, padding(benches["full"].corpus.length)]


def padding(length: Array) -> Figure:
    """Share of the tokens that a scan of the whole pool computes."""
    budget, padded = MeasureSettings().batch_tokens, 0
    for begin in range(0, len(length), BLOCK):
        block = length[begin : begin + BLOCK]
        padded += sum(int(block[where].max()) * len(where) for where in pack(block, budget))
    share = 1 - length.sum() / padded
    return Figure("padding in scans", float(share), PADDING_GOAL, "%", f"{len(length):,} rows")

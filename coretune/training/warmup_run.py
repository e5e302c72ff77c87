"""The warm-up run of a method that measures at its checkpoints: a short stock run on random rows.

    RUN/_coretune/warmup/checkpoint-N/   as transformers writes them, optimizer.pt included, with checksums
    RUN/_coretune/warmup/warmup.json     what it is of, and whether it is finished

[paper: LESS and BRIEF] one epoch on a random share of the pool. It is trained by the stock trainer with the
run's own arguments, in the model itself; then the model is put back bit for bit, so that the training after
it is the same whether the warm-up run was made just before or found.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, set_seed

from coretune.files import read_json, write_json
from coretune.ledger import Ledger
from coretune.measure.snapshots import find_snapshots
from coretune.progress import progress
from coretune.rounds.coreset_config import CoresetConfig
from coretune.rounds.sampler import PoolRows
from coretune.storing.fingerprint import differences
from coretune.training.checkpoints import why_not_whole
from coretune.training.compared_arguments import decisive, described
from coretune.training.identity import config_settings, drawn_fingerprint, model_parts, versions
from coretune.training.model_cost import ModelCost
from coretune.training.processes import Processes
from coretune.training.verified_checkpoints import VerifiedCheckpoints
from coretune.types import Rows

RECORD = "warmup.json"
log = logging.getLogger("coretune")


@dataclass(frozen=True)
class WarmupPlan:
    """What the warm-up run is trained on.

    rows   random pool rows in the order drawn, or a target's examples as often as they are trained on
    marks  optimiser steps after which it is kept, rising, evenly spaced; the last is the end of its one epoch
    """

    rows: Rows
    marks: tuple[int, ...]

    @classmethod
    def of(cls, config: CoresetConfig, n: int, batch: int, checkpoints: int) -> WarmupPlan:
        """n rows in the pool, `batch` of them a step. ValueError for fewer steps than checkpoints."""
        drawn = np.random.default_rng([config.seed, 0, 2]).permutation(n)[
            : math.ceil(config.warmup_share * n)
        ]
        steps = math.ceil(len(drawn) / batch)
        if steps < checkpoints:
            raise ValueError(
                f"{checkpoints} checkpoints of a warm-up run are asked for, and one on {len(drawn)} rows "
                f"takes {steps} steps: raise coreset.refresh.warmup, or ask the method for fewer checkpoints"
            )
        marks = tuple(steps * (k + 1) // checkpoints for k in range(checkpoints))
        return cls(drawn.astype(np.int64), marks)

    @classmethod
    def of_target(cls, examples: int, batch: int, epochs: int) -> WarmupPlan:
        """So many passes over all examples of a target, kept at their end."""
        rows = np.tile(np.arange(examples, dtype=np.int64), epochs)
        return cls(rows, (math.ceil(len(rows) / batch),))


@dataclass(frozen=True)
class Setup:
    """What a trainer was made of: all that measuring its pool, and a warm-up run for it, take of it.

    stock     the class of the stock trainer
    dataset   the pool as that trainer takes it, row i of it `rows`' row i
    settings  its arguments beside model, args, train_dataset, processing_class and callbacks
    split     FSDP or DeepSpeed holds the model in parts
    """

    stock: type
    model: nn.Module
    args: Any
    dataset: Any
    rows: PoolRows
    tokenizer: Any
    settings: Mapping[str, Any]
    split: bool


def refuse_warmup_run(split: bool, own_optimizer: bool) -> None:
    """ValueError for a trainer whose model cannot take the weights of checkpoints, or make a warm-up run.

    split          FSDP or DeepSpeed holds the model in parts
    own_optimizer  a warm-up run is to be made, and the optimizer was made already
    """
    if split:
        raise ValueError(
            "a method with a warm-up run puts its weights into the whole model, and FSDP and "
            "DeepSpeed split it: select without them (coretune select), and train on coreset.jsonl"
        )
    if own_optimizer:
        raise ValueError(
            "checkpoints_from is warmup, which needs an optimizer of its own: give optimizer_cls_and_kwargs "
            "instead of optimizers, or a folder of checkpoints as `checkpoints_from` of the method"
        )


def warmup_checkpoints(
    setup: Setup, plan: WarmupPlan, folder: Path, ledger: Ledger, cost: ModelCost, processes: Processes
) -> list[Path]:
    """The checkpoint folders, one a mark: found in `folder`, gone on with, or made. Called by all.

    Booked as warm-up: rows, tokens and FLOPs also where it is found, since the coreset rests on them; seconds
    are those spent here. ValueError when the folder holds a run of something else, naming what differs.
    """
    args = _arguments(setup.args, folder, plan)
    lengths = setup.rows.length[plan.rows]
    tokens, flops = int(lengths.sum()), cost.training_of(lengths)
    with ledger.phase("warm-up", rows=len(plan.rows), tokens=tokens, flops=flops):
        finished, newest = processes.decide(lambda: _begin(setup, args, plan, folder), lambda begun: begun)
        if not finished:
            with restored(setup.model):
                _train(setup, args, plan, newest)
            processes.wait()
            if processes.first:
                write_json(folder / RECORD, {**_read(folder), "finished": True}, indent=2)
            processes.wait()
    return find_snapshots(folder, len(plan.marks))


def _begin(setup: Setup, args: Any, plan: WarmupPlan, folder: Path) -> tuple[bool, Path | None]:
    """Whether the warm-up run is there, and else what to go on from."""
    parts, found = _parts(setup, args, plan), _read(folder)
    if found and (different := differences(found["parts"], parts)):
        raise ValueError(
            f"{folder} holds a warm-up run of something else: {'; '.join(different)}. Remove it or take "
            "another output_dir; to measure at its checkpoints, give it as `checkpoints_from` of the method"
        )
    newest = _newest(folder, plan.marks) if found else None
    if found and found["finished"] and newest is not None and newest.name == _name(plan.marks[-1]):
        log.warning("the warm-up run in %s is of this model, rows and settings: it is used again", folder)
        return True, None
    write_json(folder / RECORD, {"finished": False, "parts": parts}, indent=2)
    return False, newest


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Inside, the model may be trained; afterwards it is what it was: weights and buffers bit for bit, and
    whatever trainers hang on its modules (wrapped forwards, marks of having been prepared) is gone.
    """
    kept = {name: tensor.detach().to("cpu", copy=True) for name, tensor in _changing(model).items()}
    hung = [(module, dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes in hung:
            vars(module).clear()
            vars(module).update(attributes)
        with torch.no_grad():
            for name, tensor in _changing(model).items():
                tensor.copy_(kept[name])
        model.zero_grad(set_to_none=True)


def _changing(model: nn.Module) -> dict[str, torch.Tensor]:
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return {**trainable, **dict(model.named_buffers())}


def _arguments(given: Any, folder: Path, plan: WarmupPlan) -> Any:
    """The run's arguments for one epoch on these rows, which is saved at its marks and reported nowhere.

    [choice] The schedule is the run's own on the length of the warm-up run: the learning rate rises over
    the same share of the steps.
    """
    steps = plan.marks[-1]
    args = copy.copy(given)
    args.warmup_steps = given.get_warmup_steps(given.max_steps) / given.max_steps
    args.output_dir, args.max_steps, args.num_train_epochs = str(folder), steps, 1
    args.eval_strategy, args.eval_on_start, args.save_strategy = "no", False, "no"
    args.load_best_model_at_end = args.push_to_hub = args.save_only_model = False
    args.save_total_limit, args.report_to, args.dataloader_drop_last = None, [], False
    args.logging_strategy, args.logging_steps = "steps", 1  # the learning rate of every step is kept so
    args.ignore_data_skip = False
    return args


def _parts(setup: Setup, args: Any, plan: WarmupPlan) -> dict[str, str]:
    """All that decides what the warm-up run learns, as text by name."""
    return {
        **model_parts(setup.model, setup.tokenizer),
        **config_settings(setup.model),
        "rows": drawn_fingerprint(setup.rows, plan.rows),
        "marks": " ".join(map(str, plan.marks)),
        "trainer": setup.stock.__qualname__,
        "device": f"{args.device.type} × {args.world_size}",
        **{name: described(value) for name, value in setup.settings.items()},
        **decisive(args),
        **versions(),
    }


def _train(setup: Setup, args: Any, plan: WarmupPlan, resume: Path | None) -> None:
    set_seed(args.seed)
    bar = _SavesAtMarks(plan.marks, args.disable_tqdm or not args.should_log)
    # In memory only: what the warm-up run is of (`_parts`) says the stock class.
    trainer = type("WarmupTrainer", (VerifiedCheckpoints, setup.stock), {})(
        model=setup.model,
        args=args,
        train_dataset=setup.dataset.select(plan.rows),
        processing_class=setup.tokenizer,
        callbacks=[bar],
        **setup.settings,
    )
    for shown in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(shown)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    trainer.accelerator.free_memory()


class _SavesAtMarks(TrainerCallback):
    """Saves at the marks; a bar of the steps."""

    def __init__(self, marks: Sequence[int], hidden: bool) -> None:
        self.marks = frozenset(marks)
        self.bar = progress(max(marks), "warm-up run", "step", shown=not hidden)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.update(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.update()
        control.should_save = state.global_step in self.marks

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.close()


def _newest(folder: Path, marks: Sequence[int]) -> Path | None:
    """The last checkpoint that is whole with all before it; what comes after it is made again."""
    newest = None
    for path in (folder / _name(mark) for mark in marks):
        if (reason := why_not_whole(path)) is not None:
            if path.is_dir():
                log.warning("%s is not whole and is made again: %s", path, reason)
            break
        newest = path
    return newest


def _name(mark: int) -> str:
    return f"checkpoint-{mark}"


def _read(folder: Path) -> dict[str, Any]:
    """The record; empty where there is none."""
    if not (folder / RECORD).is_file():
        return {}
    record: dict[str, Any] = read_json(folder / RECORD, f"remove {folder}, and the warm-up is trained again")
    return record

"""Going on from a checkpoint: what is put into one, which one is taken, whether it is of this very run.

train ─► begin: what is this run of? ─► resumed: is a checkpoint of it? ─► state, ledger, schedule
  └────► save ─► stock checkpoint, with our record (verified_checkpoints.py)
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coretune.ledger import Ledger
from coretune.rounds import state, transitions
from coretune.rounds.sampler import PoolRows
from coretune.rounds.schedule import Schedule
from coretune.rounds.state import State
from coretune.rounds.targets import Target
from coretune.training.checkpoints import (
    STOCK_LAST,
    CheckpointRecord,
    changes,
    newest_whole,
    read_record,
    refuse_another_run,
    settings_of,
    whole_record,
)
from coretune.training.compared_arguments import compared
from coretune.training.identity import (
    adapter_fingerprint,
    config_settings,
    rows_fingerprint,
    sources_fingerprint,
    tensors_fingerprint,
    tokenizer_fingerprint,
    versions,
    weights_fingerprint,
)
from coretune.training.processes import Processes
from coretune.training.run_folder import refuse_foreign, refuse_to_begin_anew, remove_checkpoint

if TYPE_CHECKING:
    from coretune.training.mixin import CoresetMixin

LEDGER = "coretune_ledger.json"  # beside the weights in every checkpoint
log = logging.getLogger("coretune")


@dataclass(frozen=True)
class Resumed:
    """What a checkpoint gives to the run that goes on.

    max_steps  of the whole run; None: as the run that goes on has it
    """

    folder: str
    state: State
    ledger: Ledger
    schedule: Schedule
    max_steps: int | None


class Resumption:
    """What a run puts into its checkpoints beside the stock trainer's files, and takes from one.

    Made once for a trainer (`mixin.py`); every process has one, and process 0 writes.
    """

    def __init__(self, trainer: CoresetMixin) -> None:
        self.trainer = trainer
        self.record: CheckpointRecord | None = None  # on process 0, once training begins

    def begin(self, asked: str | bool | None) -> Resumed | None:
        """What the run goes on from, with the coreset alone on processes other than 0; None: from nothing."""
        processes: Processes = self.trainer.processes
        found: Resumed | None = processes.decide(lambda: self._find(asked), _without_pool)
        return found

    @cached_property
    def parts(self) -> dict[str, str]:
        """Of the run's inputs, as they are before its first step: first asked for no later than there."""
        trainer = self.trainer
        with trainer.ledger.phase("other"):
            known = parts_of(
                trainer.model, trainer.processing_class, trainer.pool_rows, trainer.signals.targets
            )
        if trainer.coreset_config.quota is not None:
            known["sources"] = sources_fingerprint(trainer.pool_rows)
        return known

    def _find(self, asked: str | bool | None) -> Resumed | None:
        trainer, args = self.trainer, self.trainer.args
        self.record = self._record()
        found = find_checkpoint(args.output_dir, asked)
        if found is None:
            return None
        gone_on = resumed(*found, self.record, trainer.coreset_config.seed)
        steps = args.max_steps if gone_on.max_steps is None or trainer.steps_given else gone_on.max_steps
        then = found[1].max_steps
        _refuse_an_end_before(found[0], then, steps)
        if then != steps:
            log.warning(
                "max_steps was %d and is %d: the learning rate follows the schedule of the new length",
                then,
                steps,
            )
        self.record = replace(self.record, schedule=gone_on.schedule, max_steps=steps)
        return replace(gone_on, max_steps=steps)

    def _record(self) -> CheckpointRecord:
        """What this run is."""
        trainer, args = self.trainer, self.trainer.args
        stock = {
            **trainer.setup.settings,
            "optimizer": trainer.optimizer_cls_and_kwargs or trainer.optimizer,
            "lr_scheduler": trainer.lr_scheduler,
        }
        del stock["optimizer_cls_and_kwargs"]
        training, around = compared(args, stock)
        if trainer.held_out is not None:  # which picks the best model, and stops training early
            around["held-out rows"] = trainer.held_out.fingerprint
        asked = {  # how signals are measured decides as the trainer has it, at its precision
            name: value
            for name, value in settings_of(trainer.coreset_config).items()
            if not name.startswith("signals.")
        }
        settings = asked | settings_of(trainer.signals.settings)
        settings |= {"pack": str(trainer.schedule.pack), **config_settings(trainer.model), **training}
        batches = (args.train_batch_size, args.gradient_accumulation_steps, args.world_size)
        return CheckpointRecord(
            self.parts, settings, trainer.schedule, batches, args.max_steps, {**versions(), **around}
        )

    def save(self, folder: Path, now: State) -> None:
        """Ours goes first, into an empty folder: files of an earlier attempt at this step are of no use."""
        trainer = self.trainer
        if trainer.processes.first:
            remove_checkpoint(folder)
            folder.mkdir(parents=True)
            state.save(transitions.without_unread_features(trainer.coreset_config, now), folder)
            trainer.ledger.write(folder / LEDGER)
        trainer.processes.wait()
        if trainer.signals.online is not None:
            trainer.signals.online.save(folder)

    def content(self) -> dict[str, Any]:
        """For the record in a checkpoint, on process 0."""
        assert self.record is not None
        return asdict(self.record)


def parts_of(model: Any, tokenizer: Any, rows: PoolRows, targets: Sequence[Target]) -> dict[str, str]:
    """The fingerprints of what a run is made of, before its first step.

    Of a model with an adapter only the weights that are not trained count: the adapter's own begin at random.
    """
    adapter = adapter_fingerprint(model)
    if adapter == "none":
        weights = weights_fingerprint(model)
    else:
        frozen = {name: value for name, value in model.named_parameters() if not value.requires_grad}
        weights = tensors_fingerprint(frozen)
    return {
        "data": rows_fingerprint(rows),
        "target": " ".join(f"{rows_fingerprint(t.rows)}:{t.share}" for t in targets) or "none",
        "tokenizer": tokenizer_fingerprint(tokenizer) if tokenizer is not None else "none",
        "model": weights,
        "adapter": adapter,
    }


def find_checkpoint(output_dir: str, asked: str | bool | None) -> tuple[str, CheckpointRecord] | None:
    """The checkpoint to go on from and its record: the one asked for, or the newest that is whole; None to
    start anew, where none was asked for or a kill came before the first.

    ValueError where it is not whole or would go on over another run, FileNotFoundError where it is none of a
    run on a coreset.
    """
    if asked is None or asked is False:
        return None
    if asked is not True:
        refuse_foreign(output_dir, asked)
        state.refuse_without(asked)
        return os.fspath(asked), read_record(asked)
    found, passed_over = newest_whole(output_dir)
    for path, reason in passed_over:
        log.warning("passed over %s, which is not whole: %s", path, reason)
    if found is None:
        refuse_to_begin_anew(output_dir, passed_over)
        log.warning("the run in %s was cut before its first checkpoint: it begins from the start", output_dir)
        return None
    state.refuse_without(found)
    return str(found), whole_record(found)


def resumed(folder: str, then: CheckpointRecord, now: CheckpointRecord, seed: int) -> Resumed:
    """What the whole checkpoint in `folder`, of the run `then`, gives to the run described by `now`.

    Where its steps took other batches, the rest of its round takes the new ones: the coreset stays, its
    passes go on where they stopped, the number of steps of rounds and of the run stays.

    ValueError: it is of another run.
    """
    refuse_another_run(folder, then, now)
    if around := changes(then.around, now.around):
        log.warning(
            "%s was saved with %s: the run goes on with what is here, and may end otherwise",
            folder,
            "; ".join(around),
        )
    found = state.load(folder)
    saved = json.loads((Path(folder) / LEDGER).read_text(encoding="utf-8"))
    schedule = replace(then.schedule, batch=now.schedule.batch, group=now.schedule.group)
    other = schedule != then.schedule
    if other:
        step = _step_of(folder)
        found = _with_other_batches(found, then, now, step, seed)
    elif then.batches != now.batches:
        log.warning("%s; the rows of every step stay the same", _change(then, now))
    return Resumed(folder, found, Ledger.from_dict(saved), schedule, then.max_steps if other else None)


def _with_other_batches(
    found: State, then: CheckpointRecord, now: CheckpointRecord, step: int, seed: int
) -> State:
    over = step - found.round * then.schedule.steps
    log.warning(
        "%s: the coreset stays and its passes go on where they stopped, in steps of %d rows, not %d",
        _change(then, now),
        now.schedule.rows // now.schedule.steps,
        then.schedule.rows // then.schedule.steps,
    )
    if over == 0:
        return found
    if then.schedule.pack and over < then.schedule.steps:
        raise ValueError(
            f"{_change(then, now)}, and the round that was begun is packed for {then.schedule.batch} packs a "
            "step: keep the product, or go on from a checkpoint at the end of a round"
        )
    return transitions.after_steps(found, then.schedule, over, seed)


def _refuse_an_end_before(folder: str, then: int, now: int) -> None:
    """ValueError where max_steps was lowered below what was trained already."""
    if now <= (step := _step_of(folder)) < then:
        raise ValueError(
            f"{folder} is at step {step} of {then}, and max_steps is {now} now: nothing is left to train; "
            f"raise max_steps, or take the weights in {folder}"
        )


def _step_of(folder: str) -> int:
    return int(json.loads((Path(folder) / STOCK_LAST).read_text(encoding="utf-8"))["global_step"])


def _change(then: CheckpointRecord, now: CheckpointRecord) -> str:
    return "batches were {} rows × {} a step × {} processes and are {} × {} × {}".format(
        *then.batches, *now.batches
    )


def _without_pool(found: Resumed | None) -> Resumed | None:
    """What the other processes get of it."""
    return (
        None
        if found is None
        else replace(found, state=transitions.without_measurements(found.state), ledger=Ledger())
    )

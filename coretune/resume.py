"""Going on from a checkpoint: which one, whether it is of this very run, and what is taken from it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from coretune import dynamic, state
from coretune.checkpoints import STOCK_LAST, Note, newest_whole, read_note, refuse_another_run
from coretune.identity import (
    adapter_fingerprint,
    rows_fingerprint,
    tensors_fingerprint,
    tokenizer_fingerprint,
    weights_fingerprint,
)
from coretune.ledger import Ledger
from coretune.look import Target
from coretune.rounds import PoolRows
from coretune.schedule import Clock
from coretune.state import State

LEDGER = "coretune_ledger.json"  # beside the weights in every checkpoint
log = logging.getLogger("coretune")


@dataclass(frozen=True)
class Resumed:
    """What a checkpoint gives to the run that goes on.

    max_steps  of the whole run; None where that is for the run that goes on to say
    """

    folder: str
    state: State
    ledger: Ledger
    clock: Clock
    max_steps: int | None


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


def find_checkpoint(output_dir: str, asked: str | bool | None) -> str | None:
    """The checkpoint to go on from: the one asked for, or the newest that is whole; None to start anew."""
    if asked is None or asked is False:
        return None
    if asked is not True:
        return os.fspath(asked)
    found, passed_over = newest_whole(output_dir)
    for path, reason in passed_over:
        log.warning("passed over %s, which is not whole: %s", path, reason)
    if found is None:
        raise ValueError(
            f"no checkpoint in {output_dir} that is whole; train without resume_from_checkpoint, from the "
            "beginning"
        )
    return str(found)


def resumed(folder: str, now: Note, seed: int) -> Resumed:
    """What the checkpoint in `folder` gives to the run described by `now`.

    Where its steps took other batches, the rest of its round takes the new ones: the coreset stays, its
    passes go on where they stopped, the number of steps of rounds and of the run stays.

    FileNotFoundError: no checkpoint of a run on a coreset. ValueError: it is not whole, or of another run.
    """
    state.refuse_without(folder)
    then = read_note(folder)
    refuse_another_run(folder, then, now)
    found = state.load(folder)
    saved = json.loads((Path(folder) / LEDGER).read_text(encoding="utf-8"))
    clock = replace(then.clock, batch=now.clock.batch, group=now.clock.group)
    other = clock != then.clock
    if other:
        step = json.loads((Path(folder) / STOCK_LAST).read_text(encoding="utf-8"))["global_step"]
        found = _with_other_batches(found, then, now, step, seed)
    elif then.batches != now.batches:
        log.warning("%s; the rows of every step stay the same", _change(then, now))
    return Resumed(folder, found, Ledger.from_dict(saved), clock, then.max_steps if other else None)


def _with_other_batches(found: State, then: Note, now: Note, step: int, seed: int) -> State:
    over = step - found.round * then.clock.steps
    log.warning(
        "%s: the coreset stays and its passes go on where they stopped, in steps of %d rows, not %d",
        _change(then, now),
        now.clock.rows // now.clock.steps,
        then.clock.rows // then.clock.steps,
    )
    if over == 0:
        return found
    if then.clock.pack and over < then.clock.steps:
        raise ValueError(
            f"{_change(then, now)}, and the round that was begun is packed for {then.clock.batch} packs a "
            "step: keep the product, or go on from a checkpoint at the end of a round"
        )
    return dynamic.relaid(found, then.clock, over, seed)


def _change(then: Note, now: Note) -> str:
    return "batches were {} rows × {} a step × {} processes and are {} × {} × {}".format(
        *then.batches, *now.batches
    )

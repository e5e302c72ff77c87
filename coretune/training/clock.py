"""A run's clock from a trainer's arguments: how long rounds are, and how many steps there are in all."""

from __future__ import annotations

import math
from typing import Any

from coretune.rounds.schedule import Clock, CoresetConfig, coreset_rows, make_clock
from coretune.rounds.transitions import empty_pool
from coretune.training.refusals import refuse_long_rows
from coretune.types import Array


def batch_of(args: Any) -> int:
    """Rows, or packs of rows, that an optimiser step takes over all processes."""
    return int(args.train_batch_size * args.gradient_accumulation_steps * args.world_size)


def clock_of(config: CoresetConfig, length: Array, args: Any, pack: int) -> tuple[Clock, int]:
    """The clock, and max_steps: as the TrainingArguments say, or from their epochs.

    An epoch is a pass over the coreset; the warm-up comes before.
    length (n,) tokens of the pool's rows; pack: tokens that rows are packed into, 0 where they are not
    ValueError: rows longer than a pack.
    """
    refuse_long_rows(length, pack)
    batch, rows = batch_of(args), coreset_rows(config, empty_pool(length))
    density = max(1, int(pack / length.mean())) if pack else 1
    grouped = args.train_sampling_strategy == "group_by_length"
    group = args.train_batch_size * args.gradient_accumulation_steps if grouped else 0
    clock = make_clock(config, len(length), rows, batch, pack=pack, density=density, group=group)
    warmup, steps = clock.warmup_rounds * clock.steps, args.max_steps
    if steps <= 0:
        steps = warmup + math.ceil(args.num_train_epochs * math.ceil(rows / (batch * density)))
    return clock, steps

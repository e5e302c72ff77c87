"""A run's schedule from a trainer's arguments: how long rounds are, and how many steps there are in all."""

from __future__ import annotations

import math
from typing import Any

from coretune.rounds.coreset_config import CoresetConfig
from coretune.rounds.schedule import Schedule, coreset_rows, make_schedule
from coretune.rounds.transitions import empty_pool
from coretune.training.refusals import refuse_long_rows
from coretune.types import Array


def batch_of(args: Any) -> int:
    """Rows, or packs of rows, that an optimiser step takes over all processes."""
    return int(args.train_batch_size * args.gradient_accumulation_steps * args.world_size)


def schedule_of(config: CoresetConfig, length: Array, args: Any, pack: int) -> tuple[Schedule, int]:
    """The schedule, and max_steps: as the TrainingArguments say, or from their epochs.

    An epoch is a pass over the coreset; the warm-up comes before.
    length (n,) tokens of the pool's rows; pack: tokens that rows are packed into, 0 where they are not
    ValueError: rows longer than a pack.
    """
    refuse_long_rows(length, pack)
    batch, rows = batch_of(args), coreset_rows(config, empty_pool(length))
    density = max(1, int(pack / length.mean())) if pack else 1
    grouped = args.train_sampling_strategy == "group_by_length"
    group = args.train_batch_size * args.gradient_accumulation_steps if grouped else 0
    schedule = make_schedule(config, len(length), rows, batch, pack=pack, density=density, group=group)
    warmup, steps = schedule.warmup_rounds * schedule.steps, args.max_steps
    if steps <= 0:
        steps = warmup + math.ceil(args.num_train_epochs * math.ceil(rows / (batch * density)))
    return schedule, steps

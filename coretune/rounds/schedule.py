"""The schedule of a run: how many steps a round has, and after how many rounds a coreset is selected."""

from __future__ import annotations

import math
from dataclasses import dataclass

from coretune.rounds.coreset_config import CoresetConfig
from coretune.types import Pool


@dataclass(frozen=True)
class Schedule:
    """The fixed length of a round, derived once from the settings and the training arguments.

    steps          optimiser steps a round
    batch          items an optimiser step takes over all processes
    warmup_rounds  rounds before the first selection
    every          rounds between selections; 0 = one selection only
    pack           tokens an item holds, which is a pack of rows then; 0 = an item is a row
    density        rows an item is expected to hold
    group          rows of like length are put together in batches of so many; 0 = they are not
    """

    steps: int
    batch: int
    warmup_rounds: int
    every: int
    pack: int = 0
    density: int = 1
    group: int = 0

    @property
    def items(self) -> int:
        """Items a round."""
        return self.steps * self.batch

    @property
    def rows(self) -> int:
        """Rows a round is expected to hold; exactly those, where an item is a row."""
        return self.items * self.density

    def selections(self, steps: int) -> int:
        """Coresets chosen in so many steps."""
        after = math.ceil(steps / self.steps) - self.warmup_rounds
        if after <= 0:
            return 0
        return 1 if self.every == 0 else math.ceil(after / self.every)


def make_schedule(
    config: CoresetConfig,
    n: int,
    coreset_rows: int,
    batch: int,
    *,
    pack: int = 0,
    density: int = 1,
    group: int = 0,
) -> Schedule:
    """Choose the length of a round.

    The Trainer reads the length of an epoch once, so all rounds are equally long. With a refresh every E
    steps it is E where there is no warm-up: what is done once an epoch (evaluation, saving, starting workers
    that load data) is then done once a coreset. Else it is the smallest divisor of E that holds the warm-up,
    so that the warm-up is not stretched to E steps. Without refreshes: the warm-up, or one pass over the
    coreset where there is none.

    n             rows in the pool
    coreset_rows  rows in the coreset (estimated for a token budget)
    batch, pack, density, group  as in `Schedule`
    """
    warmup = (
        math.ceil(config.warmup_share * n / (batch * density))
        if config.needs and not config.uses_checkpoints
        else 0
    )
    one_pass = math.ceil(coreset_rows / (batch * density))
    if config.refresh_every == "never":
        return Schedule(warmup or one_pass, batch, 1 if warmup else 0, 0, pack, density, group)
    period = one_pass if config.refresh_every == "pass" else int(config.refresh_every)
    holding = (d for d in range(warmup, period + 1) if period % d == 0)
    steps = next(holding, period) if warmup else period
    return Schedule(steps, batch, math.ceil(warmup / steps), period // steps, pack, density, group)


def coreset_rows(config: CoresetConfig, pool: Pool) -> int:
    """Rows in the coreset; for a token budget, what it holds of rows of mean cost."""
    budget = config.budget.resolve(pool)
    return budget.amount if budget.unit == "rows" else max(1, round(budget.amount / float(pool.cost.mean())))

"""What process 0 decides when a round begins, and what is said of it: log, files, ledger."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import Trainer

from coretune import refresh
from coretune.filters.duplicates import Duplicates
from coretune.progress import loops_shown
from coretune.recording import run_record, selection_log
from coretune.recording.run_files import LEDGER, SELECTION
from coretune.recording.target_record import record_targets
from coretune.rounds.exact_duplicates import ExactDuplicates
from coretune.rounds.folded_duplicates import folded, folded_to
from coretune.rounds.quota_request import FEATURE, groups
from coretune.rounds.sampler import PoolRows
from coretune.rounds.schedule import CoresetConfig
from coretune.rounds.state import State
from coretune.rounds.transitions import empty_pool
from coretune.select.by_target import unserved
from coretune.training.saving import side_product
from coretune.types import FOLDED_TO, TARGET_ROW, Array, Pool

log = logging.getLogger("coretune")


def next_round(trainer: Any, global_step: int) -> State:
    """The state of the round that this step begins or is in; a selection that is made is recorded."""
    before: State | None = trainer.coreset_state
    config, clock, measurement, ledger = (
        trainer.coreset_config,
        trainer.clock,
        trainer.measurement,
        trainer.ledger,
    )
    if before is not None and before.round >= global_step // clock.steps:
        return before
    with loops_shown(not trainer.args.disable_tqdm):
        if before is None:
            pool = first_pool(config, trainer.pool_rows, trainer.sight.twins, trainer.target_rows)
            if Duplicates("folded") in config.filters:
                pool = with_folded(pool, trainer.pool_rows, trainer.processing_class)
            now = refresh.start(config, pool, clock, measurement, ledger)
        else:
            now = refresh.advance(config, before, clock, measurement, ledger)
    usable = before.pool.usable if before else np.ones(now.pool.n, bool)
    warning = selection_log.excluded(usable, now.pool.usable, trainer.pool_rows.ids)
    if warning is not None:
        log.warning("%s", warning)
    if now.selections > (before.selections if before else 0):
        _record(trainer, now)
    return now


def first_pool(
    config: CoresetConfig,
    rows: PoolRows,
    twins: ExactDuplicates | None = None,
    of_target: Array | None = None,
) -> Pool:
    """The pool of which nothing is known but what a row costs, which rows are equal, which equal an example
    of the target and, under a quota, which group a row is of.

    of_target  (n,) bool; None = there is no target
    ValueError where the rows cannot fill the budget within the quota.
    """
    first = None if twins is None else twins.first
    pool = empty_pool(rows.length, first, rows.response_length)
    if of_target is not None:
        pool = replace(pool, features={**pool.features, TARGET_ROW: of_target.astype(np.int32)})
    if config.quota is None:
        return pool
    grouped = {**pool.features, FEATURE: groups(rows.source, pool.n)}
    pool = replace(pool, features=grouped)
    config.with_quota(pool, config.budget.resolve(pool))
    return pool


def with_folded(pool: Pool, rows: PoolRows, tokenizer: Any) -> Pool:
    """The pool with which rows are the same but for their format. ValueError without a tokenizer."""
    if tokenizer is None:
        raise ValueError(
            "duplicates.alike is folded, which reads texts: give the trainer a processing_class, "
            "or set alike to exact"
        )
    pieces = folded(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    same = folded_to(pool.n, rows.tokens, pieces)
    return replace(pool, features={**pool.features, FOLDED_TO: same.astype(np.int32)})


def _record(trainer: Any, now: State) -> None:
    """Files, ledger and log of a selection that was just made."""
    folder, config, ledger = Path(trainer.args.output_dir), trainer.coreset_config, trainer.ledger
    if now.selections == 1:
        for line in unserved(now.coreset.figures, [target.name for target in trainer.sight.targets]):
            log.warning("%s", line)

    def decode(tokens: list[list[int]]) -> list[str]:
        if trainer.processing_class is None:  # of a plain Trainer whose method looks at nothing
            return [" ".join(map(str, ids)) for ids in tokens]
        texts: list[str] = trainer.processing_class.batch_decode(tokens, skip_special_tokens=True)
        return texts

    with ledger.phase("other"), side_product(folder / SELECTION):
        run_record.record(
            folder,
            now,
            trainer.pool_rows,
            decode,
            embedding=config.refresh.embedding,
            others=config.record_others,
            seed=config.seed,
        )
        if trainer.sight.targets and now.selections == 1:
            record_targets(folder, trainer.sight.targets, decode)
    with side_product(folder / LEDGER):
        ledger.write(folder / LEDGER)
    # Not TRL's log: it would hand out, and forget, the means that it gathers for its own next line.
    # After the files, so that a callback told of a selection can read it.
    Trainer.log(trainer, selection_log.figures(ledger.rounds[-1], now))

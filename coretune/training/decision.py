"""The pool that a run begins with, and what is said of each selection: log, files, ledger. On process 0."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from coretune.filters.duplicates import Duplicates
from coretune.ledger import Ledger
from coretune.recording import run_record, selection_log
from coretune.recording.by_source import record_losses
from coretune.recording.run_files import LEDGER, LOSSES, SELECTION, TARGETS
from coretune.recording.target_record import record_targets
from coretune.rounds.exact_duplicates import ExactDuplicates
from coretune.rounds.folded_duplicates import folded, folded_to
from coretune.rounds.quota_request import FEATURE, groups
from coretune.rounds.sampler import PoolRows
from coretune.rounds.schedule import CoresetConfig
from coretune.rounds.state import State
from coretune.rounds.targets import Target
from coretune.rounds.transitions import empty_pool
from coretune.select.by_target import unserved
from coretune.training.saving import side_product
from coretune.types import FOLDED_TO, TARGET_ROW, Array, Pool

log = logging.getLogger("coretune")


def tell_excluded(before: State | None, now: State, ids: Sequence[str]) -> None:
    """Name the rows that are not usable any more in the log."""
    usable = before.pool.usable if before else np.ones(now.pool.n, bool)
    warning = selection_log.excluded(usable, now.pool.usable, ids)
    if warning is not None:
        log.warning("%s", warning)


def first_pool(
    config: CoresetConfig,
    rows: PoolRows,
    duplicates: ExactDuplicates | None = None,
    of_target: Array | None = None,
    tokenizer: Any = None,
) -> Pool:
    """The pool of which nothing is known but what a row costs, which rows are equal, which equal an example
    of the target, which are so but for their format, if a filter asks, and, under a quota, which group a row
    is of.

    of_target  (n,) bool; None = there is no target
    ValueError where the rows cannot fill the budget within the quota.
    """
    pool = empty_pool(rows.length, None if duplicates is None else duplicates.first, rows.response_length)
    if of_target is not None:
        pool = replace(pool, features={**pool.features, TARGET_ROW: of_target.astype(np.int32)})
    if Duplicates("folded") in config.filters:
        pool = with_folded(pool, rows, tokenizer)
    if config.quota is None:
        return pool
    pool = replace(pool, features={**pool.features, FEATURE: groups(rows.source, pool.n)})
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


def record(
    now: State,
    folder: Path,
    config: CoresetConfig,
    rows: PoolRows,
    tokenizer: Any,
    targets: Sequence[Target],
    ledger: Ledger,
    say: Callable[[Mapping[str, float]], None],
) -> None:
    """Files, ledger and log of a selection that was just made.

    say  given its figures, after the files, so that they can be read by then
    """
    if now.selections == 1:
        for line in unserved(now.coreset.figures, [target.name for target in targets]):
            log.warning("%s", line)

    def decode(tokens: list[list[int]]) -> list[str]:
        if tokenizer is None:  # of a plain Trainer whose method measures nothing
            return [" ".join(map(str, ids)) for ids in tokens]
        texts: list[str] = tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return texts

    mapped, others = config.refresh.embedding, config.record_others
    with ledger.phase("other"), side_product(folder / SELECTION):
        run_record.record(folder, now, rows, decode, embedding=mapped, others=others, seed=config.seed)
    with ledger.phase("other"), side_product(folder / LOSSES):
        record_losses(folder, now, rows.source)
    if targets and now.selections == 1:
        with ledger.phase("other"), side_product(folder / TARGETS):
            record_targets(folder, targets, decode)
    with side_product(folder / LEDGER):
        ledger.write(folder / LEDGER)
    say(selection_log.figures(ledger.rounds[-1], now))

"""The pool that a run begins with, before anything is measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from coretune.filters.duplicates import Duplicates
from coretune.rounds.coreset_config import CoresetConfig
from coretune.rounds.exact_duplicates import ExactDuplicates
from coretune.rounds.folded_duplicates import folded, folded_to
from coretune.rounds.quota_request import FEATURE, groups
from coretune.rounds.sampler import PoolRows
from coretune.rounds.transitions import empty_pool
from coretune.types import FOLDED_TO, TARGET_ROW, Array, Pool


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

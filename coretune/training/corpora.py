"""The rows that a config names, as a run is given them."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from coretune.config import ConfigError, RunConfig
from coretune.data.corpus import Corpus
from coretune.data.sources import described
from coretune.progress import SECONDS

log = logging.getLogger("coretune")


def corpus_of(source: Any, config: RunConfig, tokenizer: Any, length: int) -> Corpus:
    """Its faults and cuts are named in warnings."""
    began = time.monotonic()
    corpus = build_corpus(source, config, tokenizer, length)
    name = described(source)
    if not sys.stderr.isatty() and (took := time.monotonic() - began) > SECONDS:
        log.info("tokenised %d rows of %s in %.0f s", len(corpus), name, took)
    for line in corpus.notes:
        log.warning("%s", line)
    for place, reason in corpus.dropped:
        log.warning("left out %s: %s", place, reason)
    for reason, count in corpus.left_out.items():
        log.warning("%s: %d rows left out: %s", name, count, reason)
    if corpus.truncated:
        log.warning("%s: %d prompts cut from the left to %d tokens", name, corpus.truncated, length)
    return corpus


def pool_of(config: RunConfig, tokenizer: Any, length: int) -> tuple[Corpus, Corpus | None]:
    """The rows of train_data and those of the evaluation data, which may be a share of them.

    ConfigError for a column that `columns` names and no row has.
    """
    pool = corpus_of(config.train_data, config, tokenizer, length)
    if pool.absent:
        name, data = pool.absent[0], described(config.train_data)
        raise ConfigError(
            f"columns.{name} is {(config.columns or {})[name]!r}, and no row of {data} has that column: "
            "correct it, or leave it out"
        )
    if config.train_on == "all" and not pool.several:
        log.warning(
            "train_on is all, and no row of %s has more than one answer to train on",
            described(config.train_data),
        )
    if config.eval_fraction is None:
        held_out = config.eval_data and corpus_of(config.eval_data, config, tokenizer, length)
        return pool, held_out or None
    pool, part = pool.split(config.eval_fraction)
    log.info("held out %d of %d rows of train_data to evaluate with", len(part), len(pool) + len(part))
    return pool, part


def build_corpus(
    source: Any, config: RunConfig, tokenizer: Any, length: int, first: int | None = None
) -> Corpus:
    """Of the first so many rows, where a number is given."""
    return Corpus.build(
        source,
        tokenizer,
        columns=config.columns,
        max_length=length,
        skip_bad_rows=config.skip_bad_rows,
        cache_dir=config.corpus_dir,
        num_proc=config.training.get("dataset_num_proc"),
        completion_only_loss=config.training.get("completion_only_loss"),
        assistant_only_loss=config.training.get("assistant_only_loss", False),
        train_on=config.train_on,
        first=first,
    )

"""The rows that a config names, as a run is given them."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from coretune.config import RunConfig
from coretune.data.corpus import Corpus
from coretune.progress import SECONDS

log = logging.getLogger("coretune")


def corpus_of(source: str, config: RunConfig, tokenizer: Any, length: int) -> Corpus:
    """Its faults and cuts are named in warnings."""
    began = time.monotonic()
    corpus = build_corpus(source, config, tokenizer, length)
    if not sys.stderr.isatty() and (took := time.monotonic() - began) > SECONDS:
        log.info("tokenised %d rows of %s in %.0f s", len(corpus), source, took)
    for line in corpus.notes:
        log.warning("%s", line)
    for place, reason in corpus.dropped:
        log.warning("left out %s: %s", place, reason)
    for reason, count in corpus.left_out.items():
        log.warning("%s: %d rows left out: %s", source, count, reason)
    if corpus.truncated:
        log.warning("%s: %d prompts cut from the left to %d tokens", source, corpus.truncated, length)
    return corpus


def build_corpus(
    source: str, config: RunConfig, tokenizer: Any, length: int, first: int | None = None
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

"""The arm `bm25`: pool rows that share the most telling words with a few trusted ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pools import read_rows, write_lines


def nearest_by_words(pool: Path, share: float, data: Path) -> Path:
    """A file of the rows, `share` of the pool, that BM25 finds nearest to the examples, which take turns.

    By `bm25s` (Lù 2024), whose defaults are BM25 as Lucene has it; prompt and response as one text.
    """
    try:
        import bm25s
    except ModuleNotFoundError:
        raise SystemExit("the arm bm25 needs bm25s: pip install coretune[bench]") from None
    from coretune.select.by_target import turns

    lines = read_rows(pool / "pool.jsonl")
    texts, wanted = (_tokens(bm25s, _texts(some)) for some in (lines, read_rows(pool / "target.jsonl")))
    index = bm25s.BM25()
    index.index(texts, show_progress=False)
    scores = np.stack([index.get_scores(words) for words in wanted], axis=1)  # (rows, examples)
    each = np.full(scores.shape[1], 1 / scores.shape[1])
    order, _ = turns(scores, each, np.ones(len(lines)), np.arange(len(lines)))
    kept = np.sort(order[: max(1, round(share * len(lines)))])
    return write_lines(data / f"{pool.name}-bm25-{share:g}.jsonl", [lines[i] for i in kept])


def _texts(lines: Sequence[str]) -> list[str]:
    return [f"{row['prompt']}\n{row['completion']}" for row in map(json.loads, lines)]


def _tokens(bm25s: Any, texts: list[str]) -> list[list[str]]:
    found: list[list[str]] = bm25s.tokenize(texts, stopwords="en", return_ids=False, show_progress=False)
    return found

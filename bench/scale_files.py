"""The cases of bench/scale.py about files: the corpus of a million rows, the audit of twenty refreshes."""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scale_row import Case, Line, measured
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from coretune.data.corpus import Corpus
from coretune.recording import audit
from coretune.types import Coreset, NeighborGraph, Pool

ROWS, QUICK = (10_000, 100_000, 1_000_000), (1_000,)
REFRESHES, QUICK_REFRESHES = 20, 3
WORDS = [
    f"{verb}{noun}" for verb in ("count", "sort", "find", "write") for noun in ("", "list", "name", "word")
]


def corpora(quick: bool) -> list[Line]:
    """Short rows of JSON Lines, a bad one among them, tokenised; then a second start with the same file."""
    lines = []
    for n in QUICK if quick else ROWS:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "pool.jsonl"
            write_rows(path, n)
            build = partial(
                Corpus.build,
                path,
                _tokenizer(),
                max_length=128,
                skip_bad_rows=True,
                cache_dir=f"{folder}/kept",
            )
            for what in ("corpus, first start", "corpus, second start"):
                took = measured(build)
                corpus: Corpus = took.result
                named = [place for place, _ in corpus.dropped] == [f"pool.jsonl line {n // 2 + 1}"]
                worth = f"{corpus.length.sum():,} tokens, {len(corpus.dropped)} bad row"
                figures = (took.seconds, took.busy, took.gib, worth)
                lines.append(Line(what, "coretune", n, *figures, targets=(("the bad row named", named),)))
    return lines


def write_rows(path: Path, n: int) -> None:
    rng = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for i in range(n):
            drawn = [WORDS[w] for w in rng.integers(len(WORDS), size=24)]
            row = {"prompt": f"{' '.join(drawn[:12])} {i}\n", "completion": " ".join(drawn[12:])}
            file.write(json.dumps({"prompt": 7} if i == n // 2 else row) + "\n")


def _tokenizer() -> Any:
    vocabulary = {word: i for i, word in enumerate(["<unk>", "</s>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")


def audits(quick: bool) -> list[Line]:
    """Refreshes appended to one selection.parquet: 5 % chosen, 10,000 of the others, six components."""
    lines = []
    for n in QUICK if quick else ROWS:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "selection.parquet"
            refreshes = QUICK_REFRESHES if quick else REFRESHES
            took = measured(partial(_audit, path, n, refreshes))
            per = path.stat().st_size / took.result
            worth = f"{path.stat().st_size / 1e6:.1f} MB, {per:.0f} bytes a line"
            figures = (took.seconds, took.busy, took.gib, worth)
            lines.append(Line(f"audit of {refreshes} refreshes", "coretune", n, *figures))
    return lines


def _audit(path: Path, n: int, refreshes: int) -> int:
    """How many lines were written."""
    rng, lines = np.random.default_rng(0), 0
    beside = (np.arange(n)[:, None] + rng.integers(1, 500, size=(n, 10))) % n
    cosine = np.sort(rng.random((n, 10), np.float32))[:, ::-1].copy()
    graph = NeighborGraph(beside.astype(np.int32), cosine, np.zeros((n, 1), np.float32))
    pool = Pool({}, np.full(n, 100), np.zeros(n, np.int32), np.ones(n, bool), graph)
    ids = [f"pool.jsonl:{i}" for i in range(n)]
    parts = {f"component_{i}": rng.random(n, np.float32) for i in range(6)}
    for round in range(refreshes):
        gains = np.sort(rng.random(n // 20))[::-1].copy()
        coreset = Coreset(rng.choice(n, n // 20, replace=False), np.ones(n // 20), gains, parts)
        rows = audit.rows_to_keep(pool, coreset, 10_000, seed=0)
        audit.append(path, audit.describe(pool, coreset, round=round, ids=ids, rows=rows))
        lines += len(rows)
    return lines


CASES: tuple[Case, ...] = (Case("corpus", corpora, long=True), Case("audit", audits, long=True))

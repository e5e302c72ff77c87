"""Near-duplicates on real text: which rule finds edited copies, and which rows does it take that must stay?

    python bench/near_duplicates.py --quick
    python bench/near_duplicates.py --model FOLDER --data FOLDER --check

Of each pool --rows rows are drawn, copies left out. Each is edited in five ways:

    format    first letter in lower case, no full stop at the end, two spaces after a comma    to be found
    typing    two letters swapped in one word of twenty                                        to be found
    words     one word of ten left out                                                         to be found
    signs     every + a −, every − a +, in prompt and response                                 must stay
    numbers   every number another one, prompt and response: another question                  must stay

Rules, each on prompt and response:

    folded    the same after case, punctuation and white space are dropped: `duplicates: {alike: folded}`
    jaccard   shared shingles of three words over all shingles of both, prompt and response together
    cosine    of the embeddings about their mean, the prompts' or the responses', the lower

Found: share of edited rows that the rule takes for their original. Taken: share of the pool's distinct rows,
as they are, that it takes for another row; these must stay.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command import parser_of, tell_missed
from pools import below, pool_and_model, read_rows, write_lines
from real_run import machine
from scipy import sparse

from coretune import run
from coretune.rounds.folded_duplicates import folded as pieces
from coretune.types import Array

POOLS = ",".join(f"{name};characters=300" for name in ("mixed-clean", "gsm8k", "choice-clean"))
QUICK = "made:rows=300;wrong=0;copies=0"
EDITS = ("format", "typing", "words", "numbers", "signs")
SHINGLE = 3  # words
THRESHOLDS = {"jaccard": (0.5, 0.6, 0.7, 0.8, 0.9), "cosine": (0.9, 0.95, 0.98, 0.99)}
FOUND, TAKEN = 0.9, 0.01  # of `format` at least, of rows that must stay at most

Row = tuple[str, str]


def edited(row: Row, kind: str, rng: np.random.Generator) -> Row:
    change: dict[str, Callable[[str], str]] = {
        "format": lambda text: re.sub(", ", ",  ", text[:1].lower() + text[1:].rstrip(".")),
        "typing": lambda text: _each_word(
            text, 0.05, rng, lambda word: word[:1] + word[2:3] + word[1:2] + word[3:]
        ),
        "words": lambda text: _each_word(text, 0.1, rng, lambda word: ""),
        "signs": lambda text: text.translate({ord("+"): "-", ord("-"): "+"}),
        "numbers": lambda text: re.sub(
            r"\d+", lambda found: str(int(found[0]) + int(rng.integers(1, 9))), text
        ),
    }
    return change[kind](row[0]), change[kind](row[1])


def _each_word(text: str, share: float, rng: np.random.Generator, change: Callable[[str], str]) -> str:
    """The text with a share of its words changed, at least one where it has several."""
    words = text.split(" ")
    if len(words) < 2:
        return text
    chosen = set(rng.choice(len(words), max(1, round(share * len(words))), replace=False).tolist())
    return " ".join(change(word) if place in chosen else word for place, word in enumerate(words))


def shingles(rows: list[Row]) -> Any:
    """(n, shingles) sparse: which runs of SHINGLE words a row has; white space and case dropped."""
    known: dict[tuple[str, ...], int] = {}
    places, columns = [], []
    for at, row in enumerate(rows):
        words = re.findall(r"\w+", " ".join(row).casefold())
        own = {tuple(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}
        places += [at] * len(own)
        columns += [known.setdefault(shingle, len(known)) for shingle in own]
    return sparse.csr_matrix((np.ones(len(places)), (places, columns)), (len(rows), len(known)))


def jaccard(rows: list[Row], others: list[Row]) -> Array:
    """(n, m) float64."""
    both = shingles([*rows, *others])
    one, other = both[: len(rows)], both[len(rows) :]
    shared = np.asarray((one @ other.T).todense())
    sizes = np.asarray(one.sum(axis=1)), np.asarray(other.sum(axis=1)).T
    return shared / (sizes[0] + sizes[1] - shared)


def folded(rows: list[Row], others: list[Row]) -> Array:
    """(n, m) float64: 1 where the same letters and digits follow each other."""
    keys = [[b"".join(pieces(" ".join(row))) for row in some] for some in (rows, others)]
    return (np.array(keys[0])[:, None] == np.array(keys[1])[None, :]).astype(float)


def cosines(measured: tuple[Array, Array], others: tuple[Array, Array]) -> Array:
    """(n, m) float64: of prompts and of responses the lower."""
    found = []
    for one, other, centre in zip(measured, others, (part.mean(axis=0) for part in measured), strict=True):
        one, other = one - centre, other - centre
        lengths = np.linalg.norm(one, axis=1)[:, None] * np.linalg.norm(other, axis=1)[None, :]
        found.append(one @ other.T / np.maximum(lengths, 1e-12))
    return np.minimum(*found)


def embedder(model_folder: str, autocast: str | None) -> Callable[[list[Row]], tuple[Array, Array]]:
    from transformers import AutoModelForCausalLM

    from coretune.data.corpus import Corpus
    from coretune.measure.settings import MeasureSettings
    from coretune.measure.signals import measurer
    from coretune.training.row_signals import first_token

    tokenizer = run.load_tokenizer(model_folder)
    model = AutoModelForCausalLM.from_pretrained(
        model_folder, dtype=torch.float32, attn_implementation="eager"
    )
    ends = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": first_token(tokenizer)}
    names = ["prompt_embedding", "response_embedding"]

    def embedded(rows: list[Row]) -> tuple[Array, Array]:
        with tempfile.TemporaryDirectory() as folder:
            lines = [json.dumps({"prompt": prompt, "completion": response}) for prompt, response in rows]
            file = write_lines(Path(folder) / "rows.jsonl", lines)
            corpus = Corpus.build(file, tokenizer, max_length=1024, cache_dir=Path(folder) / "cache")
            settings = MeasureSettings(autocast=autocast, batch_tokens=2048)
            found = measurer(model.eval(), corpus, names, settings, **ends)(np.arange(len(rows)))
        return found[names[0]], found[names[1]]

    return embedded


def figures(
    rows: list[Row], embedded: Callable[[list[Row]], tuple[Array, Array]], seed: int
) -> dict[str, dict[str, float]]:
    """Rule and threshold -> share of each kind of edit that is found, and of rows taken as they are."""
    rng = np.random.default_rng(seed)
    original = embedded(rows)
    apart = ~np.eye(len(rows), dtype=bool)
    alike = {
        "folded": folded(rows, rows),
        "jaccard": jaccard(rows, rows),
        "cosine": cosines(original, original),
    }
    rules = [("folded", 1.0), *((rule, at) for rule, some in THRESHOLDS.items() for at in some)]
    found = {
        f"{rule} {at:g}": {"taken": float((alike[rule] * apart >= at).any(axis=1).mean())}
        for rule, at in rules
    }
    for kind in EDITS:
        others = [edited(row, kind, rng) for row in rows]
        changed = np.array([one != other for one, other in zip(rows, others, strict=True)])
        measured = embedded(others)
        near = {
            "folded": folded(rows, others),
            "jaccard": jaccard(rows, others),
            "cosine": cosines(original, measured),
        }
        for rule, at in rules:
            found[f"{rule} {at:g}"][kind] = (
                float((np.diag(near[rule])[changed] >= at).mean()) if changed.any() else 0.0
            )
    return found


def distinct_of(pool: Path, count: int, seed: int) -> list[Row]:
    lines = map(json.loads, read_rows(pool / "pool.jsonl"))
    rows = list(dict.fromkeys((line["prompt"], line["completion"]) for line in lines))
    drawn = np.random.default_rng(seed).permutation(len(rows))[:count]
    return [rows[i] for i in drawn]


def tables(asked: argparse.Namespace, folder: str) -> Iterator[tuple[str, dict[str, dict[str, float]]]]:
    for name in asked.pools.split(","):
        pool, model = pool_and_model(below(asked.data, name), asked.model, folder, Path(folder))
        rows = distinct_of(Path(pool), asked.rows, asked.seed)
        yield Path(pool).name, figures(rows, embedder(model, asked.autocast), asked.seed)


def show(pool: str, found: dict[str, dict[str, float]], rows: int) -> None:
    print(f"{pool}, {rows} rows; {machine()}")
    print(f"  {'rule':<14}" + "".join(f"{kind:>10}" for kind in (*EDITS, "taken")))
    for rule, shares in found.items():
        print(f"  {rule:<14}" + "".join(f"{shares[kind]:>10.1%}" for kind in (*EDITS, "taken")), flush=True)


def missed(pool: str, found: dict[str, float]) -> list[str]:
    """Of the rule that the library has."""
    misses = []
    if found["format"] < FOUND:
        misses.append(f"{pool}: {found['format']:.1%} of rows edited in format are found, not {FOUND:.0%}")
    for kind in ("taken", "numbers", "signs"):
        if found[kind] > TAKEN:
            misses.append(
                f"{pool}: {found[kind]:.1%} of rows that must stay are taken ({kind}), not {TAKEN:.0%}"
            )
    return misses


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--model", help="model folder; left out, the playground's")
    parser.add_argument("--data", default=".", help="the folder with the pools' folders")
    parser.add_argument("--pools", default=POOLS, help="as in pools.py, parted by commas")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--seed", type=int, default=10)
    parser.add_argument("--rule", default="folded 1", help="the one that --check holds to the targets")
    parser.add_argument("--autocast", choices=["bfloat16"], default=None)
    parser.add_argument("--quick", action="store_true", help="a made pool: under a minute")
    parser.add_argument("--check", action="store_true", help="exit 1 unless the rule meets the targets")
    asked = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    run.quiet()
    misses = []
    with tempfile.TemporaryDirectory() as folder:
        if asked.quick:
            asked.pools, asked.rows = QUICK, 100
        for pool, found in tables(asked, folder):
            show(pool, found, asked.rows)
            misses += missed(pool, found[asked.rule])
    return tell_missed(misses, asked.check)


if __name__ == "__main__":
    sys.exit(main())

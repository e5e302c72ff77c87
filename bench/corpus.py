"""What does the corpus stage cost beside a `datasets.map` that makes the same rows with the same tokenizer?

    python bench/corpus.py                      200,000 rows of 73 M tokens: three pairs, side by side
    python bench/corpus.py --quick --check      20,000 rows, one pair; exit 1 where a target is missed

The pool is generated: conversations of two turns, of words whose frequency falls with their rank. Each stage
is a process of its own with as many workers, from the file on disk to rows that can be trained on, nothing
cached: one after the other, in turns, so that a machine that is busy is busy for both.

    corpus   Corpus.build: reads, checks, renders, tokenises, masks, hashes, orders, freezes
    map      load_dataset and one map: the chat template, one call of the tokenizer for the prompts of a block
             and one for the wholes, labels; nothing is checked, hashed or ordered
    once     load_dataset and one map: the whole alone, without labels

Memory is the largest sum over a stage's processes of what each has for itself (proportional set size), with
the pages of mapped files.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
from command import parser_of, tell_missed

ROWS, WORDS = 200_000, 150  # of the pool; of a row, at most
MAX_LENGTH = 2048
SLOWER, MEMORY = 1.0, 1.5e9  # targets: seconds against those of map, bytes
STAGES = ("corpus", "map", "once")


def write_pool(path: Path, rows: int, seed: int = 0) -> None:
    """jsonl of `prompt` and `completion` as messages; words of one to four syllables, by Zipf's law."""
    rng = np.random.default_rng(seed)
    syllables = ["ka", "to", "ri", "men", "sol", "ne", "par", "ti", "lo", "ver", "da", "su", "con", "ment"]
    words = np.array(["".join(rng.choice(syllables, rng.integers(1, 5))) for _ in range(8000)])
    share = 1 / np.arange(1, len(words) + 1)
    share /= share.sum()
    with path.open("w", encoding="utf-8") as file:
        for begin in range(0, rows, 1000):
            sizes = rng.integers(4, WORDS // 2, (min(1000, rows - begin), 2))
            drawn = iter(rng.choice(words, int(sizes.sum()), p=share).tolist())
            for question, answer in sizes.tolist():
                texts = [" ".join(next(drawn) for _ in range(size)) for size in (question, answer)]
                turns = [
                    {"role": role, "content": text}
                    for role, text in zip(("user", "assistant"), texts, strict=True)
                ]
                file.write(json.dumps({"prompt": turns[:1], "completion": turns[1:]}) + "\n")


def stage(name: str, pool: Path, tokenizer: str, processes: int, folder: Path) -> int:
    """In this process: the tokens of all rows."""
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    known = AutoTokenizer.from_pretrained(tokenizer)
    if name == "corpus":
        from coretune.data.corpus import Corpus

        made = Corpus.build(
            pool, known, max_length=MAX_LENGTH, cache_dir=folder / "corpus", num_proc=processes
        )
        return int(made.length.sum())
    rows = datasets.load_dataset("json", data_files=str(pool), split="train", cache_dir=str(folder / "cache"))

    def tokens(texts: list[str]) -> list[list[int]]:
        found: list[list[int]] = known(texts, add_special_tokens=False, return_attention_mask=False)[
            "input_ids"
        ]
        return found

    def rendered(turns: list[list[dict[str, str]]], **more: bool) -> list[str]:
        return [known.apply_chat_template(each, tokenize=False, **more) for each in turns]

    def prepared(batch: dict[str, list[list[dict[str, str]]]]) -> dict[str, list[list[int]]]:
        pairs = zip(batch["prompt"], batch["completion"], strict=True)
        whole = tokens(rendered([[*prompt, *answer] for prompt, answer in pairs]))
        if name == "once":
            return {"input_ids": whole}
        prompts = tokens(rendered(batch["prompt"], add_generation_prompt=True))
        labels = [[-100] * len(p) + ids[len(p) :] for ids, p in zip(whole, prompts, strict=True)]
        return {"input_ids": whole, "labels": labels}

    found = rows.map(prepared, batched=True, num_proc=processes, remove_columns=rows.column_names)
    return sum(len(chunk.values) for chunk in found.data.column("input_ids").chunks)


def timed(name: str, pool: Path, asked: argparse.Namespace) -> dict[str, float]:
    """seconds, processor seconds, bytes, tokens of a stage in a process of its own."""
    with tempfile.TemporaryDirectory(dir=pool.parent) as folder:
        command = [sys.executable, __file__, "--stage", name, "--pool", pool, "--tokenizer", asked.tokenizer]
        command += ["--processes", asked.processes, "--folder", folder]
        began, before, most = time.perf_counter(), os.times(), 0.0
        process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
        while process.poll() is None:
            most = max(most, sum(map(_own_bytes, _family(process.pid))))
            time.sleep(0.2)
        seconds, after = time.perf_counter() - began, os.times()
        assert process.stdout is not None
        if process.returncode:
            sys.exit(f"{name}: exit code {process.returncode}")
        work = after.children_user + after.children_system - before.children_user - before.children_system
        return {"seconds": seconds, "work": work, "bytes": most, "tokens": float(process.stdout.read())}


def _family(pid: int) -> Iterator[int]:
    """The process and all below it."""
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in children:
        yield from _family(int(child))


def _own_bytes(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return 1024.0 * next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--stages", default="corpus,map", help="of " + ", ".join(STAGES))
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--tokenizer", default=None, help="folder or hub id; default: the playground's")
    parser.add_argument("--quick", action="store_true", help="20,000 rows, one pair")
    parser.add_argument("--check", action="store_true", help="exit 1 where a target is missed")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--pool", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.stage:
        print(stage(asked.stage, asked.pool, asked.tokenizer, asked.processes, asked.folder))
        return 0
    if asked.tokenizer is None:
        from coretune.playground import BASE_MODEL

        asked.tokenizer = str(BASE_MODEL)
    rows, pairs = (20_000, 1) if asked.quick else (asked.rows, asked.pairs)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in asked.stages.split(",")}
    with tempfile.TemporaryDirectory() as home:
        pool = Path(home) / "pool.jsonl"
        write_pool(pool, rows)
        for _ in range(pairs):
            for name, taken in found.items():
                taken.append(timed(name, pool, asked))
                last = taken[-1]
                print(
                    f"{name:7} {last['seconds']:7.1f} s, {last['work']:7.1f} s of work, "
                    f"{last['bytes'] / 1e9:.2f} GB, {last['tokens'] / 1e6:.1f} M tokens",
                    flush=True,
                )
    ratio = median(ours["seconds"] for ours in found["corpus"]) / median(
        one["seconds"] for one in found["map"]
    )
    most = max(one["bytes"] for one in found["corpus"])
    print(f"{rows:,} rows, {asked.processes} processes: {ratio:.2f} of map's time, {most / 1e9:.2f} GB")
    misses = [f"{ratio:.2f} of map's time, at most {SLOWER} is wanted"] if ratio > SLOWER else []
    misses += [f"{most / 1e9:.2f} GB, at most {MEMORY / 1e9} are wanted"] if most > MEMORY else []
    return tell_missed(misses, asked.check)


if __name__ == "__main__":
    sys.exit(main())

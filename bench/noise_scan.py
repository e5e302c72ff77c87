"""What bench/noise.py reads: losses of a pool's rows after several prompts, before training and after steps.

One .npz file a pool, model, tuning, seed and step: (n,) arrays unless said otherwise

    loss, unconditional, empty   of the response after its own prompt, the bos token, what all prompts end in
    neighbors                    (n, NEIGHBOURS) the rows with the nearest prompts; -1 = none
    others, near                 (1 to OTHERS, n) after other rows' prompts, drawn at random and the nearest
    length, prompt_length        tokens of the whole row, of its prompt
    ending                       (1,) tokens of what all prompts end with
    wrong                        bool
    shape                        text of the fields of the model's ModelShape, for FLOPs
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pools import labels_of, read_rows, write_lines
from transformers import AutoModelForCausalLM

from coretune import run
from coretune.data.corpus import Corpus
from coretune.measure.mismatched import Mismatched
from coretune.measure.settings import MeasureSettings
from coretune.measure.signals import common_ending, measurer
from coretune.neighbors.graph import build
from coretune.training.model_cost import model_shape
from coretune.training.row_signals import first_token
from coretune.types import EMPTY_PROMPT_LOSS, IGNORED, Array

OTHERS, NEIGHBOURS, BATCH, MICRO = 4, 10, 16, 4


@dataclass(frozen=True)
class Known:
    """Rows of a pool without copies, and which of them are wrong."""

    rows: Corpus
    wrong: Array

    @classmethod
    def of(cls, pool: Path, tokenizer: Any, count: int, seed: int) -> Known:
        lines = map(json.loads, read_rows(pool / "pool.jsonl"))
        kinds = labels_of(pool) if (pool / "labels.jsonl").exists() else {}
        distinct = {
            (row["prompt"], row["completion"]): row for row in lines if kinds.get(row.get("id")) != "copy"
        }
        rows = list(distinct.values())
        drawn = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))[:count]]
        with tempfile.TemporaryDirectory() as folder:
            file = write_lines(Path(folder) / "rows.jsonl", [json.dumps(row) for row in drawn])
            corpus = Corpus.build(
                file, tokenizer, max_length=1024, skip_bad_rows=True, cache_dir=pool / "noise"
            )
        return cls(corpus, np.array([kinds.get(name) == "wrong" for name in corpus.ids]))


def scans_of(pool: Path, asked: argparse.Namespace) -> dict[int, Mapping[str, Array]]:
    """Step -> its scan; those that are in --scans are not measured again."""
    files = {
        step: asked.scans / f"{_stem(pool, asked)}-step{step}.npz"
        for step in map(int, asked.steps.split(","))
    }
    missing = [step for step, file in files.items() if not file.exists()]
    if missing:
        _measure(pool, asked, {step: files[step] for step in missing})
    return {step: dict(np.load(file)) for step, file in files.items()}


def _stem(pool: Path, asked: argparse.Namespace) -> str:
    tuning = "full" if asked.full else "lora16"
    return f"{pool.name}-{Path(asked.model).name}-{tuning}-{asked.rows}-rows-seed{asked.seed}"


def _measure(pool: Path, asked: argparse.Namespace, files: Mapping[int, Path]) -> None:
    torch.manual_seed(asked.seed)
    tokenizer = run.load_tokenizer(asked.model)
    model = AutoModelForCausalLM.from_pretrained(
        asked.model, dtype=torch.float32, attn_implementation="eager"
    )
    shape = json.dumps(dataclasses.asdict(model_shape(model)))
    if not asked.full:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    known = Known.of(pool, tokenizer, asked.rows, asked.seed)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=asked.learning_rate)
    rng, before = np.random.default_rng(asked.seed), 0
    for step, file in files.items():
        trained(model, known, step - before, rng, optimizer, asked.autocast)
        before = step
        found = scanned(model.eval(), tokenizer, known, asked)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".part.npz")
        np.savez_compressed(partial, **found, shape=np.array(shape))
        partial.replace(file)


def scanned(model: Any, tokenizer: Any, known: Known, asked: argparse.Namespace) -> dict[str, Array]:
    """After OTHERS other prompts where rows are wrong, else after one, for the pairs alone."""
    rows, n = known.rows, len(known.rows)
    everyone, rng = np.arange(n), np.random.default_rng(asked.seed)
    settings = MeasureSettings(autocast=asked.autocast, batch_tokens=2048)
    ends = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": first_token(tokenizer)}
    signals = ["loss", "unconditional_loss", EMPTY_PROMPT_LOSS, "prompt_embedding"]
    found = measurer(model, rows, signals, settings, **ends)(everyone)
    said = [
        np.asarray(ids)[start:].tobytes()
        for ids, start in zip(rows.tokens(everyone), rows.prompt_length, strict=True)
    ]

    def after_others(order: Iterable[Array], count: int) -> Array:
        prompts = np.array([_answered_otherwise(row, own, said) for row, own in enumerate(order)]).T[:count]
        pairs = [Mismatched(rows, one, everyone, 2048) for one in prompts]
        return np.stack(
            [measurer(model, pair, ["loss"], settings, **ends)(everyone)["loss"] for pair in pairs]
        )

    embedding = found["prompt_embedding"]
    centred = embedding - embedding.mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    graph = build(embedding, min(NEIGHBOURS, n - 1), seed=0)
    wrong = bool(known.wrong.any())
    scan = {
        "loss": found["loss"],
        "unconditional": found["unconditional_loss"],
        "empty": found[EMPTY_PROMPT_LOSS],
        "neighbors": graph.neighbors,
        "others": after_others((rng.permutation(n) for _ in everyone), OTHERS if wrong else 1),
        "length": rows.length,
        "prompt_length": rows.prompt_length,
        "ending": np.array([len(common_ending(rows, ends["bos_token_id"]))]),
        "wrong": known.wrong,
    }
    if asked.near and wrong:
        scan["near"] = after_others(np.argsort(-centred @ centred.T, axis=1), OTHERS)
    return scan


def _answered_otherwise(row: int, order: Array, said: list[bytes]) -> list[int]:
    """The first OTHERS rows of the order with another response; repeated where there are fewer."""
    other = [int(i) for i in order if said[i] != said[row]] or [row]
    return (other * OTHERS)[:OTHERS]


def trained(
    model: Any, known: Known, steps: int, rng: np.random.Generator, optimizer: Any, autocast: Any
) -> None:
    """Steps of BATCH random rows, micro-batches of MICRO rows of like length."""
    model.train()
    for _ in range(steps):
        rows = rng.choice(len(known.rows), BATCH, replace=False)
        rows = rows[np.argsort(known.rows.length[rows])]
        for part in np.split(rows, BATCH // MICRO):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast is not None):
                loss = model(**_batch(known, part)).loss
            (loss * MICRO / BATCH).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def _batch(known: Known, rows: Array) -> dict[str, torch.Tensor]:
    ids, labels = known.rows.tokens(rows), known.rows.labels(rows)
    longest = max(map(len, ids))
    given, asked = (
        torch.zeros(len(rows), longest, dtype=torch.long),
        torch.full((len(rows), longest), IGNORED),
    )
    for place, (tokens, wanted) in enumerate(zip(ids, labels, strict=True)):
        given[place, : len(tokens)] = torch.as_tensor(np.array(tokens))
        asked[place, : len(wanted)] = torch.as_tensor(np.array(wanted))
    return {"input_ids": given, "labels": asked}

"""Which responses are wrong? Scores of right and wrong rows, and what the filter `noise` makes of them.

    python bench/noise.py --quick
    python bench/noise.py --model FOLDER --data FOLDER --out results/noise.jsonl --check

--data holds the pools' folders. Of each pool --rows rows are drawn, copies left out, and measured before any
training and after each of --steps steps on random rows, right and wrong ones:

    loss                of the response after its own prompt
    IFD's ratio         loss over that after the bos token alone (Li et al., NAACL 2024)
    empty prompt        loss over that after what all prompts end with
    total               nats of the whole response that its prompt saves: the score of `contrast.py`
    1, 4 others         loss over the mean loss after so many other rows' prompts, drawn at random
    1, 4 near others    the same of the nearest prompts by embedding
    neighbours          loss over the median loss of the ten nearest prompts' rows

AUC: how often a wrong row scores higher than a right one. Cost: FLOPs of a pool's scan over those of training
on it once, the loss itself included. Flagged: right and wrong rows that the filter takes out, no share being
given, and with a plain cut of IFD's ratio at 0.9. A line a pool and step is kept in --out and never measured
again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pools import labels_of, pool_and_model
from scipy.stats import rankdata
from transformers import AutoModelForCausalLM

from coretune import run
from coretune.data.corpus import Corpus
from coretune.filters.noise import Noise
from coretune.ledger import forward_flops, training_flops
from coretune.measure.mismatched import Mismatched
from coretune.measure.settings import MeasureSettings
from coretune.measure.signals import common_ending, measurer
from coretune.neighbors.graph import build
from coretune.training.look import first_token
from coretune.training.model_cost import model_shape
from coretune.types import (
    EMPTY_PROMPT_LOSS,
    MATCHED,
    MISMATCHED,
    PAIR_TOKENS,
    RESPONSE_TOKENS,
    UNPROMPTED,
    Array,
    Budget,
    Pool,
)

POOLS = "mixed-dirty,dirty:gsm8k,choice-dirty,dirty:dialogsum,mixed-clean,gsm8k,choice-clean,dialogsum"
QUICK = "made:rows=500,made:rows=500;wrong=0;copies=0"
AUCS = {"mixed-dirty": 0.97, "gsm8k-dirty": 0.95, "dialogsum-dirty": 0.95}  # at least, before any training
WRONG, RIGHT, CLEAN, COST = (
    0.90,
    0.03,
    0.02,
    0.55,
)  # flagged: at least, at most, at most; a scan's cost: at most
OTHERS, NEIGHBOURS, BATCH = 4, 10, 16


@dataclass(frozen=True)
class Known:
    """Rows of a pool without copies, and which of them are wrong."""

    rows: Corpus
    wrong: Array

    @classmethod
    def of(cls, pool: Path, tokenizer: Any, count: int, seed: int) -> Known:
        lines = [json.loads(line) for line in (pool / "pool.jsonl").read_text("utf-8").split("\n") if line]
        kinds = labels_of(pool) if (pool / "labels.jsonl").exists() else {}
        distinct = {
            (row["prompt"], row["completion"]): row for row in lines if kinds.get(row.get("id")) != "copy"
        }
        rows = list(distinct.values())
        drawn = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))[:count]]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "rows.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in drawn), "utf-8")
            corpus = Corpus.build(
                file, tokenizer, max_length=1024, skip_bad_rows=True, cache_dir=pool / "noise"
            )
        return cls(corpus, np.array([kinds.get(name) == "wrong" for name in corpus.ids]))


@dataclass(frozen=True)
class Scan:
    """Losses of n rows: `others`, `near` (OTHERS, n) after other rows' prompts."""

    loss: Array
    unconditional: Array
    empty: Array
    embedding: Array
    others: Array
    near: Array


def scanned(model: Any, tokenizer: Any, known: Known, autocast: str | None, seed: int) -> Scan:
    rows, n = known.rows, len(known.rows)
    everyone, rng = np.arange(n), np.random.default_rng(seed)
    settings = MeasureSettings(autocast=autocast, batch_tokens=2048)
    ends = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": first_token(tokenizer)}
    signals = ["loss", "unconditional_loss", EMPTY_PROMPT_LOSS, "prompt_embedding"]
    found = measurer(model, rows, signals, settings, **ends)(everyone)
    said = [
        np.asarray(ids)[start:].tobytes()
        for ids, start in zip(rows.tokens(everyone), rows.prompt_length, strict=True)
    ]
    centred = found["prompt_embedding"] - found["prompt_embedding"].mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    orders = {
        "others": (rng.permutation(n) for _ in everyone),
        "near": np.argsort(-centred @ centred.T, axis=1),
    }
    losses = {}
    for name, order in orders.items():
        prompts = np.array([_answered_otherwise(row, own, said) for row, own in enumerate(order)]).T
        losses[name] = np.stack(
            [
                measurer(model, Mismatched(rows, one, everyone, 2048), ["loss"], settings, **ends)(everyone)[
                    "loss"
                ]
                for one in prompts
            ]
        )
    return Scan(
        found["loss"],
        found["unconditional_loss"],
        found[EMPTY_PROMPT_LOSS],
        found["prompt_embedding"],
        **losses,
    )


def _answered_otherwise(row: int, order: Array, said: list[bytes]) -> list[int]:
    """The first OTHERS rows of the order with another response; repeated where there are fewer."""
    other = [int(i) for i in order if said[i] != said[row]] or [row]
    return (other * OTHERS)[:OTHERS]


def scores_of(scan: Scan, tokens: Array) -> dict[str, Array]:
    graph = build(scan.embedding, min(NEIGHBOURS, len(tokens) - 1), seed=0)
    near = np.median(scan.loss[np.maximum(graph.neighbors, 0)], axis=1)
    return {
        "loss": scan.loss,
        "IFD's ratio": scan.loss / scan.unconditional,
        "empty prompt": scan.loss / scan.empty,
        "total": tokens * (scan.loss - scan.empty),
        "1 other": scan.loss / scan.others[0],
        "4 others": scan.loss / scan.others.mean(axis=0),
        "1 near other": scan.loss / scan.near[0],
        "4 near others": scan.loss / scan.near.mean(axis=0),
        "neighbours": (scan.loss + 0.02) / (near + 0.02),
    }


def costs_of(model: Any, tokenizer: Any, known: Known) -> dict[str, float]:
    """FLOPs of each score over those of training on the rows once."""
    shape, rows = model_shape(model), known.rows
    response = rows.length - rows.prompt_length
    ending = len(common_ending(rows, first_token(tokenizer)))
    own, trained = forward_flops(shape, rows.length, response), training_flops(shape, rows.length)
    alone, empty = (forward_flops(shape, response + more, response) for more in (1, ending))
    whole = {"loss": own, "neighbours": own, "IFD's ratio": own + alone, "empty prompt": own + empty}
    whole["total"] = own + empty
    whole |= {f"{many} {kind}": own * (1 + int(many)) for many in "14" for kind in _kinds(many)}
    return {name: flops / trained for name, flops in whole.items()}


def _kinds(many: str) -> tuple[str, str]:
    return ("other", "near other") if many == "1" else ("others", "near others")


def auc(score: Array, wrong: Array) -> float | None:
    if not wrong.any() or wrong.all():
        return None
    ranks = rankdata(score)[wrong]
    return float((ranks.mean() - (len(ranks) + 1) / 2) / (~wrong).sum())


def decided(scan: Scan, known: Known, seed: int) -> tuple[Array, dict[str, Any]]:
    """(n,) bool: the rows that the filter takes out, and what it says."""
    n, noise = len(known.rows), Noise()
    tokens = known.rows.length - known.rows.prompt_length
    some = np.random.default_rng(seed + 1).choice(n, min(n, noise.pairs), replace=False)
    pairs = {MATCHED: scan.loss[some], MISMATCHED: scan.others[0][some], UNPROMPTED: scan.empty[some]}
    features = {"loss": scan.loss, EMPTY_PROMPT_LOSS: scan.empty, RESPONSE_TOKENS: tokens}
    nobody = np.zeros(n, np.int32)
    references = {**pairs, PAIR_TOKENS: tokens[some]}
    pool = Pool(features, known.rows.length, nobody, np.ones(n, bool), references=references)
    verdict = noise.judge(pool, Budget(1))
    return ~verdict.keep, dict(verdict.figures)


def trained(model: Any, known: Known, steps: int, rng: np.random.Generator, optimizer: Any) -> None:
    model.train()
    for _ in range(steps):
        rows = rng.choice(len(known.rows), BATCH, replace=False)
        ids, labels = known.rows.tokens(rows), known.rows.labels(rows)
        longest = max(map(len, ids))
        given, asked = torch.zeros(BATCH, longest, dtype=torch.long), torch.full((BATCH, longest), -100)
        for place, (tokens, wanted) in enumerate(zip(ids, labels, strict=True)):
            given[place, : len(tokens)] = torch.as_tensor(np.array(tokens))
            asked[place, : len(wanted)] = torch.as_tensor(np.array(wanted))
        model(input_ids=given, labels=asked).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def lines_of(pool: Path, asked: argparse.Namespace, missing: list[int]) -> Iterator[dict[str, Any]]:
    """A line for each of the steps."""
    torch.manual_seed(asked.seed)
    tokenizer = run.load_tokenizer(asked.model)
    model = AutoModelForCausalLM.from_pretrained(
        asked.model, dtype=torch.float32, attn_implementation="eager"
    )
    known = Known.of(pool, tokenizer, asked.rows, asked.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=asked.learning_rate)
    rng, before = np.random.default_rng(asked.seed), 0
    tokens = known.rows.length - known.rows.prompt_length
    for step in missing:
        trained(model, known, step - before, rng, optimizer)
        before = step
        scan = scanned(model.eval(), tokenizer, known, asked.autocast, asked.seed)
        scores, (flagged, figures) = scores_of(scan, tokens), decided(scan, known, asked.seed)
        plain = scores["IFD's ratio"] >= 0.9
        yield {
            "pool": pool.name,
            "model": Path(asked.model).name,
            "step": step,
            "seed": asked.seed,
            "rows": len(known.rows),
            "wrong": int(known.wrong.sum()),
            "auc": {name: auc(score, known.wrong) for name, score in scores.items()},
            "cost": costs_of(model, tokenizer, known),
            "flagged": _shares(flagged, known.wrong),
            "flagged_by_ratio_0.9": _shares(plain, known.wrong),
            **figures,
        }


def _shares(flagged: Array, wrong: Array) -> dict[str, float | None]:
    return {
        "right": float(flagged[~wrong].mean()),
        "wrong": float(flagged[wrong].mean()) if wrong.any() else None,
    }


def missed(line: dict[str, Any]) -> list[str]:
    """Targets that a line of step 0 misses. A wrong option is well formed: `choice` has none but the cost."""
    found, flagged, told = [], line["flagged"], f"{line['pool']}, step {line['step']}"
    least = next((least for name, least in AUCS.items() if line["pool"].startswith(name)), None)
    if least is not None and line["auc"]["total"] < least:
        found.append(f"{told}: AUC {line['auc']['total']:.3f}, not {least}")
    if least is not None and (flagged["wrong"] < WRONG or flagged["right"] > RIGHT):
        found.append(f"{told}: flagged {flagged['wrong']:.1%} of wrong, {flagged['right']:.1%} of right rows")
    if not line["wrong"] and flagged["right"] > CLEAN:
        found.append(f"{told}: {flagged['right']:.1%} of a clean pool flagged, not at most {CLEAN:.0%}")
    if line["cost"]["total"] > COST:
        found.append(f"{told}: a scan costs {line['cost']['total']:.2f} of training on the rows, not {COST}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="model folder; left out, the playground's")
    parser.add_argument("--data", default=".", help="the folder with the pools' folders")
    parser.add_argument("--pools", default=POOLS, help="as in quality.py, parted by commas")
    parser.add_argument("--characters", type=int, default=300, help="of a row at most; 0 = all rows")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--steps", default="0", help="0,60: before training and after 60 steps")
    parser.add_argument("--seed", type=int, default=10)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--autocast", choices=["bfloat16"], default=None)
    parser.add_argument("--out", type=Path, default=Path("results/noise.jsonl"))
    parser.add_argument("--quick", action="store_true", help="made pools, two scans: under a minute")
    parser.add_argument("--check", action="store_true", help="exit 1 unless step 0 meets the targets")
    asked = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    run.quiet()
    with tempfile.TemporaryDirectory() as folder:
        if asked.quick:
            asked.pools, asked.steps, asked.rows, asked.learning_rate = QUICK, "0,150", 300, 1e-3
            asked.characters, asked.out = 0, Path(folder) / "noise.jsonl"
        misses = [miss for line in measured(asked, folder) for miss in missed(line) if not line["step"]]
    for miss in misses if asked.check else []:
        print(f"missed: {miss}")
    return 1 if misses and asked.check else 0


def measured(asked: argparse.Namespace, folder: str) -> Iterator[dict[str, Any]]:
    """Every pool's lines, those that are in --out already as they are there."""
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    kept = [json.loads(line) for line in asked.out.read_text().splitlines()] if asked.out.exists() else []
    steps = [int(step) for step in asked.steps.split(",")]
    for name in asked.pools.split(","):
        pool, asked.model = _place(name, asked, folder)
        here = {"pool": pool.name, "model": Path(asked.model).name, "seed": asked.seed}
        there = {one["step"]: one for one in kept if all(one[key] == value for key, value in here.items())}
        lines = dict(there)
        for line in lines_of(pool, asked, [step for step in steps if step not in there]):
            lines[line["step"]] = line
            with asked.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        for step in steps:
            show(lines[step])
            yield lines[step]


def _place(name: str, asked: argparse.Namespace, folder: str) -> tuple[Path, str]:
    kind, colon, rest = name.rpartition(":")
    if kind != "made":
        name = f"{kind}{colon}{Path(asked.data) / rest}" + (
            f";characters={asked.characters}" if asked.characters else ""
        )
    pool, model = pool_and_model(name, asked.model, folder, Path(folder))
    return Path(pool), model


def show(line: dict[str, Any]) -> None:
    def percent(value: float | None) -> str:
        return "-" if value is None else f"{value:.1%}"

    on = "on" if line.get("noise_on") else "off"
    print(f"{line['pool']}, {line['model']}, step {line['step']}: {line['rows']} rows, {line['wrong']} wrong")
    for name, value in line["auc"].items():
        told = "-" if value is None else f"{value:.3f}"
        print(f"  {name:<14} AUC {told:>5}   cost {line['cost'][name]:.2f}")
    for name in ("flagged", "flagged_by_ratio_0.9"):
        print(
            f"  {name}: {percent(line[name]['wrong'])} of wrong, {percent(line[name]['right'])} of right rows"
        )
    print(
        f"  noise detection is {on}, told {line.get('noise_told')}, share {line.get('noise_share')}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())

"""Which responses are wrong? Scores of right and wrong rows, and what the filter `noise` makes of them.

    python bench/noise.py --quick
    python bench/noise.py --model FOLDER --data FOLDER --out results/noise.jsonl --check

--data holds the pools' folders. Of each pool --rows rows are drawn, copies left out, and measured before any
training and after each of --steps steps of 16 random rows, right and wrong ones, with LoRA of rank 16, or of
all weights with --full:

    loss                of the response after its own prompt
    IFD's ratio         loss over that after the bos token alone (Li et al., NAACL 2024)
    empty prompt        loss over that after what all prompts end with
    total               nats of the whole response that its prompt saves
    noise score         log of `empty prompt`, times the root of the response's tokens: that of `contrast.py`
    1, 4 others         loss over the mean loss after so many other rows' prompts, drawn at random
    1, 4 near others    the same of the nearest prompts by embedding; with --near
    neighbours          loss over the median loss of the ten nearest prompts' rows

A pool without wrong rows is measured for the filter alone.

AUC: how often a wrong row scores higher than a right one. Cost: FLOPs of a pool's scan over those of training
on it once, the loss itself included. Flagged: right and wrong rows that the filter takes out, no share being
given, the mean over DRAWS draws of the pairs that it measures, and with a plain cut of IFD's ratio at 0.9.
What was measured is kept in --scans and never measured again (noise_scan.py); --out is written anew from it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command import parser_of, tell_missed
from noise_scan import scans_of
from pools import below, pool_and_model
from scipy.stats import rankdata

from coretune import run
from coretune.filters.noise import Noise, scores
from coretune.ledger import ModelShape, forward_flops, training_flops
from coretune.types import (
    EMPTY_PROMPT_LOSS,
    MATCHED,
    MISMATCHED,
    PAIR_TOKENS,
    RESPONSE_TOKENS,
    UNPROMPTED,
    Array,
    Budget,
    NeighborGraph,
    Pool,
)

SHORT, LONG = ";characters=300", ";characters=700"  # dialogues are longer
POOLS = ",".join(
    [f"{name}{SHORT}" for name in ("mixed-dirty", "dirty:gsm8k", "choice-dirty")]
    + [f"dirty:dialogsum{LONG}"]
    + [f"{name}{SHORT}" for name in ("mixed-clean", "gsm8k", "choice-clean")]
    + [f"dialogsum{LONG}"]
)
QUICK = "made:rows=500,made:rows=500;wrong=0;copies=0"
AUCS = {"mixed": 0.97, "gsm8k": 0.95, "dialogsum": 0.95}  # at least, before any training
#: Flagged: at least, at most, at most; a scan's cost: at most.
WRONG, RIGHT, CLEAN, COST = 0.90, 0.03, 0.02, 0.55
SCORE, DRAWS = "noise score", 20
Scan = Mapping[str, Array]


def scores_of(scan: Scan) -> dict[str, Array]:
    tokens, loss = scan["length"] - scan["prompt_length"], scan["loss"]
    found = {
        "loss": loss,
        "IFD's ratio": loss / scan["unconditional"],
        "empty prompt": loss / scan["empty"],
        "total": tokens * (loss - scan["empty"]),
        SCORE: scores(_pool(scan, np.arange(2))),
        "neighbours": (loss + 0.02) / (np.median(loss[scan["neighbors"]], axis=1) + 0.02),
    }
    for name, kind in (("other", "others"), ("near other", "near")):
        if kind in scan:
            found[f"1 {name}"] = loss / scan[kind][0]
            found[f"4 {name}s"] = loss / scan[kind].mean(axis=0)
    return found


def costs_of(scan: Scan) -> dict[str, float]:
    """FLOPs of each score over those of training all weights on the rows once."""
    shape, length = ModelShape(**json.loads(str(scan["shape"]))), scan["length"]
    response = length - scan["prompt_length"]
    own, trained = forward_flops(shape, length, response), training_flops(shape, length)
    alone, empty = (forward_flops(shape, response + more, response) for more in (1, int(scan["ending"][0])))
    whole = {"loss": own, "neighbours": own, "IFD's ratio": own + alone, "empty prompt": own + empty}
    whole |= {"total": own + empty, SCORE: own + empty}
    whole |= dict.fromkeys(("1 other", "1 near other"), 2 * own)
    whole |= dict.fromkeys(("4 others", "4 near others"), 5 * own)
    return {name: flops / trained for name, flops in whole.items()}


def auc(score: Array, wrong: Array) -> float | None:
    if not wrong.any() or wrong.all():
        return None
    ranks = rankdata(score)[wrong]
    return float((ranks.mean() - (len(ranks) + 1) / 2) / (~wrong).sum())


def _pool(scan: Scan, pairs: Array) -> Pool:
    tokens, n = scan["length"] - scan["prompt_length"], len(scan["length"])
    known = {
        MATCHED: scan["loss"],
        MISMATCHED: scan["others"][0],
        UNPROMPTED: scan["empty"],
        PAIR_TOKENS: tokens,
    }
    features = {"loss": scan["loss"], EMPTY_PROMPT_LOSS: scan["empty"], RESPONSE_TOKENS: tokens}
    references = {name: value[pairs] for name, value in known.items()}
    no_vectors, ones = np.zeros((n, 0), np.float32), np.ones(scan["neighbors"].shape, np.float32)
    near = NeighborGraph(scan["neighbors"], ones, no_vectors)
    return Pool(
        features, scan["length"], np.zeros(n, np.int32), np.ones(n, bool), near, references=references
    )


def decided(scan: Scan, seed: int) -> dict[str, Any]:
    """Shares of right and wrong rows that the filter takes out, and how often it is on, over DRAWS draws."""
    n, noise, wrong = len(scan["length"]), Noise(), scan["wrong"]
    draws = [
        np.random.default_rng([seed, i]).choice(n, min(n, noise.pairs), replace=False) for i in range(DRAWS)
    ]
    verdicts = [noise.judge(_pool(scan, pairs), Budget(1)) for pairs in draws]
    shares = [_shares(~verdict.keep, wrong) for verdict in verdicts]
    said = [dict(verdict.figures) for verdict in verdicts]
    mean = {
        name: float(np.mean([one[name] for one in said])) for name in ("noise_on", "noise_auc", "noise_share")
    }
    flagged = {
        kind: None if shares[0][kind] is None else float(np.mean([share[kind] for share in shares]))
        for kind in shares[0]
    }
    return {"flagged": flagged, **mean}


def line_of(pool: Path, step: int, scan: Scan, asked: argparse.Namespace) -> dict[str, Any]:
    found = scores_of(scan)
    return {
        "pool": pool.name,
        "model": Path(asked.model).name,
        "tuning": "full" if asked.full else "lora16",
        "step": step,
        "seed": asked.seed,
        "rows": len(scan["length"]),
        "wrong": int(scan["wrong"].sum()),
        "auc": {name: auc(score, scan["wrong"]) for name, score in found.items()},
        "cost": costs_of(scan),
        **decided(scan, asked.seed),
        "flagged_by_ratio_0.9": _shares(found["IFD's ratio"] >= 0.9, scan["wrong"]),
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
    least = least if line["wrong"] else None
    if least is not None and line["auc"][SCORE] < least:
        found.append(f"{told}: AUC {line['auc'][SCORE]:.3f}, not {least}")
    if least is not None and (flagged["wrong"] < WRONG or flagged["right"] > RIGHT):
        found.append(f"{told}: flagged {flagged['wrong']:.1%} of wrong, {flagged['right']:.1%} of right rows")
    if not line["wrong"] and flagged["right"] > CLEAN:
        found.append(f"{told}: {flagged['right']:.1%} of a clean pool flagged, not at most {CLEAN:.0%}")
    if line["cost"][SCORE] > COST:
        found.append(f"{told}: a scan costs {line['cost'][SCORE]:.2f} of training on the rows, not {COST}")
    return found


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--model", help="model folder; left out, the playground's")
    parser.add_argument("--data", default=".", help="the folder with the pools' folders")
    parser.add_argument("--pools", default=POOLS, help="as in quality.py, parted by commas")
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--steps", default="0", help="0,60: before training and after 60 steps")
    parser.add_argument("--seed", type=int, default=10)
    parser.add_argument("--full", action="store_true", help="train all weights")
    parser.add_argument("--near", action="store_true", help="scores with other prompts that are near, too")
    parser.add_argument("--learning-rate", type=float, help="left out: 1e-3 with LoRA, 1e-4 without")
    parser.add_argument("--autocast", choices=["bfloat16"], default=None)
    parser.add_argument("--scans", type=Path, default=Path("runs/noise"), help="what was measured")
    parser.add_argument("--out", type=Path, default=Path("results/noise.jsonl"))
    parser.add_argument("--quick", action="store_true", help="made pools, two scans: under a minute")
    parser.add_argument("--check", action="store_true", help="exit 1 unless step 0 meets the targets")
    asked = parser.parse_args()
    asked.learning_rate = asked.learning_rate or (1e-4 if asked.full else 1e-3)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    run.quiet()
    with tempfile.TemporaryDirectory() as folder:
        if asked.quick:
            asked.pools, asked.steps, asked.rows, asked.learning_rate = QUICK, "0,150", 300, 1e-3
            asked.full, asked.near, asked.scans = True, True, Path(folder) / "scans"
            asked.out = Path(folder) / "noise.jsonl"
        misses = [miss for line in measured(asked, folder) for miss in missed(line) if not line["step"]]
    return tell_missed(misses, asked.check)


def measured(asked: argparse.Namespace, folder: str) -> Iterator[dict[str, Any]]:
    lines = []
    for name in asked.pools.split(","):
        place, asked.model = pool_and_model(below(asked.data, name), asked.model, folder, Path(folder))
        for step, scan in scans_of(Path(place), asked).items():
            lines.append(line_of(Path(place), step, scan, asked))
            show(lines[-1])
            yield lines[-1]
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


def show(line: dict[str, Any]) -> None:
    def percent(value: float | None) -> str:
        return "-" if value is None else f"{value:.1%}"

    print(f"{line['pool']}, {line['model']}, step {line['step']}: {line['rows']} rows, {line['wrong']} wrong")
    for name, value in line["auc"].items():
        told = "-" if value is None else f"{value:.3f}"
        print(f"  {name:<14} AUC {told:>5}   cost {line['cost'][name]:.2f}")
    for name in ("flagged", "flagged_by_ratio_0.9"):
        print(
            f"  {name}: {percent(line[name]['wrong'])} of wrong, {percent(line[name]['right'])} of right rows"
        )
    print(
        f"  noise detection is on in {line['noise_on']:.0%} of the draws, AUC {line['noise_auc']:.3f}, "
        f"share {line['noise_share']:.3f}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())

"""Who is taken for wrong? Neighbourhoods, and the clues of GRACE's suspicion, while a model is trained.

    python bench/suspicion.py --quick
    python bench/suspicion.py --pool FOLDER --model FOLDER --check

The model is trained on random rows, right and wrong ones. At some steps all rows are looked at:

    of a skill      of a row's ten nearest prompts, those of its skill, mean over skills; by the state at
                    the prompt's last token, and by the mean of its states (`prompt_embedding`)
    right, wrong    nats a token, medians; `mismatched` are rows with other rows' responses
    ratio alone     right rows (without copies) and wrong ones above 1.65 times their neighbours' median
    both            those that are a third of the way to the mismatched, too: GRACE's rule, which suspects
                    nobody where the mismatched cost little more than a row does
    AUC             how often a wrong row has more of it than a right one: the loss, the loss over the
                    neighbours' median, and the contrast: the loss over that of the same response after
                    another row's prompt, one that is answered otherwise
    contrast        right and wrong rows whose own prompt makes the response less than CONTRAST nats a token
                    likelier than the other one. Not a clue of GRACE's
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
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
from coretune.measure.mismatched import Mismatched
from coretune.measure.settings import MeasureSettings
from coretune.measure.signals import measurer
from coretune.neighbors.graph import build
from coretune.select.grace import Grace
from coretune.select.importance import clues, neighbour_consistency, tells
from coretune.training.sections import load_tokenizer
from coretune.types import MATCHED, MISMATCHED, Array, Pool

OF_A_SKILL, RIGHT, WRONG = 0.9, 0.05, 0.65  # at the last look: at least, at most, at least
BATCH = 16
HEADER = ("step", "of a skill: last", "mean", "right", "wrong", "mismatched", "ratio alone: right", "wrong")
HEADER += ("both: right", "wrong", "AUC: loss", "over neighbours", "contrast", "contrast: right", "wrong")
CONTRAST, DRAWN = 0.1, 4  # nats a token; other rows tried until one is answered otherwise


@dataclass(frozen=True)
class Known:
    """A pool's rows, and what its labels say of them."""

    rows: Corpus
    wrong: Array
    right: Array  # copies left out
    skill: Array

    @classmethod
    def of(cls, pool: Path, tokenizer: Any) -> Known:
        rows = Corpus.build(pool / "pool.jsonl", tokenizer, max_length=512, skip_bad_rows=True)
        kinds = labels_of(pool)
        kind = np.array([kinds[name] for name in rows.ids])
        assert rows.source is not None
        return cls(rows, kind == "wrong", kind == "clean", np.unique(rows.source, return_inverse=True)[1])


def trained(model: Any, known: Known, steps: int, rng: np.random.Generator, optimizer: Any) -> None:
    model.train()
    for _ in range(steps):
        rows = rng.choice(len(known.rows), BATCH, replace=False)
        ids, labels = known.rows.tokens(rows), known.rows.labels(rows)
        longest = max(map(len, ids))
        given = torch.zeros(BATCH, longest, dtype=torch.long)
        asked = torch.full((BATCH, longest), -100)
        for place, (tokens, wanted) in enumerate(zip(ids, labels, strict=True)):
            given[place, : len(tokens)] = torch.as_tensor(np.array(tokens))
            asked[place, : len(wanted)] = torch.as_tensor(np.array(wanted))
        model(input_ids=given, labels=asked).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def last_states(model: Any, known: Known) -> Array:
    """(n, d) float32 unit: the last hidden state at each prompt's last token."""
    states = []
    for i in range(len(known.rows)):
        prompt = torch.as_tensor(np.array(known.rows.tokens([i])[0])[: known.rows.prompt_length[i]])[None]
        with torch.no_grad():
            states.append(model.get_decoder()(input_ids=prompt).last_hidden_state[0, -1].numpy())
    found = np.stack(states)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def answered_otherwise(known: Known, seed: int) -> Mismatched:
    """Each row's response after another row's prompt, drawn anew where that one has the same response."""
    rng, n = np.random.default_rng(seed), len(known.rows)
    said = [
        np.asarray(ids)[start:].tobytes()
        for ids, start in zip(known.rows.tokens(np.arange(n)), known.rows.prompt_length, strict=True)
    ]
    prompts = rng.permutation(n)
    for _ in range(DRAWN):
        same = [row for row in range(n) if said[prompts[row]] == said[row]]
        prompts[same] = rng.integers(n, size=len(same))
    return Mismatched(known.rows, prompts, np.arange(n), int(known.rows.length.max()))


def auc(score: Array, known: Known) -> float:
    """Of wrong rows against right ones, copies left out."""
    wrong, right = score[known.wrong], score[known.right]
    if not len(wrong):
        return float("nan")
    ranks = rankdata(np.concatenate([wrong, right]))[: len(wrong)]
    return float((ranks.mean() - (len(wrong) + 1) / 2) / len(right))


def look(model: Any, known: Known, decoys: Mismatched, others: Mismatched, tokenizer: Any) -> list[float]:
    model.eval()
    ends = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
    settings = MeasureSettings()
    signals = ["loss", "prompt_embedding"]
    seen = measurer(model, known.rows, signals, settings, **ends)(np.arange(len(known.rows)))
    mismatched = measurer(model, decoys, ["loss"], settings, **ends)(np.arange(len(decoys)))["loss"]
    graph, loss = build(seen["prompt_embedding"], 10, seed=0), seen["loss"]
    n = len(loss)
    compared = {MISMATCHED: mismatched, MATCHED: loss[decoys.responses]}
    pool = Pool({"loss": loss}, np.ones(n), np.zeros(n), np.ones(n, bool), graph, compared)
    grace, found = Grace(), clues(pool)
    contrast = loss - measurer(model, others, ["loss"], settings, **ends)(np.arange(n))["loss"]
    over = -neighbour_consistency(pool)
    alone = found.contradicted(grace.loss_above, -np.inf)
    both = found.contradicted(grace.loss_above, grace.mismatch_above) & tells(pool, grace.tells_above)
    return [
        _of_a_skill(known, build(last_states(model, known), 10, seed=0).neighbors),
        _of_a_skill(known, graph.neighbors),
        float(np.median(loss[known.right])),
        float(np.median(loss[known.wrong])) if known.wrong.any() else float("nan"),
        float(np.median(mismatched)),
        *(_share(who, of) for who in (alone, both) for of in (known.right, known.wrong)),
        *(auc(score, known) for score in (loss, over, contrast)),
        *(_share(contrast > -CONTRAST, of) for of in (known.right, known.wrong)),
    ]


def _of_a_skill(known: Known, neighbors: Array) -> float:
    same = (known.skill[neighbors] == known.skill[:, None]).mean(axis=1)
    return float(np.mean([same[known.right & (known.skill == s)].mean() for s in np.unique(known.skill)]))


def _share(who: Array, of: Array) -> float:
    return float(who[of].mean()) if of.any() else float("nan")


def looks_of(pool: str, name: str, steps: list[int], seed: int, rate: float) -> list[list[float]]:
    torch.manual_seed(seed)
    tokenizer = load_tokenizer(name)
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    known = Known.of(Path(pool), tokenizer)
    decoys = Mismatched.of(known.rows, known.rows.length, Grace().mismatched, seed)
    others = answered_otherwise(known, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    rng = np.random.default_rng(seed)
    lines = []
    for before, step in zip([0, *steps], steps, strict=False):
        trained(model, known, step - before, rng, optimizer)
        lines.append([step, *look(model, known, decoys, others, tokenizer)])
    return lines


def missed(last: list[float]) -> list[str]:
    of_a_skill, right, wrong = last[2], last[8], last[9]
    said = []
    if of_a_skill < OF_A_SKILL:
        said.append(f"{of_a_skill:.2f} of a row's neighbours are of its skill, not {OF_A_SKILL}")
    if right > RIGHT:
        said.append(f"{right:.3f} of the right rows are contradicted, not at most {RIGHT}")
    if wrong < WRONG:
        said.append(f"{wrong:.2f} of the wrong rows are contradicted, not {WRONG}")
    return said


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pool", help="a folder, made:… or dirty:FOLDER; left out, the playground's")
    parser.add_argument("--model", help="model folder; left out, the playground's")
    parser.add_argument("--steps", default="25,50,100,200,350")
    parser.add_argument("--seed", type=int, default=10)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--quick", action="store_true", help="1,000 rows, two looks: under a minute")
    parser.add_argument("--check", action="store_true", help="exit 1 unless the last look meets the targets")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    run.quiet()
    if args.quick:
        args.pool, args.steps = "made:rows=1000", "25,150"
    with tempfile.TemporaryDirectory() as folder:
        pool, model = pool_and_model(args.pool, args.model, folder, Path(folder))
        steps = [int(step) for step in args.steps.split(",")]
        lines = looks_of(pool, model, steps, args.seed, args.learning_rate)
        about = f"{Path(pool).name}, {Path(model).name}, seed {args.seed}"
        print_table(lines, f"{about}: {BATCH} random rows a step at {args.learning_rate:g}")
    misses = missed(lines[-1]) if args.check else []
    for miss in misses:
        print(f"missed: {miss}")
    return 1 if misses else 0


def print_table(lines: list[list[float]], about: str) -> None:
    from rich.console import Console
    from rich.table import Table

    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    table = Table(title=f"{about}; {machine}")
    for name in HEADER:
        table.add_column(name, justify="right")
    for step, *figures in lines:
        shares = {*range(5, 9), 12, 13}
        shown = [f"{x:.1%}" if place in shares else f"{x:.2f}" for place, x in enumerate(figures)]
        table.add_row(f"{step:g}", *("-" if x in ("nan", "nan%") else x for x in shown))
    Console(width=190).print(table)


if __name__ == "__main__":
    sys.exit(main())

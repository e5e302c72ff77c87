"""How near do a few measurements and a graph come to measuring everything? GRACE beside the truth.

    python bench/frontier.py --quick                                            the playground, under a minute
    python bench/frontier.py --pool FOLDER --model FOLDER --seeds 10,11,12 --check

A training on random rows that change is recorded once a seed, with a measurement of every row every 25 steps
(bench/frontier_record.py). Each setting of the refresh is then played over the record without a model: it is
given the signals of the rows it plans and of no others, and is held against all of them, refresh by refresh.
Exact duplicates are measured once, as in a run. There is no cooldown: the signals alone decide.

    harvest       beside those measured, online signals since the last refresh, at no cost
    looks         tokens measured, of those of a measurement of everything (duplicates once)
    seconds       of the processor: plan, spread, mend, and with candidates choose, a refresh
    loss, norm    Spearman of the loss, of the gradient's norm, with the truth
    cosine, edges of the prompts' embeddings; share of the true graph's edges
    GRACE, λ=0.5, facility   share of the true coreset's texts; with half gradient norm; coverage alone
    F             of GRACE's coreset under the true values, in parts of that of the true coreset

"exact" are rows of comparison: the truth with noise in every signal, and the truth of the refresh before.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from command import parser_of, tell_missed
from frontier_record import Looks, recorded
from pools import pool_and_model

from coretune.comparing.compare import mean_se
from coretune.filters.duplicates import Duplicates
from coretune.filters.noise import Noise
from coretune.ledger import Ledger
from coretune.policies.approximation import compare, spearman
from coretune.policies.reuse import policy_of
from coretune.policies.update import update
from coretune.refresh import remeasured, select
from coretune.rounds.budget import parse_budget
from coretune.rounds.exact_duplicates import ExactDuplicates
from coretune.rounds.measurement import Measurement
from coretune.rounds.refresh_settings import AnchorRefresh
from coretune.rounds.schedule import CoresetConfig
from coretune.rounds.state import State
from coretune.rounds.transitions import empty_pool
from coretune.select.facility_location import FacilityLocation
from coretune.select.grace import Grace
from coretune.types import UNIT, Array, Coreset, Pool, Rows, Selector

SPEARMAN, OVERLAP, COST, SHARE = 0.9, 0.8, 0.1, 0.05  # at least, at least, at most, of the rows
SELECTORS: dict[str, Selector] = {
    "GRACE": Grace(),
    "λ=0.5": Grace(lambda_=0.5),
    "facility": FacilityLocation(),
}
BASE = AnchorRefresh(anchors="priority", propagate="delta", scores=("loss", "gradient_norm"))
COLUMNS = ("looks", "seconds", "loss", "norm", "cosine", "edges", *SELECTORS, "F")


@dataclass(frozen=True)
class Setting:
    """A refresh, how many measurements of the record are between two; whether there are online signals."""

    name: str
    refresh: AnchorRefresh
    every: int = 1
    harvest: bool = False


def settings() -> list[Setting]:
    """Which rows are measured and how it spreads; then what differs in one thing from the nearest of them."""
    fit = replace(BASE, beta=1.0, propagate="fit")
    random, chosen = replace(BASE, anchors="random"), replace(BASE, anchors="candidates")
    made = [
        Setting("priority, no propagation", replace(BASE, propagate="none")),
        Setting("priority, Eq. 21", replace(BASE, propagate="average")),
        Setting("priority, changes", BASE),
        Setting("priority, fit", replace(BASE, propagate="fit")),
        Setting("priority β 0, fit", replace(fit, beta=0.0)),
        Setting("priority β 1, no propagation", replace(fit, propagate="none")),
        Setting("priority β 1, changes", replace(fit, propagate="delta")),
        Setting("priority β 1, fit", fit),
        Setting("random, no propagation", replace(random, propagate="none")),
        Setting("random, changes", random),
        Setting("random, fit", replace(random, propagate="fit")),
        Setting("harvest, priority, changes", BASE, harvest=True),
        Setting("harvest, priority β 1, fit", fit, harvest=True),
        Setting("harvest, 0.01 anchors, β 1, fit", replace(fit, anchor_share=0.01), harvest=True),
        Setting("candidates, changes", chosen),
        Setting("candidates, fit", replace(chosen, propagate="fit")),
    ]
    for share in (0.01, 0.02, 0.065, 0.1, 0.2, 0.5):
        made.append(Setting(f"{share:.3g} anchors, β 1, fit", replace(fit, anchor_share=share)))
    return [
        *made,
        Setting("β 1, fit, no repair", replace(fit, repair="none")),
        Setting("β 1, fit, rebuild", replace(fit, repair="rebuild")),
        Setting("β 1, fit, k 5", replace(fit, k=5)),
        Setting("β 1, fit, k 20", replace(fit, k=20)),
        Setting("β 1, fit, graph of responses", replace(fit, embedding="response_embedding")),
        Setting("β 1, fit, every 50 steps", fit, every=2),
    ]


@dataclass(frozen=True)
class Truth:
    """What measuring everything at every refresh would know, and choose."""

    pools: list[Pool]
    chosen: list[dict[str, Coreset]]

    @classmethod
    def of(cls, refresh: AnchorRefresh, looks: Looks) -> Truth:
        everything = replace(refresh, anchors="all", repair="rebuild")
        pool, pools = empty_pool(looks.cost), []
        everyone = np.arange(pool.n)
        for number in range(len(looks.signals)):
            pool = update(everything, pool, everyone, looks.at(number, everyone), number)
            pools.append(replace(pool, references=looks.compared[number]))
        return cls(pools, [choices(pool) for pool in pools])


def choices(pool: Pool) -> dict[str, Coreset]:
    budget, rng = parse_budget("10%").resolve(pool), np.random.default_rng(0)
    return {name: selector.select(pool, budget, rng) for name, selector in SELECTORS.items()}


def replay(setting: Setting, looks: Looks, truth: Truth, seed: int) -> list[dict[str, float]]:
    """The figures of each refresh after the first measurement."""
    config = CoresetConfig(
        Grace(embedding=setting.refresh.embedding),
        setting.refresh,
        parse_budget("10%"),
        filters=(Duplicates(), Noise()),
        seed=seed,
    )
    twins, figures = ExactDuplicates(looks.first), []
    whole = looks.cost[twins.distinct(np.arange(len(looks.cost)))].sum()
    pool = empty_pool(looks.cost)
    nothing = Coreset(np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
    for number in range(0, len(looks.signals), setting.every):

        def measured(rows: Rows, number: int = number) -> Mapping[str, Array]:
            return looks.at(number, rows)

        references = partial(dict, looks.compared[number])
        shown = partial(tuple, looks.shown[number]) if setting.harvest else None
        measurement = Measurement(twins.sharing(measured), lambda rows: 0.0, references, shown, twins)
        ledger = Ledger()
        state = State(number, number - 1, number, pool, nothing)
        began = time.process_time()
        pool = refreshed(config, state, measurement, ledger)
        seconds = time.process_time() - began
        if number:
            cost = ledger.by_phase()["measurement"].tokens / whole
            paid = {"looks": cost, "seconds": seconds}
            figures.append(paid | beside(pool, choices(pool), truth, number, twins))
    return figures


def refreshed(config: CoresetConfig, state: State, measurement: Measurement, ledger: Ledger) -> Pool:
    """The pool as a refresh knows it before it selects."""
    choose = partial(select, config, round=state.round, ledger=ledger)
    policy = policy_of(config, state, measurement.online is not None, choose)
    before = measurement.with_references(state.pool, ledger) if policy.compares_anew else state.pool
    known = measurement.with_online(before, config.needs)
    return remeasured(config, replace(state, pool=before), known, policy, measurement, ledger)[0]


def beside(
    pool: Pool, chosen: Mapping[str, Coreset], truth: Truth, number: int, twins: ExactDuplicates
) -> dict[str, float]:
    """One pool and its coresets held against the truth of a moment. Of equal rows any is as good."""
    exact, found = truth.pools[number], {}
    for name, selector in SELECTORS.items():
        ours, true = (
            replace(c, indices=twins.first[c.indices]) for c in (chosen[name], truth.chosen[number][name])
        )
        value = selector.value if isinstance(selector, Grace) else None
        figures = compare(pool, exact, "loss", BASE.embedding, ours, true, value)
        found[name] = figures["coreset_share"]
        if name == "GRACE":
            norms = (p.feature("gradient_norm") for p in (pool, exact))
            found |= {"loss": figures["spearman"], "norm": spearman(*norms)}
            found |= {"cosine": figures["embedding_cosine"], "edges": figures["edge_recall"]}
            found["F"] = figures["value_ratio"]
    return found


def comparisons(looks: Looks, truth: Truth, seed: int) -> dict[str, list[dict[str, float]]]:
    """The truth with noise, and the truth of the refresh before."""
    twins, everyone = ExactDuplicates(looks.first), np.arange(len(looks.cost))
    found: dict[str, list[dict[str, float]]] = {}
    free = {"looks": 1.0, "seconds": float("nan")}
    for number in range(1, len(looks.signals)):
        before = truth.pools[number - 1]
        late = free | beside(before, truth.chosen[number - 1], truth, number, twins)
        found.setdefault("exact, of the refresh before", []).append(late)
        for level in (0.001, 0.01, 0.1):
            rng = np.random.default_rng([seed, number])
            fresh = noisy(looks.at(number, everyone), level, twins, rng)
            refresh = replace(BASE, anchors="all", repair="rebuild")
            pool = update(refresh, before, everyone, fresh, number)
            figures = free | beside(pool, choices(pool), truth, number, twins)
            found.setdefault(f"exact, {level:.1%} noise", []).append(figures)
    return found


def noisy(
    signals: Mapping[str, Array], level: float, twins: ExactDuplicates, rng: np.random.Generator
) -> dict[str, Array]:
    """Each number times 1 + `level` · normal; each vector plus a random one of `level` its length."""
    made = {}
    for name, value in signals.items():
        noise = rng.standard_normal(value.shape)[twins.first]  # equal rows stay equal
        if value.ndim == 1:
            made[name] = (value * np.exp(level * noise)).astype(np.float32)
            continue
        length = np.linalg.norm(value, axis=1, keepdims=True)
        moved = value + level * length * noise / np.sqrt(value.shape[1])
        if name.endswith(UNIT):
            moved /= np.linalg.norm(moved, axis=1, keepdims=True)
        made[name] = moved.astype(np.float32)
    return made


def play(asked: argparse.Namespace, seed: int) -> dict[str, dict[str, float]]:
    """Of one seed: setting -> figures, mean over its refreshes."""
    looks = recorded(asked, seed)
    truths: dict[tuple[int, str], Truth] = {}
    rows: dict[str, list[dict[str, float]]] = {}
    for setting in settings():
        if not any(part in setting.name for part in asked.settings.split(";")):
            continue
        key = (setting.refresh.k, setting.refresh.embedding)
        if key not in truths:
            truths[key] = Truth.of(setting.refresh, looks)
        rows[setting.name] = replay(setting, looks, truths[key], seed)
        print(f"seed {seed}: {setting.name}", file=sys.stderr, flush=True)
    usual = truths.get((BASE.k, BASE.embedding)) or Truth.of(BASE, looks)
    rows |= comparisons(looks, usual, seed)
    return {
        name: {column: float(np.mean([r[column] for r in found])) for column in COLUMNS}
        for name, found in rows.items()
    }


def print_table(results: list[dict[str, dict[str, float]]], title: str) -> None:
    """Mean over seeds; with several, ± the standard error for the two figures that have a target."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for column in ("setting", *COLUMNS):
        table.add_column(column, justify="left" if column == "setting" else "right", no_wrap=True)
    for name in results[0]:
        cells = []
        for column in COLUMNS:
            values = [result[name][column] for result in results]
            text = f"{np.mean(values):.3f}" if np.isfinite(values).all() else "-"
            if column in ("loss", "GRACE") and len(values) > 1:
                text += f" ± {mean_se(values)[1]:.3f}"
            cells.append(text)
        table.add_row(name, *cells)
    Console(width=160).print(table)


def missed(results: list[dict[str, dict[str, float]]]) -> list[str]:
    """Targets that no setting of 5 % anchors reaches at a tenth of the cost: the nearest one."""
    known = {s.name: s.refresh for s in settings() if s.name in results[0]}
    allowed = [n for n, r in known.items() if r.anchors in ("priority", "random") and r.anchor_share == SHARE]
    mean = {n: {c: float(np.mean([r[n][c] for r in results])) for c in COLUMNS} for n in allowed}
    mean = {name: row for name, row in mean.items() if row["looks"] <= COST}
    if not mean:
        return [f"no setting of {SHARE:.0%} anchors costs at most {COST:.0%} of measuring everything"]
    misses = []
    for column, what, least in (("loss", "Spearman of the loss", SPEARMAN), ("GRACE", "overlap", OVERLAP)):
        best = max(mean, key=lambda name: mean[name][column])
        if mean[best][column] < least:
            figure, looks = mean[best][column], mean[best]["looks"]
            misses.append(f"{what} {figure:.3f} at best ({best}, tokens {looks:.1%}), target ≥ {least}")
    return misses


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--pool", help="folder with pool.jsonl; left out, the playground's")
    parser.add_argument("--model", help="model folder; left out, the playground's")
    parser.add_argument("--seeds", default="10,11,12", help="settings are chosen on 0-2, reported on 10-14")
    parser.add_argument("--looks", type=int, default=8, help="at every row, 25 steps from one to the next")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--settings", default="", help="only those whose name holds one of these; by ;")
    parser.add_argument("--out", type=Path, default=Path("runs/frontier"))
    parser.add_argument("--quick", action="store_true", help="the playground, one seed, three looks")
    parser.add_argument("--check", action="store_true", help="exit 1 and name each target missed")
    asked = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        if asked.quick:
            asked.seeds, asked.looks, asked.out = "0", 3, Path(folder) / "looks"
            asked.settings = asked.settings or "priority, ;priority β 1, fit;random, fit"
        asked.pool, asked.model = pool_and_model(asked.pool, asked.model, folder)
        results = [play(asked, int(seed)) for seed in asked.seeds.split(",")]
    name = f"{Path(asked.pool).name}, {Path(asked.model).name}"
    print_table(results, f"{name}: {asked.looks} measurements, 25 steps apart, seeds {asked.seeds}")
    misses = missed(results)
    return tell_missed(misses, asked.check)


if __name__ == "__main__":
    sys.exit(main())

"""The cases of bench/scale.py about the graph: building it, mending it, a whole refresh.

Rows are synthetic prompts: 2,000 overlapping
topics in 64 groups, 32 directions in d = 256, noise on top.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scale_files import CASES as FILE_CASES
from scale_row import Case, Line, Measured, measured

from coretune.neighbors import cells, graph
from coretune.policies.anchors import planned
from coretune.policies.update import update
from coretune.rounds.refresh_settings import AnchorRefresh
from coretune.rounds.transitions import empty_pool
from coretune.select.grace import Grace
from coretune.types import Array, Budget, Pool, Rows

K, WIDTH = 10, 256
SIZES, QUICK = (10_000, 100_000, 1_000_000), (2_000, 10_000)
WHAT = f"graph, {WIDTH} dimensions, k {K}"
REFRESH = AnchorRefresh(anchors="priority")
JUDGED = 300  # rows searched exactly to see what the lists hold
COMPARED = {
    "mismatched_loss": np.linspace(1, 3, 32, dtype=np.float32),
    "matched_loss": np.zeros(1, np.float32),
}


def prompts(n: int, seed: int = 0) -> Array:
    """(n, WIDTH) float32, rows of length 1."""
    rng = np.random.default_rng([seed, 7])
    groups = rng.normal(size=(64, 32)).astype(np.float32)
    topics = groups[rng.integers(64, size=2000)] + 0.7 * rng.standard_normal((2000, 32), np.float32)
    directions = rng.standard_normal((32, WIDTH), np.float32) / np.float32(np.sqrt(32))
    rows = np.empty((n, WIDTH), np.float32)
    for start in range(0, n, 65_536):
        m = min(65_536, n - start)
        topic = topics[rng.integers(2000, size=m)] + 0.8 * rng.standard_normal((m, 32), np.float32)
        rows[start : start + m] = topic @ directions + 0.1 * rng.standard_normal((m, WIDTH), np.float32)
        rows[start : start + m] /= np.linalg.norm(rows[start : start + m], axis=1, keepdims=True)
    return rows


def compiled() -> None:
    """Numba's compiling is no part of what is measured: once a machine, then read from the cache."""
    rows = prompts(3000)
    moved = rows.copy()
    moved[:30] = rows[30:60]
    exact, cells.EXACT_ROWS = cells.EXACT_ROWS, 1000
    made = graph.build(rows, K, seed=0)
    graph.repair(made, moved, np.arange(30))
    cells.EXACT_ROWS = exact
    graph.symmetric_csr(made)


def building(quick: bool) -> list[Line]:
    compiled()
    lines = []
    for n in QUICK if quick else SIZES:
        rows = prompts(n)
        ours = measured(partial(graph.build, rows, K, seed=0))
        found = graph.recall(ours.result, rows, np.random.default_rng(1), JUDGED)
        targets = (("recall at least 0.95", found >= 0.95),)
        if n == 1_000_000:
            targets += (
                ("at most 6 min", ours.seconds <= 360),
                ("at most 6 min of processor", ours.busy <= 360),
            )
        lines.append(graph_line(ours, n, found, targets))
    return lines


def graph_line(m: Measured, n: int, found: float, targets: Any, who: str = "coretune") -> Line:
    return Line(WHAT, who, n, m.seconds, m.busy, m.gib, f"recall {found:.3f}", targets=tuple(targets))


def drift(rows: Array, share: float, rng: np.random.Generator) -> tuple[Rows, Array]:
    """Some rows, and all rows after those went a third of the way to another row."""
    moved = np.sort(rng.choice(len(rows), int(share * len(rows)), replace=False))
    after = rows.copy()
    after[moved] += 0.5 * rows[rng.integers(len(rows), size=len(moved))]
    after[moved] /= np.linalg.norm(after[moved], axis=1, keepdims=True)
    return moved, after


def mending(quick: bool) -> list[Line]:
    """Repair of 1 % drifted rows, the second of two as in a run, beside a rebuild; then: are its lists right?

    Judged are the lists of drifted rows, of rows that listed one of them before or after, and of any rows,
    against exact searches on the same embedding; and those of the rebuild on the same rows.
    """
    compiled()
    lines = []
    for n in QUICK if quick else SIZES:
        rng = np.random.default_rng(3)
        rows = prompts(n)
        first = graph.build(rows, K, seed=0)
        moved, rows = drift(rows, 0.01, rng)
        first = graph.repair(first, rows, moved)
        moved, rows = drift(rows, 0.01, rng)
        mended = measured(partial(graph.repair, first, rows, moved))
        rebuilt = measured(partial(graph.build, rows, K, seed=0))
        share = mended.busy / rebuilt.busy
        lists = (mended.result.neighbors, rebuilt.result.neighbors)
        beside = np.flatnonzero(
            np.isin(first.neighbors, moved).any(axis=1) | np.isin(lists[0], moved).any(axis=1)
        )
        told, lost = [], 0.0
        for name, group in (("drifted", moved), ("beside", beside), ("any", np.arange(n))):
            judged = np.sort(rng.choice(group, min(len(group), JUDGED), replace=False))
            truth = cells.exact_neighbours(rows, np.arange(n), judged, K)
            ours, theirs = (graph.edge_recall(listed[judged], truth, rows, judged) for listed in lists)
            lost = max(lost, theirs - ours)
            told.append(f"{name} {ours:.3f} (rebuilt {theirs:.3f})")
        targets = [("recall a rebuild's but for 0.01", lost <= 0.01)]
        if n == 1_000_000:
            targets.append(("at most 3 % of a rebuild", share <= 0.03))
        worth = f"{share:.1%} of a rebuild; recall {', '.join(told)}"
        figures = (mended.seconds, mended.busy, mended.gib, worth)
        lines.append(Line("repair, 1 % drifted", "coretune", n, *figures, targets=tuple(targets)))
    return lines


def refreshing(quick: bool) -> list[Line]:
    """Plan, update by 5 % anchors (priority), choose 5 % by GRACE; measuring is not in it.

    Signals: prompt and response embedding, 256 numbers each, and the loss. Anchors
    come back turned by about 14°, every fifth by twice that, so that 1 % of the pool drifted.
    """
    compiled()
    _refresh(*_before_a_refresh(2_000), {})
    lines = []
    for n in QUICK if quick else SIZES:
        steps: dict[str, Measured] = {}
        pool, anchors, news = _before_a_refresh(n)
        whole = measured(partial(_refresh, pool, anchors, news, steps))
        worth = ", ".join(f"{name} {step.busy:.1f}" for name, step in steps.items())
        targets = (("at most 20 s of processor", whole.busy <= 20),) if n == 1_000_000 else ()
        figures = (whole.seconds, whole.busy, whole.gib, f"of them {worth}")
        what = "refresh + selection, 5 % anchors, 5 % chosen"
        lines.append(Line(what, "coretune", n, *figures, targets=targets))
    return lines


def _before_a_refresh(n: int) -> tuple[Pool, Rows, dict[str, Array]]:
    """A pool that was measured once, the rows to measure again, and what that measurement gives."""
    rng = np.random.default_rng(0)
    fresh = {"prompt_embedding": prompts(n), "response_embedding": prompts(n, 1)}
    fresh["loss"] = rng.random(n, np.float32)
    pool = update(REFRESH, empty_pool(np.full(n, 100)), np.arange(n), fresh, 0)
    pool = replace(pool, references=COMPARED)
    anchors = planned(REFRESH, pool, 1, rng)
    news = {name: values[anchors] for name, values in fresh.items()}
    for name in ("prompt_embedding", "response_embedding"):
        share = np.where(np.arange(len(anchors)) % 5, np.float32(0.25), np.float32(0.5))[:, None]
        turned = news[name] + share * fresh[name][rng.integers(n, size=len(anchors))]
        news[name] = turned / np.linalg.norm(turned, axis=1, keepdims=True)
    return pool, anchors, news


def _refresh(pool: Pool, anchors: Rows, news: dict[str, Array], steps: dict[str, Measured]) -> None:
    steps["plan"] = measured(partial(planned, REFRESH, pool, 1, np.random.default_rng(0)))
    steps["update"] = measured(partial(update, REFRESH, pool, anchors, news, 1))
    budget = Budget(pool.n // 20, "rows")
    now = steps["update"].result
    steps["select"] = measured(partial(Grace().select, now, budget, np.random.default_rng(0)))


def given(quick: bool) -> list[Line]:
    """One selection by GRACE over signals on disk, as a run's first measurement leaves them: the graph,
    its figures, the choice. Memory is what `coretune select` holds beside its data and model.
    """
    compiled()
    lines = []
    for n in QUICK if quick else SIZES:
        with tempfile.TemporaryDirectory() as folder:
            _write_signals(Path(folder), n)
            took = measured(partial(_select_given, Path(folder), n))
        targets = (("at most 8 GiB", took.gib <= 8),) if n == 1_000_000 else ()
        figures = (took.seconds, took.busy, took.gib, took.result)
        lines.append(Line("graph + selection from disk", "coretune", n, *figures, targets=targets))
    return lines


def _write_signals(folder: Path, n: int) -> None:
    np.save(folder / "prompt_embedding.npy", prompts(n))
    np.save(folder / "response_embedding.npy", prompts(n, 1))
    rng = np.random.default_rng(0)
    np.save(folder / "loss.npy", rng.random(n, np.float32))


def _select_given(folder: Path, n: int) -> str:
    fresh = {path.stem: np.load(path, mmap_mode="c") for path in sorted(folder.glob("*.npy"))}
    pool = update(REFRESH, empty_pool(np.full(n, 100)), np.arange(n), fresh, 0)
    pool = replace(pool, references=COMPARED)
    chosen = Grace().select(pool, Budget(n // 20, "rows"), np.random.default_rng(0))
    return f"{len(chosen.indices):,} rows chosen"


CASES: tuple[Case, ...] = (
    Case("graph", building, long=True),
    Case("repair", mending, long=True),
    Case("refresh", refreshing, long=True),
    Case("given", given, long=True),
    *FILE_CASES,
)

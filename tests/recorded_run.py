"""Run directories without a run: a pool of made-up rows, recorded as the trainer records one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from coretune.ledger import Ledger, Round
from coretune.neighbors.graph import build
from coretune.recording import audit, run_record
from coretune.recording.run_files import CONFIG, LEDGER, SELECTION
from coretune.rounds.state import State
from coretune.types import Array, Coreset, NeighborGraph, Pool, Rows

EMBEDDING = "prompt_embedding"
WORDS = ("count", "sort", "reverse", "first", "last", "add", "longest", "repeat")


@dataclass(frozen=True)
class FakeRows:
    """A `PoolRows` whose tokens are the characters of its texts."""

    texts: list[tuple[str, str]]
    source: Array | None

    @property
    def ids(self) -> list[str]:
        return [f"row-{row}" for row in range(len(self.texts))]

    @property
    def prompt_length(self) -> Array:
        return np.array([len(prompt) for prompt, _ in self.texts])

    @property
    def length(self) -> Array:
        return np.array([len(prompt) + len(response) for prompt, response in self.texts])

    @property
    def response_length(self) -> Array:
        return self.length - self.prompt_length

    def labels(self, rows: Rows) -> list[Array]:
        return self.tokens(rows)

    def tokens(self, rows: Rows) -> list[Array]:
        return [np.array([ord(letter) for letter in "".join(self.texts[row])]) for row in rows]


def decode(tokens: list[list[int]]) -> list[str]:
    return ["".join(map(chr, row)) for row in tokens]


def fake_rows(n: int, seed: int = 0, sources: bool = True) -> FakeRows:
    rng = np.random.default_rng(seed)
    kinds = rng.integers(len(WORDS), size=n)
    texts = [(f"{WORDS[kind]} these things: {row}", f"answer {row % 97}") for row, kind in enumerate(kinds)]
    source = np.array([WORDS[kind] for kind in kinds], dtype=object) if sources else None
    return FakeRows(texts, source)


def fake_pool(rows: FakeRows, seed: int = 0, k: int = 4, graph: bool = True) -> Pool:
    """Rows of one source lie together; every tenth row is a copy of the one before."""
    rng = np.random.default_rng(seed)
    n = len(rows.texts)
    kinds = [prompt.split()[0] for prompt, _ in rows.texts]
    centres = {kind: rng.standard_normal(8) for kind in dict.fromkeys((*WORDS, *kinds))}
    embedding = np.stack([centres[kind] for kind in kinds]) + 0.4 * rng.standard_normal((n, 8))
    embedding[10::10] = embedding[9:-1:10]
    embedding = (embedding / np.linalg.norm(embedding, axis=1, keepdims=True)).astype(np.float32)
    return Pool(
        features={EMBEDDING: embedding} if graph else {},
        cost=rows.length,
        measured_at=np.full(n, -1, np.int32),
        usable=np.arange(n) != 3,
        graph=_graph(embedding, k, rng) if graph else None,
    )


def _graph(embedding: Array, k: int, rng: np.random.Generator) -> NeighborGraph:
    """The true one of a small pool; of a large one, where only its size matters, one of any neighbours."""
    n = len(embedding)
    if n <= 5000:
        return build(embedding, k, seed=0)
    neighbors = ((np.arange(n)[:, None] + rng.integers(1, n, (n, k))) % n).astype(np.int32)
    similarity = np.sort(rng.random((n, k)).astype(np.float32))[:, ::-1].copy()
    return NeighborGraph(neighbors, similarity, embedding)


def fake_coreset(pool: Pool, size: int, round: int, components: bool = True) -> Coreset:
    rng = np.random.default_rng(round)
    chosen = rng.choice(np.flatnonzero(pool.usable), size, replace=False)
    reasons = {}
    if components:
        reasons = {name: rng.random(pool.n) for name in ("importance", "coverage", "noise")}
    taken = np.zeros(pool.n, np.int8)
    taken[np.setdiff1d(np.arange(0, pool.n, 7), chosen)] = 2 if components else 0
    gains = np.sort(rng.random(size))[::-1].copy()
    return Coreset(chosen, np.ones(size), gains, reasons, {}, ("duplicates", "noise"), taken)


def make_run(
    folder: Path, n: int = 60, rounds: tuple[int, ...] = (1, 3, 5), *, graph: bool = True, **options: Any
) -> Path:
    """A run directory of `rounds` selections of a quarter of the pool, a tenth of a large one.

    options: rows (a FakeRows), seed, predicted (as a ledger has it), config (what config.yaml holds beside
    round_steps), said (figures of the method; alpha and E are put beside them), others (rows of a large pool
    recorded beside the chosen)
    """
    rows = options.get("rows") or fake_rows(n)
    pool = fake_pool(rows, options.get("seed", 0), graph=graph)
    ledger, last = Ledger(), None
    for number, round in enumerate(rounds):
        measured_at = pool.measured_at.copy()
        measured_at[number::3] = round
        pool = Pool(pool.features, pool.cost, measured_at, pool.usable, pool.graph)
        coreset = fake_coreset(pool, max(1, pool.n // (4 if pool.n < 5000 else 10)), round, components=graph)
        state = State(round, round, number + 1, pool, coreset)
        others = options.get("others", 10_000)
        run_record.record(folder, state, rows, decode, embedding=EMBEDDING, others=others, seed=0)
        same = None if last is None else float(np.isin(coreset.indices, last).mean())
        figures = {"spearman": 0.9, "coreset_share": 0.8} if number else {}
        said = {**options["said"], "alpha": 0.25, "E": 1.5 + number} if "said" in options else {}
        if graph and coreset.filtered is not None:
            taken = {"duplicates": 0, "noise": int((coreset.filtered == 2).sum())}
            said |= {f"filtered_{name}": many for name, many in taken.items()}
        ledger.add_round(Round(round, pool.n // 3, len(coreset.indices), 0.5, same, figures, said))
        last = coreset.indices
    ledger.add("training", seconds=3, rows=100, tokens=1000, flops=6e9)
    ledger.add("measurement", seconds=2, rows=60, tokens=600, flops=2e9)
    ledger.add("selection", seconds=0.5)
    ledger.predicted = options.get("predicted")
    ledger.write(folder / LEDGER)
    config = {"coreset": {"method": "grace"}, "provenance": {"round_steps": 10}, **options.get("config", {})}
    (folder / CONFIG).write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder


def recorded_lines(folder: Path, id: str) -> list[dict[str, Any]]:
    """What selection.parquet says of a row, a dict a selection."""
    return [line for line in audit.read(folder / SELECTION).to_pylist() if line["id"] == id]

"""The exam every selector and every filter sits, ours and yours: `check_selector(MySelector())`,
`check_filter(MyFilter())`; and pools to sit it on."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from coretune.filters import chain
from coretune.recording.audit import FIXED
from coretune.types import (
    EMPTY_PROMPT_LOSS,
    EQUAL_TO,
    FOLDED_TO,
    RESPONSE_TOKENS,
    SHARE,
    TARGET_LOSS,
    TARGET_OF,
    TARGET_ROW,
    TARGET_SIMILARITY,
    TRAINED_AT,
    TRAINED_TIMES,
    AlongGraph,
    Array,
    Budget,
    Coreset,
    Filter,
    NeighborGraph,
    Pool,
    ReadsGraph,
    Selector,
)

EXAMPLES = 3  # of the target

#: What the engine keeps of its own accord, whatever a selector needs.
KEPT = ("previous_loss", TRAINED_AT, TRAINED_TIMES, EQUAL_TO, FOLDED_TO, RESPONSE_TOKENS, TARGET_ROW)


def synthetic_pool(
    n: int, d: int, seed: int, copies: float = 0.0, unusable: float = 0.0, neighbors: int = 5
) -> Pool:
    """A pool with every signal, clustered embeddings, an exact k-NN graph, losses to compare with and one
    target of EXAMPLES examples.

    It compares all pairs: n small.

    d          width of the embeddings and of the gradients
    copies     share of the rows that equal another row in everything
    unusable   share of the rows, at most n − 1 of them, that are unusable: NaN in every feature, no edge
    neighbors  k of the graph; lists end in -1 where the pool has fewer rows
    """
    rng = np.random.default_rng(seed)
    source = np.arange(n)
    copied = rng.choice(n, size=int(copies * n), replace=False)
    source[copied] = rng.choice(np.setdiff1d(source, copied), size=len(copied)) if len(copied) < n else 0
    features = {name: value[source] for name, value in _signals(rng, n, d).items()}
    usable = np.ones(n, dtype=bool)
    usable[rng.choice(n, size=min(int(unusable * n), n - 1), replace=False)] = False
    for value in features.values():
        value[~usable] = np.nan
    cost = rng.integers(5, 60, size=n)[source]
    features[RESPONSE_TOKENS] = np.maximum(cost // 2, 1).astype(np.int32)
    features[TARGET_ROW] = (np.arange(n) % 10 == 9).astype(np.int32)
    features[EQUAL_TO] = np.array([np.flatnonzero(source == each)[0] for each in source], np.int32)
    features[FOLDED_TO] = features[EQUAL_TO]
    return Pool(
        features=features,
        cost=cost,
        measured_at=np.zeros(n, dtype=np.int32),
        usable=usable,
        graph=_exact_graph(features["response_embedding"], usable, neighbors),
        references={
            "mismatched_loss": np.linspace(2, 6, 9, dtype=np.float32),
            "matched_loss": np.linspace(0, 2, 9, dtype=np.float32),
            "unprompted_loss": np.linspace(2, 6, 9, dtype=np.float32),
            "pair_tokens": np.full(9, 10),
            TARGET_OF: np.zeros(EXAMPLES, np.int64),
            SHARE: np.ones(1, np.float32),
        },
    )


def check_selector(selector: Selector, *, filters: Sequence[Filter] = (), seed: int = 0) -> None:
    """Raises AssertionError naming the case and the promise that is broken.

    filters  applied before it selects, as in `coreset.filters`

    Promises: indices distinct, in range, usable; exactly K rows for a budget of K rows, or fewer and a
    warning in the log "coretune" that has both numbers; never more tokens than a budget of tokens;
    weights >= 0, finite, mean 1; one finite gain a pick; each reason (n,); figures that JSON can hold,
    none NaN or infinite; the same coreset for the same seed; the pool left as it was; only features it
    names in `needs` are read, and the graph only where it is `AlongGraph` or a filter `ReadsGraph`; no row
    that a filter took out is chosen, and fewer rows than the budget asks for only with a warning that has
    both numbers.
    Cases: budgets from one row to all; copies, all rows equal, unusable rows holding NaN, fewer rows than
    neighbours.
    """
    _require(dataclasses.is_dataclass(selector), f"{type(selector).__name__} is no dataclass")
    _require(selector.__hash__ is not None, f"{type(selector).__name__} is not frozen")
    for case, pool in _cases(seed):
        unknown = set(selector.needs) - set(pool.features)
        _require(
            not unknown, f"needs {sorted(unknown)}, which are no signals; there are {sorted(pool.features)}"
        )
        needs = (*selector.needs, *(name for each in filters for name in each.needs))
        visible = _read_only(pool, needs, isinstance(selector, AlongGraph) or any(map(_reads_graph, filters)))
        for budget in _budgets(pool, bool(filters)):
            _examine(selector, filters, visible, budget, seed, f"{case}, {budget.amount} {budget.unit}")


def check_filter(filter: Filter, *, seed: int = 0) -> None:
    """Raises AssertionError naming the case and the promise that is broken.

    Promises: a frozen dataclass with `name` and `says`; keep (n,) bool; score (n,) float32, finite or NaN;
    figures that JSON can hold; the same verdict each time; the pool left as it was; only features it names in
    `needs` are read, and the graph only where it is `ReadsGraph`. Cases: as for selectors.
    """
    kind = type(filter).__name__
    _require(dataclasses.is_dataclass(filter), f"{kind} is no dataclass")
    _require(filter.__hash__ is not None, f"{kind} is not frozen")
    _require(bool(filter.name and filter.says), f"{kind} has no name, or does not say why")
    _require(filter.name not in FIXED.names, f"{kind} has the name of a column of the audit: {filter.name}")
    for case, pool in _cases(seed):
        unknown = set(filter.needs) - set(pool.features)
        _require(not unknown, f"needs {sorted(unknown)}, which are no signals")
        visible = _read_only(pool, filter.needs, _reads_graph(filter))
        for budget in _budgets(pool, True):
            _examine_filter(filter, visible, budget, f"{case}, {budget.amount} {budget.unit}")


def _examine_filter(filter: Filter, pool: Pool, budget: Budget, case: str) -> None:
    before = {name: value.copy() for name, value in _arrays(pool).items()}
    verdict, again = filter.judge(pool, budget), filter.judge(pool, budget)
    for name, value in _arrays(pool).items():
        _require(np.array_equal(value, before[name], equal_nan=True), f"{case}: it changed the pool's {name}")
    for name, value, dtype in (("keep", verdict.keep, np.bool_), ("score", verdict.score, np.float32)):
        right = value.shape == (pool.n,) and value.dtype == dtype
        _require(right, f"{case}: {name} is {value.dtype} {value.shape}, not {dtype.__name__} ({pool.n},)")
        same = np.array_equal(value, getattr(again, name), equal_nan=name == "score")
        _require(same, f"{case}: two judgements differ in {name}")
    _require(not np.isinf(verdict.score).any(), f"{case}: a score is infinite")
    _examine_figures(verdict.figures, case)


def _cases(seed: int) -> Iterator[tuple[str, Pool]]:
    yield "plain pool of 60", synthetic_pool(60, 8, seed)
    yield "half the rows copies", synthetic_pool(60, 8, seed, copies=0.5)
    yield "all rows equal", synthetic_pool(12, 4, seed, copies=1.0)
    yield "a third of the rows unusable", synthetic_pool(45, 8, seed, copies=0.2, unusable=0.34)
    yield "3 rows, 5 neighbours", synthetic_pool(3, 4, seed)
    yield "1 row", synthetic_pool(1, 4, seed)


def _budgets(pool: Pool, filtered: bool) -> Iterator[Budget]:
    """From one row to all; filtered: such that any row alone fits, since any may be left."""
    usable, cost = int(pool.usable.sum()), pool.cost[pool.usable]
    least = int(cost.max() if filtered else cost.min())
    for rows in sorted({1, (usable + 2) // 3, usable}):
        yield Budget(rows, "rows")
    for tokens in sorted({least, max(least, int(cost.sum()) // 3 + int(cost.min())), int(cost.sum())}):
        yield Budget(tokens, "tokens")


def _examine(
    selector: Selector, filters: Sequence[Filter], pool: Pool, budget: Budget, seed: int, case: str
) -> None:
    before = {name: value.copy() for name, value in _arrays(pool).items()}
    with _Warnings() as warnings:
        left = chain.apply(filters, pool, budget)
        coreset = left.noted(selector.select(left.pool, left.budget, np.random.default_rng([seed, 1])))
    if left.budget.amount < budget.amount:
        shrunk = f"{left.budget.amount} of the {budget.amount} {budget.unit}"
        _require(any(shrunk in text for text in warnings.texts), f"{case}: no warning says {shrunk!r}")
    for name, value in _arrays(pool).items():
        _require(np.array_equal(value, before[name], equal_nan=True), f"{case}: it changed the pool's {name}")
    _examine_rows(coreset, left.pool, left.budget, warnings.texts, case)
    _examine_worth(coreset, pool, case)
    again = selector.select(left.pool, left.budget, np.random.default_rng([seed, 1]))
    for name in ("indices", "weights", "gains"):
        same = np.array_equal(getattr(coreset, name), getattr(again, name))
        _require(same, f"{case}: two runs of one seed differ in {name}")


def _examine_rows(coreset: Coreset, pool: Pool, budget: Budget, warnings: list[str], case: str) -> None:
    rows = coreset.indices
    _require(
        rows.ndim == 1 and rows.dtype == np.int64,
        f"{case}: indices are {rows.dtype} {rows.shape}, not int64 (K,)",
    )
    _require(len(rows) > 0, f"{case}: nothing was chosen")
    _require(
        rows.min() >= 0 and rows.max() < pool.n, f"{case}: rows {rows.min()} to {rows.max()} of {pool.n}"
    )
    _require(
        len(np.unique(rows)) == len(rows),
        f"{case}: {len(rows)} rows, {len(np.unique(rows))} of them distinct",
    )
    _require(bool(pool.usable[rows].all()), f"{case}: {(~pool.usable[rows]).sum()} unusable rows were chosen")
    if budget.unit == "rows":
        short = f"{len(rows)} of the {budget.amount} rows"
        said = len(rows) < budget.amount and any(short in text for text in warnings)
        _require(
            len(rows) == budget.amount or said,
            f"{case}: {len(rows)} rows were chosen, and no warning says {short!r}",
        )
    else:
        tokens = int(pool.cost[rows].sum())
        _require(tokens <= budget.amount, f"{case}: {tokens} tokens were chosen")


def _examine_worth(coreset: Coreset, pool: Pool, case: str) -> None:
    shape = coreset.indices.shape
    for name, value in (("weights", coreset.weights), ("gains", coreset.gains)):
        _require(value.shape == shape, f"{case}: {name} have shape {value.shape}, the indices {shape}")
        _require(value.dtype == np.float64, f"{case}: {name} are {value.dtype}, not float64")
        _require(
            bool(np.isfinite(value).all()), f"{case}: {(~np.isfinite(value)).sum()} {name} are not finite"
        )
    _require(coreset.weights.min() >= 0, f"{case}: a weight of {coreset.weights.min()}")
    _require(abs(coreset.weights.mean() - 1) < 1e-9, f"{case}: mean weight {coreset.weights.mean()}, not 1")
    for name, value in coreset.reasons.items():
        _require(
            value.shape == (pool.n,), f"{case}: reason {name!r} has shape {value.shape}, not ({pool.n},)"
        )
        _require(name not in FIXED.names, f"{case}: reason {name!r} has the name of a column of the audit")
    _examine_figures(coreset.figures, case)


def _examine_figures(figures: Mapping[str, Any], case: str) -> None:
    for name, figure in figures.items():
        try:
            json.dumps(figure, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise AssertionError(f"{case}: figure {name!r} is not what JSON can hold: {error}") from None


def _require(kept: bool, message: str) -> None:
    if not kept:
        raise AssertionError(message)


class _Warnings(logging.Handler):
    """The texts of the warnings logged meanwhile."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())

    def __enter__(self) -> _Warnings:
        logging.getLogger("coretune").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("coretune").removeHandler(self)


def _signals(rng: np.random.Generator, n: int, d: int) -> dict[str, Array]:
    """Every signal a measurement can return, and what a refresh keeps beside them."""
    loss = rng.gamma(2.0, 1.0, size=n).astype(np.float32)
    other = rng.spawn(1)[0]  # a stream of its own: more signals do not change the pools of older tests
    trajectory, target = rng.spawn(2)
    first = {
        "loss": loss,
        "unconditional_loss": loss + rng.normal(0.5, 0.4, size=n).astype(np.float32),
        "previous_loss": np.where(rng.random(n) < 0.2, np.nan, loss + rng.normal(size=n)).astype(np.float32),
        "response_embedding": _clustered(rng, n, d),
        "prompt_embedding": _clustered(rng, n, d),
        "gradient_norm": rng.gamma(2.0, 1.0, size=n).astype(np.float32),
        "gradient": rng.gamma(2.0, 1.0, size=(n, 1)).astype(np.float32) * _clustered(rng, n, d),
        "head_gradient": rng.normal(size=(n, d)).astype(np.float32),
        "trajectory": _clustered(trajectory, n, 4 * d),
    }
    rng.normal(size=n)  # of a signal that is gone: what is drawn after it stays as it was
    return {
        **first,
        "target_cosine": np.repeat(rng.uniform(-1.0, 1.0, size=(n, 1)).astype(np.float32), EXAMPLES, axis=1),
        "trained_at": rng.integers(-1, 3, size=n).astype(np.float32),
        "kn_gradient": other.gamma(2.0, 1.0, size=(n, 1)).astype(np.float32) * _clustered(other, n, d),
        "trained_times": other.integers(0, 3, size=n).astype(np.float32),
        "if_gradient": other.gamma(2.0, 0.5, size=(n, 1)).astype(np.float32) * _clustered(other, n, d),
        EMPTY_PROMPT_LOSS: loss + other.normal(1.0, 0.6, size=n).astype(np.float32),
        TARGET_SIMILARITY: target.uniform(0.0, 1.0, size=(n, EXAMPLES)).astype(np.float32),
        "weighted_embedding": _clustered(target, n, d),
        TARGET_LOSS: (loss * target.uniform(0.5, 1.1, size=n)).astype(np.float32)[:, None],
    }


def _clustered(rng: np.random.Generator, n: int, d: int) -> Array:
    """(n, d) float32 unit rows around a few directions."""
    centers = rng.normal(size=(max(1, n // 10), d))
    rows = centers[rng.integers(len(centers), size=n)] + 0.5 * rng.normal(size=(n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _exact_graph(embedding: Array, usable: Array, k: int) -> NeighborGraph:
    n = len(embedding)
    unit = np.where(usable[:, None], embedding, 0.0).astype(np.float32)
    cosine = unit @ unit.T
    cosine[~usable] = -np.inf
    cosine[:, ~usable] = -np.inf
    np.fill_diagonal(cosine, -np.inf)
    neighbors = np.full((n, k), -1, dtype=np.int32)
    similarity = np.zeros((n, k), dtype=np.float32)
    nearest = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    found = np.take_along_axis(cosine, nearest, axis=1)
    neighbors[:, : nearest.shape[1]] = np.where(np.isfinite(found), nearest, -1)
    similarity[:, : nearest.shape[1]] = np.where(np.isfinite(found), found, 0.0)
    return NeighborGraph(neighbors, similarity, unit)


def _reads_graph(filter: Filter) -> bool:
    return isinstance(filter, ReadsGraph) and filter.reads_graph


def _read_only(pool: Pool, needs: tuple[str, ...], graph: bool) -> Pool:
    """The pool as the exam shows it: only what is needed, and nothing that can be written to."""
    features = {name: pool.features[name] for name in {*needs, *KEPT}}
    shown = dataclasses.replace(pool, features=features, graph=pool.graph if graph else None)
    for value in _arrays(shown).values():
        value.setflags(write=False)
    return shown


def _arrays(pool: Pool) -> dict[str, Array]:
    names = ("neighbors", "similarity") if pool.graph is not None else ()
    graph = {f"graph.{name}": getattr(pool.graph, name) for name in names}
    return {
        **pool.features,
        "cost": pool.cost,
        "measured_at": pool.measured_at,
        "usable": pool.usable,
        **graph,
    }

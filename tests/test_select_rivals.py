"""Each rival against its formula, written out slowly."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest

from coretune.neighbors.graph import symmetric_csr
from coretune.select.craig import Craig
from coretune.select.d2 import D2
from coretune.select.facility_location import FacilityLocation
from coretune.select.gradient_norm import GradientNorm
from coretune.select.ifd import Ifd
from coretune.select.kcenter import KCenter
from coretune.select.less import Less
from coretune.select.loss import Loss
from coretune.select.random import Random
from coretune.select.ranking import take_in_order
from coretune.testing import synthetic_pool
from coretune.types import Array, Budget, Pool, Selector

POOL = synthetic_pool(50, 6, 3, copies=0.2, unusable=0.2)
USABLE = np.flatnonzero(POOL.usable)
EIGHT = Budget(8)


def chosen(selector: Selector, pool: Pool = POOL, budget: Budget = EIGHT, seed: int = 0) -> list[int]:
    rows: list[int] = selector.select(pool, budget, np.random.default_rng(seed)).indices.tolist()
    return rows


@pytest.mark.parametrize(
    ("selector", "signal", "sign"),
    [
        (Loss(), "loss", 1),
        (Loss(highest=False), "loss", -1),
        (GradientNorm(), "gradient_norm", 1),
        (Less(), "target_cosine", 1),  # the same for all examples of the target
    ],
)
def test_rankings_take_the_top_rows_the_lower_of_equals_first(
    selector: Selector, signal: str, sign: int
) -> None:
    signals = POOL.features[signal].reshape(POOL.n, -1)[:, 0]
    worth = sign * signals
    assert chosen(selector) == sorted(USABLE.tolist(), key=lambda row: (-worth[row], row))[:8]
    coreset = selector.select(POOL, Budget(8), np.random.default_rng(0))
    assert coreset.gains.tolist() == worth[coreset.indices].tolist()
    assert np.array_equal(coreset.reasons[signal], signals, equal_nan=True)


def test_take_in_order_skips_what_no_longer_fits() -> None:
    cost = np.array([5, 9, 3, 4, 1])
    assert take_in_order(np.array([0, 1, 2, 3, 4]), cost, Budget(10, "tokens")).tolist() == [0, 2, 4]
    assert take_in_order(np.array([1, 0]), cost, Budget(9, "tokens")).tolist() == [1]
    assert take_in_order(np.array([3, 1, 0]), cost, Budget(2)).tolist() == [3, 1]


def test_random_draws_every_usable_row_alike_and_anew() -> None:
    draws = [chosen(Random(), seed=seed) for seed in range(600)]
    count = np.bincount(np.concatenate(draws), minlength=50)
    assert not count[~POOL.usable].any()
    expected = 600 * 8 / len(USABLE)
    assert (np.abs(count[USABLE] - expected) < 5 * np.sqrt(expected)).all()
    assert len({tuple(draw) for draw in draws}) == 600


def test_ifd_takes_the_highest_below_1_and_warns_beyond() -> None:
    log_ifd = POOL.features["loss"].astype(np.float64) - POOL.features["unconditional_loss"]
    below = [row for row in USABLE if log_ifd[row] < 0]
    order = sorted(below, key=lambda row: (-log_ifd[row], row))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert chosen(Ifd(), budget=Budget(len(below))) == order
    rest = sorted(set(USABLE) - set(below), key=lambda row: (log_ifd[row], row))
    assert len(rest) > 1
    with pytest.warns(UserWarning, match=rf"only {len(below)} usable .* 1 of the {len(below) + 1} chosen"):
        assert chosen(Ifd(), budget=Budget(len(below) + 1)) == order + rest[:1]


def test_kcenter_takes_the_farthest_row() -> None:
    embedding = POOL.features["response_embedding"]
    picks = chosen(KCenter(), budget=Budget(6))
    for position in range(1, 6):
        far = np.linalg.norm(embedding[USABLE][:, None] - embedding[picks[:position]][None], axis=2).min(
            axis=1
        )
        assert far[np.flatnonzero(picks[position] == USABLE)[0]] == pytest.approx(far.max(), abs=1e-3)
    assert {chosen(KCenter(), budget=Budget(1), seed=seed)[0] for seed in range(200)} == set(USABLE.tolist())


def test_kcenter_leaves_copies_for_last() -> None:
    embedding = POOL.features["response_embedding"][USABLE]
    distinct = len(np.unique(embedding, axis=0))
    picks = chosen(KCenter(), budget=Budget(distinct))
    assert len(np.unique(POOL.features["response_embedding"][picks], axis=0)) == distinct


def test_facility_location_of_a_complete_graph_is_the_dense_one() -> None:
    pool = synthetic_pool(30, 6, 5, neighbors=29)
    graph = FacilityLocation().select(pool, Budget(10), np.random.default_rng(0))
    dense = FacilityLocation(similarity="dense", embedding="response_embedding").select(
        pool, Budget(10), np.random.default_rng(0)
    )
    assert graph.indices.tolist() == dense.indices.tolist()
    assert graph.gains == pytest.approx(dense.gains, abs=1e-5)
    for reason in ("coverage", "covered"):
        assert graph.reasons[reason] == pytest.approx(dense.reasons[reason], abs=1e-5)


def test_facility_location_covers_the_pool_better_than_random_draws() -> None:
    graph = FacilityLocation().select(POOL, Budget(5), np.random.default_rng(0))
    assert graph.reasons["covered"][POOL.usable].mean() == pytest.approx(graph.gains.sum())
    embedding = POOL.features["response_embedding"][USABLE]
    cosine = np.maximum(0, embedding @ embedding.T)
    dense = FacilityLocation(similarity="dense", embedding="response_embedding").select(
        POOL, Budget(5), np.random.default_rng(0)
    )
    rng = np.random.default_rng(0)
    drawn = [cosine[:, rng.choice(len(USABLE), size=5, replace=False)].max(axis=1).mean() for _ in range(100)]
    assert dense.gains.sum() > np.quantile(drawn, 0.95)
    assert dense.gains.sum() >= (1 - 1 / np.e) * max(drawn)


def test_craig_weights_are_its_clusters_and_bound_the_gradient_error() -> None:
    coreset = Craig().select(POOL, Budget(8), np.random.default_rng(0))
    gradient = POOL.features["gradient"].astype(np.float64)
    far = np.linalg.norm(gradient[USABLE][:, None] - gradient[coreset.indices][None], axis=2)
    cluster = coreset.reasons["represents"][coreset.indices]
    assert cluster.sum() == len(USABLE)
    assert cluster == pytest.approx(coreset.weights * len(USABLE) / 8)
    assert cluster.tolist() == np.bincount(far.argmin(axis=1), minlength=8).tolist()
    error = np.linalg.norm(
        gradient[USABLE].sum(axis=0) - (cluster[:, None] * gradient[coreset.indices]).sum(axis=0)
    )
    assert error <= far.min(axis=1).sum() + 1e-6
    bound = 2 * np.linalg.norm(gradient[USABLE], axis=1).max()
    assert coreset.gains.sum() == pytest.approx(len(USABLE) * bound - far.min(axis=1).sum(), rel=1e-4)


@pytest.mark.parametrize("budget", [Budget(1), Budget(13), Budget(len(USABLE)), Budget(400, "tokens")])
@pytest.mark.parametrize("gamma", [0.3, 1.0, 3.0])
def test_d2_passes_messages_as_the_formula_says(budget: Budget, gamma: float) -> None:
    method = D2(gamma_forward=gamma, gamma_reverse=gamma)
    coreset = method.select(POOL, budget, np.random.default_rng(0))
    indices, gains = slow_d2(POOL, budget, gamma, coreset.reasons["difficulty"])
    assert coreset.indices.tolist() == indices
    assert coreset.gains == pytest.approx(gains)
    assert coreset.reasons["score"][indices] == pytest.approx(gains)


def slow_d2(pool: Pool, budget: Budget, gamma: float, difficulty: Array) -> tuple[list[int], list[float]]:
    assert pool.graph is not None
    indptr, indices, cosine = symmetric_csr(pool.graph)
    weight = np.exp(-gamma * np.sqrt(np.maximum(0.0, 2.0 - 2.0 * cosine.astype(np.float64))))
    edges = [(i, int(indices[e]), weight[e]) for i in range(pool.n) for e in range(indptr[i], indptr[i + 1])]
    message = np.zeros(pool.n)
    for i, j, weight in edges:
        message[i] += weight * difficulty[j]
    score = difficulty + message  # in this order: the scores of copies tie to the last bit or not at all
    price = pool.cost if budget.unit == "tokens" else np.ones_like(pool.cost)
    picked: list[int] = []
    gains: list[float] = []
    while True:
        left = budget.amount - price[picked].sum()
        rows = [i for i in USABLE if i not in picked and price[i] <= left]
        if not rows:
            return picked, gains
        top = rows[int(np.argmax(score[rows]))]
        picked.append(int(top))
        gains.append(float(score[top]))
        for i, j, weight in edges:
            if i == top and j not in picked:
                score[j] -= weight * score[top]


def test_d2_spreads_where_the_ranking_does_not() -> None:
    pool = synthetic_pool(60, 6, 1, copies=0.5)
    loss = pool.features["loss"].copy()
    top = pool.features["response_embedding"][loss.argmax()]
    loss[(pool.features["response_embedding"] == top).all(axis=1)] = 50.0
    pool = dataclasses.replace(pool, features={**pool.features, "loss": loss})
    distinct = [
        len(np.unique(pool.features["response_embedding"][chosen(method, pool, Budget(10))], axis=0))
        for method in (Loss(), D2())
    ]
    assert distinct[1] > distinct[0]

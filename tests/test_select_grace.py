from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from coretune.select.facility_location import FacilityLocation
from coretune.select.grace import Grace
from coretune.select.importance import scaled
from coretune.testing import synthetic_pool
from coretune.types import Budget, Coreset, Pool


def plain(**settings: object) -> Grace:
    """GRACE by its formula, every row worth the same to cover."""
    return Grace(**{"demand": "equal", "lambda_": 0.5, **settings})  # type: ignore[arg-type]


POOL = synthetic_pool(60, 6, 2, unusable=0.1)
USABLE = np.flatnonzero(POOL.usable)
NINE = Budget(9)


def selected(method: Grace, pool: Pool = POOL, budget: Budget = NINE) -> Coreset:
    return method.select(pool, budget, np.random.default_rng(0))


def test_lambda_1_takes_the_most_important() -> None:
    norm = POOL.features["gradient_norm"]
    coreset = selected(plain(lambda_=1.0))
    assert coreset.indices.tolist() == sorted(USABLE.tolist(), key=lambda row: -norm[row])[:9]
    assert not coreset.reasons["coverage"].any()


@pytest.mark.parametrize("similarity", ["graph", "dense"])
def test_lambda_0_is_facility_location(similarity: str) -> None:
    coreset = selected(plain(lambda_=0.0, similarity=similarity))
    location = FacilityLocation(similarity).select(POOL, Budget(9), np.random.default_rng(0))
    assert coreset.indices.tolist() == location.indices.tolist()
    assert coreset.gains == pytest.approx(location.gains)


@pytest.mark.parametrize("lambda_", [0.02, 0.5])
@pytest.mark.parametrize("budget", [Budget(9), Budget(300, "tokens")])
def test_the_gains_are_the_objective_of_the_formula(lambda_: float, budget: Budget) -> None:
    coreset = selected(plain(lambda_=lambda_, similarity="dense"), budget=budget)
    worth = scaled(POOL.features["gradient_norm"], POOL.usable)
    worth = worth / (9 if budget.unit == "rows" else 300 / POOL.cost[USABLE].mean())
    embedding = POOL.features["prompt_embedding"]
    cosine = np.maximum(0, embedding[USABLE] @ embedding[coreset.indices].T)
    for count in range(1, len(coreset.indices) + 1):
        importance = lambda_ * worth[coreset.indices[:count]].sum()
        coverage = (1 - lambda_) * cosine[:, :count].max(axis=1).mean()
        assert coreset.gains[:count].sum() == pytest.approx(importance + coverage, rel=1e-5)


def test_the_reasons_add_up_to_the_gains() -> None:
    coreset = selected(plain(lambda_=0.02))
    total = coreset.reasons["importance"] + coreset.reasons["coverage"]
    assert total[coreset.indices] == pytest.approx(coreset.gains)
    left_out = np.setdiff1d(USABLE, coreset.indices)
    assert total[left_out].max() <= coreset.gains.min()  # why they were left out
    assert coreset.reasons["covered"][coreset.indices].tolist() == [1.0] * 9
    assert not total[~POOL.usable].any()


def test_demand_leads_to_where_the_losses_are_high() -> None:
    """By the neighbours' median: neither a row's own loss counts, nor one loud neighbour."""
    losses = np.full(POOL.n, 0.5, np.float32)
    assert POOL.graph is not None
    centre = int(USABLE[0])
    losses[POOL.graph.neighbors[centre]] = 5.0
    pool = dataclasses.replace(POOL, features={**POOL.features, "loss": losses})
    around = [
        np.median([losses[j] for j in row if j >= 0 and POOL.usable[j]] or [losses[v]])
        for v, row in enumerate(POOL.graph.neighbors)
    ]
    demand = np.where(POOL.usable, np.array(around) + 0.02, 0)
    demand /= demand[USABLE].mean()
    embedding = POOL.features["prompt_embedding"]
    cosine = np.maximum(0, embedding[USABLE] @ embedding[USABLE].T) * demand[USABLE][:, None]
    chosen = selected(plain(lambda_=0.0, similarity="dense", demand="loss"), pool)
    assert chosen.indices[0] == USABLE[cosine.sum(axis=0).argmax()]
    assert chosen.gains[0] == pytest.approx(cosine.sum(axis=0).max() / len(USABLE), rel=1e-5)
    losses[centre] = 500.0  # alone in being wrong
    louder = selected(plain(lambda_=0.0, similarity="dense", demand="loss"), pool)
    assert louder.indices.tolist() == chosen.indices.tolist()


def test_the_order_of_the_rows_is_irrelevant() -> None:
    for method in (plain(lambda_=0.02), plain(importance="learnability")):
        rows = selected(method).indices
        order = np.random.default_rng(1).permutation(POOL.n)
        assert order[selected(method, reordered(POOL, order)).indices].tolist() == rows.tolist()


def reordered(pool: Pool, order: np.ndarray) -> Pool:
    assert pool.graph is not None
    listed = pool.graph.neighbors[order]
    return dataclasses.replace(
        pool,
        features={name: value[order] for name, value in pool.features.items()},
        cost=pool.cost[order],
        usable=pool.usable[order],
        graph=dataclasses.replace(
            pool.graph,
            neighbors=np.where(listed >= 0, np.argsort(order)[listed], -1).astype(np.int32),
            similarity=pool.graph.similarity[order],
        ),
    )


def test_copies_are_not_taken_twice_for_coverage() -> None:
    pool = synthetic_pool(60, 6, 0, copies=0.5)
    embedding = pool.features["response_embedding"]
    picks = selected(plain(lambda_=0.0), pool, Budget(20)).indices
    assert len(np.unique(embedding[picks], axis=0)) == 20


def test_regions_are_weighed_by_the_losses_that_stand() -> None:
    """Measurements since the refresh began change no region's worth."""
    loss = POOL.features["loss"]
    standing = np.where(POOL.usable, np.roll(loss, 1), np.nan)
    then = dataclasses.replace(POOL, features={**POOL.features, "loss": standing})
    now = dataclasses.replace(POOL, features={**POOL.features, "standing_loss": standing})
    method = plain(lambda_=0.0, demand="loss")
    usable_then = dataclasses.replace(then, usable=POOL.usable & np.isfinite(standing))
    usable_now = dataclasses.replace(now, usable=POOL.usable & np.isfinite(standing))
    assert selected(method, usable_now).indices.tolist() == selected(method, usable_then).indices.tolist()
    assert selected(method).indices.tolist() != selected(method, usable_now).indices.tolist()


def test_needs_names_what_its_settings_read() -> None:
    assert plain(lambda_=0.0).needs == ("prompt_embedding",)
    assert plain(lambda_=0.5).needs == ("gradient_norm", "prompt_embedding")
    assert plain(lambda_=0.0, demand="loss").needs == ("loss", "prompt_embedding")
    assert plain(lambda_=0.5, importance="learnability").needs == ("loss", "prompt_embedding")
    assert Grace().needs == ("loss", "prompt_embedding")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lambda_": 1.5}, "lambda 1.5 .*0 <= lambda <= 1"),
        ({"importance": "charm"}, "'charm'; there are gradient_norm"),
        ({"similarity": "hamming"}, "'hamming'; there are graph, dense"),
        ({"demand": "high"}, "'high' is unknown; there are loss, equal"),
    ],
)
def test_a_setting_out_of_range_is_an_error(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        selected(plain(**settings))

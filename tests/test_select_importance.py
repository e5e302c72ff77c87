from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from coretune.select.importance import IMPORTANCES, importance, scaled
from coretune.testing import KEPT, synthetic_pool
from coretune.types import Array, Pool

FEW = settings(deadline=None, max_examples=80)


@st.composite
def scores(draw: st.DrawFn) -> tuple[Array, Array]:
    """(raw, usable), with many equal scores, NaN on unusable rows, at least one usable."""
    raw = np.array(draw(st.lists(st.integers(-3, 3), min_size=1, max_size=30)), dtype=np.float64)
    usable = np.array(draw(st.lists(st.booleans(), min_size=len(raw), max_size=len(raw))))
    usable[draw(st.integers(0, len(raw) - 1))] = True
    return np.where(usable, raw, np.nan), usable


@given(scores())
@FEW
def test_scaled_is_the_mean_rank_in_0_to_1(case: tuple[Array, Array]) -> None:
    raw, usable = case
    result = scaled(raw, usable)
    if usable.sum() > 1:
        assert result[usable] == pytest.approx((rankdata(raw[usable]) - 1) / (usable.sum() - 1))
    else:
        assert result[usable].tolist() == [0.5]
    assert not result[~usable].any()


@given(scores())
@FEW
def test_scaled_depends_on_the_order_of_the_scores_only(case: tuple[Array, Array]) -> None:
    raw, usable = case
    assert scaled(np.exp(raw), usable).tolist() == scaled(raw, usable).tolist()


@pytest.mark.parametrize("name", IMPORTANCES)
def test_a_score_reads_what_it_needs_and_is_finite_on_usable_rows(name: str) -> None:
    pool = synthetic_pool(50, 4, 0, copies=0.2, unusable=0.3)
    needed = {key: pool.features[key] for key in (*IMPORTANCES[name].needs, *KEPT)}
    raw = IMPORTANCES[name].score(dataclasses.replace(pool, features=needed))
    assert raw.shape == (50,)
    assert raw.dtype == np.float64
    assert np.isfinite(raw[pool.usable]).all()


@pytest.mark.parametrize("name", IMPORTANCES)
def test_a_score_follows_its_rows(name: str) -> None:
    pool = synthetic_pool(40, 4, 0, unusable=0.2)
    order = np.random.default_rng(0).permutation(40)
    raw = IMPORTANCES[name].score(pool)
    assert np.array_equal(IMPORTANCES[name].score(reordered(pool, order)), raw[order], equal_nan=True)
    assert len(np.unique(raw[pool.usable])) > 10


def reordered(pool: Pool, order: Array) -> Pool:
    assert pool.graph is not None
    place = np.argsort(order)
    listed = pool.graph.neighbors[order]
    graph = dataclasses.replace(
        pool.graph,
        neighbors=np.where(listed >= 0, place[listed], -1).astype(np.int32),
        similarity=pool.graph.similarity[order],
    )
    features = {name: value[order] for name, value in pool.features.items()}
    return dataclasses.replace(
        pool, features=features, cost=pool.cost[order], usable=pool.usable[order], graph=graph
    )


def test_learnability_is_the_fall_of_the_loss_and_0_where_there_was_no_measurement() -> None:
    pool = synthetic_pool(60, 4, 0)
    raw, previous, loss = (
        IMPORTANCES["learnability"].score(pool),
        pool.features["previous_loss"],
        pool.features["loss"],
    )
    for row in range(60):
        assert raw[row] == pytest.approx(
            0 if np.isnan(previous[row]) else previous[row] - loss[row], abs=1e-6
        )
    assert np.isnan(previous).any()


def test_an_unknown_importance_names_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"'charm'.*gradient_norm, learnability"):
        importance("charm")

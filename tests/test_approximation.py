"""The figures of the comparison, each against another way to get it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from coretune.policies.approximation import compare, spearman
from coretune.policies.update import update
from coretune.rounds.refresh_settings import AnchorRefresh
from coretune.types import Array, Coreset, Pool

N = 120


def paper(**settings: object) -> AnchorRefresh:
    """The refresh as the paper has it, on the embedding that these tests make."""
    defaults = {
        "anchors": "priority",
        "propagate": "average",
        "repair": "local",
        "embedding": "response_embedding",
    }
    return AnchorRefresh(**{**defaults, **settings})  # type: ignore[arg-type]


def signals(seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    embedding = rng.normal(size=(N, 5))
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    return {"response_embedding": embedding.astype(np.float32), "loss": rng.random(N).astype(np.float32)}


def fully_measured(fresh: dict[str, Array]) -> Pool:
    pool = Pool({}, np.ones(N, np.int64), np.full(N, -1, np.int32), np.ones(N, bool))
    return update(paper(k=6), pool, np.arange(N), fresh, 0)


def chosen(*rows: int) -> Coreset:
    return Coreset(np.array(rows, np.int64), np.ones(len(rows)), np.zeros(len(rows)))


def figures(approx: Pool, exact: Pool, one: Coreset, two: Coreset) -> dict[str, float]:
    return compare(
        approx,
        exact,
        "loss",
        "response_embedding",
        one,
        two,
        lambda pool, s: pool.features["loss"][s.indices].sum(),
    )


def test_a_pool_is_as_good_as_itself() -> None:
    pool = fully_measured(signals(0))
    found = figures(pool, pool, chosen(3, 1, 2), chosen(1, 2, 3))
    names = ["spearman", "embedding_cosine", "edge_recall", "coreset_share", "coreset_jaccard", "value_ratio"]
    assert sorted(found) == sorted(names)
    assert found == pytest.approx(dict.fromkeys(names, 1.0), abs=1e-6)
    assert all(type(figure) is float for figure in found.values())


def test_each_figure_against_its_definition() -> None:
    approx, exact = fully_measured(signals(0)), fully_measured(signals(1))
    approx = replace(approx, usable=np.arange(N) != 7)
    exact = replace(exact, usable=np.arange(N) != 8)
    found = figures(approx, exact, chosen(1, 2, 3, 4), chosen(3, 4, 5, 6, 9))
    both = approx.usable & exact.usable
    a, b = (pool.features["response_embedding"][both] for pool in (approx, exact))
    assert approx.graph is not None
    assert exact.graph is not None
    same = sum(
        len(set(approx.graph.neighbors[i]) & set(exact.graph.neighbors[i])) for i in np.flatnonzero(both)
    )
    loss = exact.features["loss"]
    assert found["spearman"] == pytest.approx(
        spearmanr(approx.features["loss"][both], loss[both]).statistic, abs=1e-6
    )
    assert found["embedding_cosine"] == pytest.approx((a * b).sum(1).mean(), abs=1e-6)
    assert found["edge_recall"] == pytest.approx(same / (6 * both.sum()))
    assert found["coreset_share"] == pytest.approx(2 / 5)
    assert found["coreset_jaccard"] == pytest.approx(2 / 7)
    assert found["value_ratio"] == pytest.approx(loss[[1, 2, 3, 4]].sum() / loss[[3, 4, 5, 6, 9]].sum())


def test_spearman_shares_the_rank_of_ties() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(0, 5, 40), rng.integers(0, 5, 40)
        assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert spearman(np.arange(9), -np.arange(9)) == pytest.approx(-1)


def test_what_is_undefined_is_left_out() -> None:
    pool = fully_measured({**signals(0), "loss": np.zeros(N, np.float32)})
    found = figures(pool, pool, chosen(1), chosen(1))
    assert set(found) == {"embedding_cosine", "edge_recall", "coreset_share", "coreset_jaccard"}
    without = compare(pool, pool, "loss", "response_embedding", chosen(1), chosen(2))
    assert without["coreset_share"] == 0
    assert "value_ratio" not in without


def test_pools_that_cannot_be_compared_are_refused() -> None:
    pool = fully_measured(signals(0))
    with pytest.raises(ValueError, match="without a graph"):
        figures(replace(pool, graph=None), pool, chosen(1), chosen(1))
    small = Pool({}, np.ones(3, np.int64), np.zeros(3, np.int32), np.ones(3, bool))
    with pytest.raises(ValueError, match="120 and 3 rows"):
        figures(pool, small, chosen(1), chosen(1))


def test_news_that_spreads_comes_closer_to_the_truth_than_news_that_does_not() -> None:
    """What the propagation is for: losses follow the clusters, 10 % of the rows tell of the rest."""
    rng = np.random.default_rng(3)
    cluster = rng.integers(0, 6, N)
    centre = np.random.default_rng(4).normal(size=(6, 5))
    embedding = centre[cluster] + 0.05 * rng.normal(size=(N, 5))
    embedding = (embedding / np.linalg.norm(embedding, axis=1, keepdims=True)).astype(np.float32)
    before = {"response_embedding": embedding, "loss": cluster.astype(np.float32)}
    after = {**before, "loss": np.array([3, 0, 5, 1, 4, 2], np.float32)[cluster]}
    pool, exact = fully_measured(before), fully_measured(after)
    found = {}
    for propagate in ("average", "none"):
        refresh, told = paper(k=6, propagate=propagate), pool  # type: ignore[arg-type]
        for round in range(1, 5):
            rows = np.sort(np.random.default_rng(round).choice(N, N // 10, replace=False))
            told = update(refresh, told, rows, {name: value[rows] for name, value in after.items()}, round)
        found[propagate] = figures(told, exact, chosen(1), chosen(1))["spearman"]
    assert found["average"] > found["none"] + 0.05

"""A quota is kept by every engine and method that says so; where it cannot be, one clear line says why."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_greedy import naive_greedy

from coretune.config import ConfigError
from coretune.coreset_section import build_coreset, coreset, spelled_out
from coretune.rounds.quota_request import FEATURE, groups, parse_quota
from coretune.select import SELECTORS
from coretune.select.dense import cosine_similarity
from coretune.select.greedy import lazy_greedy, stochastic_greedy
from coretune.select.objective import Objective
from coretune.select.ranking import take_in_order
from coretune.testing import synthetic_pool
from coretune.training.first_pool import first_pool
from coretune.types import Array, Budget, KeepsQuota, Pool, Quota

SOURCES = np.array(["math", "web", None, "code"], dtype=object)
KEEPS = sorted(name for name, selector in SELECTORS.items() if isinstance(selector(), KeepsQuota))


def stochastic(objective: Objective, budget: Budget, cost: Array, candidates: Array):
    return stochastic_greedy(objective, budget, cost, candidates, rng=np.random.default_rng(0), epsilon=0.2)


@st.composite
def quotas(draw: st.DrawFn, n: int = 40) -> tuple[Quota, Budget, Array, Array]:
    """A quota, a budget in rows that can be filled within it, costs and candidates."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    group, candidates = rng.integers(0, 4, size=n), rng.random(n) < 0.8
    held = np.bincount(group[candidates], minlength=4)
    within = np.array([rng.integers(0, h + 1) for h in held])  # a set that keeps the quota: so many of each
    within[0] += within.sum() == 0 and held[0] > 0
    least = np.array([rng.integers(0, w + 1) for w in within])
    most = within + rng.integers(0, 4, size=4)
    amount = max(1, int(within.sum()))
    if within.sum() == 0:
        least, most = np.zeros(4, int), np.full(4, n)
    quota = Quota(group, least.astype(np.int64), most.astype(np.int64), tuple("abcd"))
    return quota, Budget(amount, "rows", quota), rng.integers(1, 20, size=n), candidates


def features(n: int, seed: int) -> Array:
    rows = np.random.default_rng(seed).normal(size=(n, 5)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@given(quotas(), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_rows_keep_the_quota_and_lazy_is_naive(given_quota, seed: int) -> None:
    quota, budget, cost, candidates = given_quota
    if candidates.sum() < budget.amount:
        return
    modular = 0.1 * np.random.default_rng(seed).random(40)
    objective = Objective(cosine_similarity(features(40, seed)), modular, 1 / 40, np.ones(40))
    found = [
        engine(objective, budget, cost, candidates) for engine in (naive_greedy, lazy_greedy, stochastic)
    ]
    for picks in found:
        got = np.bincount(quota.group[picks.indices], minlength=4)
        assert len(picks.indices) == budget.amount
        assert (got >= quota.least).all()
        assert (got <= quota.most).all()
        assert candidates[picks.indices].all()
    assert found[0].indices.tolist() == found[1].indices.tolist()


@given(quotas(), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_tokens_keep_the_quota(given_quota, seed: int) -> None:
    """No maximum is passed, and of a group short of its minimum no candidate fits what it lacks."""
    quota, _, cost, candidates = given_quota
    candidates[:4] = True
    total = int(cost[candidates].sum())
    held = np.bincount(quota.group[candidates], cost[candidates], 4).astype(np.int64)
    tokens = dataclasses.replace(quota, least=held // 8, most=np.maximum(held // 2, 20))
    budget = Budget(max(20, total // 2), "tokens", tokens)
    objective = Objective(cosine_similarity(features(40, seed)), np.zeros(40), 1 / 40, np.ones(40))
    order = np.random.default_rng(seed).permutation(np.flatnonzero(candidates))
    found = [
        take_in_order(order, cost, budget),
        *(engine(objective, budget, cost, candidates).indices for engine in (naive_greedy, lazy_greedy)),
    ]
    for rows in found:
        got = np.bincount(tokens.group[rows], cost[rows], 4).astype(np.int64)
        assert cost[rows].sum() <= budget.amount
        assert (got <= tokens.most).all()
        left = np.setdiff1d(np.flatnonzero(candidates), rows)
        for group in np.flatnonzero(got < tokens.least):
            own = left[tokens.group[left] == group]
            assert (cost[own] > tokens.least[group] - got[group]).all()
    assert found[1].tolist() == found[2].tolist()


def pool_with_sources(n: int = 60, seed: int = 0) -> tuple[Pool, Array]:
    pool = synthetic_pool(n, 8, seed, copies=0.2, unusable=0.1)
    values = SOURCES[np.random.default_rng(seed).choice(4, size=n, p=[0.5, 0.3, 0.1, 0.1])]
    return dataclasses.replace(pool, features={**pool.features, FEATURE: groups(values, n)}), values


@pytest.mark.filterwarnings("ignore:only .* usable rows have IFD")
@pytest.mark.parametrize("name", KEEPS)
@pytest.mark.parametrize("budget", ["20", "500 tokens"])
def test_every_method_keeps_the_quota_of_a_config(name: str, budget: str) -> None:
    pool, values = pool_with_sources()
    shares = {"math": 0.3, None: {"min": 0.1, "max": 0.2}, "code": {"min": 0.1}}
    config = coreset(name, budget=budget, quota={"source": shares})
    chosen = config.select(pool, config.budget.resolve(pool), np.random.default_rng(0))
    price = pool.cost if "tokens" in budget else np.ones_like(pool.cost)
    amount = config.budget.resolve(pool).amount
    got = {value: price[chosen.indices][values[chosen.indices] == value].sum() for value in SOURCES}
    assert got["math"] <= np.ceil(0.3 * amount)
    assert got[None] <= np.ceil(0.2 * amount)
    if "tokens" not in budget:
        assert len(chosen.indices) == 20
        assert got[None] >= 2
        assert got["code"] >= 2


def test_a_number_is_the_most_of_any_value() -> None:
    pool, values = pool_with_sources()
    config = coreset("grace", budget="12", quota={"source": 0.4})
    chosen = config.select(pool, config.budget.resolve(pool), np.random.default_rng(0))
    assert all((values[chosen.indices] == value).sum() <= 5 for value in SOURCES)


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (0.2, "write {source: 0.2}"),
        ({"language": 0.2}, "columns: {source: language}"),
        ({"source": 1.2}, "no share of the budget"),
        ({"source": {"math": {"least": 0.1}}}, "write {source"),
        ({"source": {"math": {"min": 0.5, "max": 0.2}}}, "min 0.5 is above max 0.2"),
        ({"source": {"a": {"min": 0.7}, "b": {"min": 0.6}}}, "minima add up to 1.3"),
        ({"source": 1.0}, "quota binds nobody"),
        ({"source": {}}, "quota binds nobody"),
        ({"source": {"a": {"min": 0}, "b": 1}}, "quota binds nobody"),
    ],
)
def test_what_is_no_quota_is_refused(written: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("{", r"\{")):
        build_coreset({"method": "grace", "budget": 10, "quota": written}, 0)


@pytest.mark.parametrize(("name", "engine"), [("gtp", "local"), ("gradmatch", "local"), ("brief", "ray")])
def test_who_keeps_none_refuses_one_by_name(name: str, engine: str) -> None:
    with pytest.raises(
        ConfigError, match="ray, which keeps none" if engine == "ray" else f"{name} keeps none"
    ):
        build_coreset(
            {"method": name, "budget": 10, "solver": {"engine": engine}, "quota": {"source": 0.2}}, 0
        )
    assert set(SELECTORS) - set(KEEPS) == {"gtp", "gradmatch"}


class Rows:
    """What `first_pool` reads of a trainer's rows."""

    length = np.full(10, 5)
    response_length = np.full(10, 3)
    source = np.array(["a"] * 8 + ["b"] * 2, dtype=object)


@pytest.mark.parametrize(
    ("quota", "words"),
    [
        ({"b": {"min": 0.6}}, "source 'b' is to get 3 rows or more, and its candidates hold 2"),
        ({"a": 0.2}, "3 rows may be chosen within the maxima, and the budget is 5"),
        ({"c": {"min": 0.2}}, "no row has the source 'c', which is to get 0.2 to 1"),
        ({"c": 0.2}, "no row has the source 'c', which is to get 0 to 0.2 of the budget: correct its name"),
        ({"a": 0.8, None: {"min": 0.2}}, "no row has the source None"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_is_trained(quota: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        first_pool(coreset("random", budget=5, quota={"source": quota}), Rows())  # type: ignore[arg-type]


@pytest.mark.parametrize("quota", [0.5, {"a": {"min": 0.5}}, {"a": 0.5}])
def test_a_quota_by_source_of_rows_that_have_none_is_refused(quota: object) -> None:
    class Nameless(Rows):
        source = None

    with pytest.raises(ValueError, match=r"quota is by source, and no row has one: .* columns: {source"):
        first_pool(coreset("random", budget=5, quota={"source": quota}), Nameless())  # type: ignore[arg-type]


def test_shares_that_add_up_to_one_can_be_met_and_parsing_keeps_the_text() -> None:
    pool = Pool(
        {FEATURE: groups(np.array(["a", "b", "c"] * 40, dtype=object), 120)},
        np.ones(120, np.int64),
        np.zeros(120, np.int32),
        np.ones(120, bool),
    )
    third = {"min": 1 / 3, "max": 1 / 3}
    quota = parse_quota({"source": {"a": third, "b": third, "c": third}}).resolve(pool, Budget(100))
    assert quota.least.tolist() == [33] * 3
    assert quota.most.tolist() == [34] * 3
    section = {"method": "random", "budget": 9, "quota": {"source": 0.5}}
    assert spelled_out(build_coreset(section, 0), section)["quota"] == {"source": 0.5}
    del section["quota"]
    assert "quota" not in spelled_out(build_coreset(section, 0), section)

"""Every selector sits the same exam; the exam itself is examined by selectors that break one promise each."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

import coretune.select
from coretune.filters import FILTERS
from coretune.filters.cooldown import Cooldown
from coretune.filters.duplicates import Duplicates
from coretune.filters.narrow import Narrow
from coretune.filters.noise import Noise
from coretune.policies.unused_settings import UNWEIGHTED
from coretune.select import SELECTORS
from coretune.select.importance import IMPORTANCES
from coretune.testing import check_filter, check_selector, synthetic_pool
from coretune.types import (
    EQUAL_TO,
    FOLDED_TO,
    RESPONSE_TOKENS,
    TARGET_ROW,
    Array,
    Budget,
    Coreset,
    Filter,
    Pool,
    Selector,
    Verdict,
)

#: settings beside the defaults
VARIANTS = [
    *(("grace", {"importance": name, "lambda_": 0.5}) for name in IMPORTANCES),
    ("grace", {"similarity": "dense"}),
    ("facility_location", {"similarity": "dense"}),
    ("kcenter", {"embedding": "prompt_embedding"}),
    ("loss", {"highest": False}),
    ("d2", {"difficulty": "gradient_norm"}),
]


@pytest.mark.filterwarnings("ignore:only .* usable rows have IFD")
@pytest.mark.parametrize("name", SELECTORS)
def test_every_selector_passes(name: str) -> None:
    check_selector(SELECTORS[name]())


@pytest.mark.filterwarnings("ignore:only .* usable rows have IFD")
@pytest.mark.parametrize(
    "filters", [*([name] for name in FILTERS), ["duplicates", "noise", "cooldown"]], ids=" ".join
)
@pytest.mark.parametrize("name", SELECTORS)
def test_every_selector_passes_with_every_filter(name: str, filters: list[str]) -> None:
    check_selector(SELECTORS[name](), filters=[FILTERS[each]() for each in filters])


FILTER_VARIANTS: list[Filter] = [
    Duplicates(alike="folded"),
    Cooldown(by="loss"),
    Cooldown(coresets=1),
    Noise(min_auc=0),
    Narrow(times=1.5, by="spread"),
]


@pytest.mark.parametrize("filter", [*(kind() for kind in FILTERS.values()), *FILTER_VARIANTS], ids=repr)
def test_every_filter_passes(filter: Filter) -> None:
    check_filter(filter)


@pytest.mark.filterwarnings("ignore:only .* usable rows have IFD")
@pytest.mark.parametrize("name", SELECTORS)
def test_methods_said_to_give_one_weight_to_all_rows_are_those_that_do(name: str) -> None:
    selector, pool = SELECTORS[name](), synthetic_pool(40, 4, 0)
    chosen = selector.select(pool, Budget(9), np.random.default_rng(0))
    assert (type(selector) in UNWEIGHTED) == bool((chosen.weights == 1).all())


@pytest.mark.parametrize(("name", "settings"), VARIANTS)
def test_every_setting_passes(name: str, settings: dict[str, object]) -> None:
    check_selector(SELECTORS[name](**settings), seed=1)


def test_every_selector_is_registered_under_its_name() -> None:
    found = set()
    for module in pkgutil.iter_modules(coretune.select.__path__):
        for _, member in inspect.getmembers(
            importlib.import_module(f"coretune.select.{module.name}"), inspect.isclass
        ):
            if member.__module__ == f"coretune.select.{module.name}" and callable(
                getattr(member, "select", None)
            ):
                found.add(member)
    assert found == set(SELECTORS.values())
    assert all(selector.name == name for name, selector in SELECTORS.items())


@pytest.mark.parametrize("name", SELECTORS)
def test_a_selector_is_a_frozen_dataclass_of_documented_settings(name: str) -> None:
    selector = SELECTORS[name]()
    assert isinstance(selector, Selector)
    assert SELECTORS[name].__doc__
    for setting in dataclasses.fields(selector):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(selector, setting.name, None)


@pytest.mark.parametrize("name", SELECTORS)
def test_a_budget_beyond_the_usable_rows_is_an_error_with_both_numbers(name: str) -> None:
    pool = synthetic_pool(20, 4, 0, unusable=0.5)
    with pytest.raises(ValueError, match=r"11 rows, but only 10 .*; ask for fewer"):
        SELECTORS[name]().select(pool, Budget(11), np.random.default_rng(0))
    with pytest.raises(ValueError, match="fits a budget of 1 tokens; ask for more"):
        SELECTORS[name]().select(pool, Budget(1, "tokens"), np.random.default_rng(0))


@pytest.mark.parametrize("name", sorted(set(SELECTORS) - {"d2", "facility_location", "grace", "random"}))
def test_a_needed_signal_that_is_missing_or_not_finite_is_an_error(name: str) -> None:
    pool, selector = synthetic_pool(20, 4, 0), SELECTORS[name]()
    signal = selector.needs[0]
    spoilt = pool.features[signal].copy()
    spoilt[7] = np.nan
    with pytest.raises(ValueError, match=f"'{signal}' of usable row 7 is not finite"):
        selector.select(
            dataclasses.replace(pool, features={**pool.features, signal: spoilt}),
            Budget(3),
            np.random.default_rng(0),
        )
    with pytest.raises(KeyError, match=f"no feature '{signal}'"):
        selector.select(dataclasses.replace(pool, features={}), Budget(3), np.random.default_rng(0))


@pytest.mark.parametrize("name", ["d2", "facility_location", "grace"])
def test_a_missing_graph_is_an_error(name: str) -> None:
    pool = dataclasses.replace(synthetic_pool(20, 4, 0), graph=None)
    with pytest.raises(ValueError, match="build the graph first"):
        SELECTORS[name]().select(pool, Budget(3), np.random.default_rng(0))


# the exam


@dataclass(frozen=True)
class First:
    """The lowest usable rows; `broken` then spoils the coreset or the pool."""

    broken: Callable[[Coreset, Pool, np.random.Generator], Coreset] | None = None
    needs: tuple[str, ...] = ("loss",)

    def select(self, pool: Pool, budget: Budget, rng: np.random.Generator) -> Coreset:
        rows = np.flatnonzero(pool.usable)
        if budget.unit == "tokens":
            rows = rows[np.argsort(pool.cost[rows], kind="stable")]
            rows = rows[: max(1, int((np.cumsum(pool.cost[rows]) <= budget.amount).sum()))]
        else:
            rows = rows[: budget.amount]
        whole = Coreset(rows, np.ones(len(rows)), np.zeros(len(rows)), {"nothing": np.zeros(pool.n)})
        return self.broken(whole, pool, rng) if self.broken else whole


def test_an_honest_selector_passes() -> None:
    check_selector(First())


def replaced(**parts: Callable[[Coreset, Pool, np.random.Generator], object]) -> First:
    def broken(coreset: Coreset, pool: Pool, rng: np.random.Generator) -> Coreset:
        return dataclasses.replace(
            coreset, **{name: make(coreset, pool, rng) for name, make in parts.items()}
        )

    return First(broken)


def written_to(coreset: Coreset, pool: Pool, rng: np.random.Generator) -> Coreset:
    pool.features["loss"][0] += 1
    return coreset


def unasked(coreset: Coreset, pool: Pool, rng: np.random.Generator) -> Coreset:
    pool.feature("gradient_norm")
    return coreset


def spoilt_rows(coreset: Coreset, pool: Pool) -> Array:
    """The same rows, but an unusable one first where the pool has any."""
    bad = np.flatnonzero(~pool.usable)
    return np.concatenate([bad[:1], coreset.indices[len(bad[:1]) :]])


def costliest(coreset: Coreset, pool: Pool, rng: np.random.Generator) -> Array:
    return np.argsort(-pool.cost)[: len(coreset.indices)]


def fewer(coreset: Coreset, pool: Pool, rng: np.random.Generator) -> Coreset:
    return Coreset(coreset.indices[:1], coreset.weights[:1], coreset.gains[:1], coreset.reasons)


@pytest.mark.parametrize(
    ("selector", "error", "words"),
    [
        (replaced(indices=lambda c, p, r: np.full_like(c.indices, c.indices[0])), AssertionError, "distinct"),
        (replaced(indices=lambda c, p, r: c.indices + p.n), AssertionError, "rows 60 to"),
        (replaced(indices=lambda c, p, r: c.indices.astype(np.int32)), AssertionError, "int32"),
        (replaced(indices=lambda c, p, r: spoilt_rows(c, p)), AssertionError, "unusable"),
        (replaced(indices=costliest), AssertionError, "tokens were chosen"),
        (replaced(indices=lambda c, p, r: r.permutation(c.indices)), None, ""),
        (replaced(weights=lambda c, p, r: 2 * c.weights), AssertionError, "mean weight 2"),
        (replaced(weights=lambda c, p, r: c.weights * np.nan), AssertionError, "weights are not finite"),
        (
            replaced(
                weights=lambda c, p, r: c.weights + (np.arange(len(c.weights)) - (len(c.weights) - 1) / 2)
            ),
            AssertionError,
            "a weight of -",
        ),
        (replaced(weights=lambda c, p, r: np.ones(1)), AssertionError, "weights have shape"),
        (replaced(gains=lambda c, p, r: c.gains[1:]), AssertionError, "gains have shape"),
        (replaced(gains=lambda c, p, r: c.gains + np.inf), AssertionError, "gains are not finite"),
        (replaced(gains=lambda c, p, r: c.gains.astype(np.float32)), AssertionError, "float32"),
        (
            replaced(gains=lambda c, p, r: np.random.default_rng().random(len(c.gains))),
            AssertionError,
            "differ in gains",
        ),
        (replaced(reasons=lambda c, p, r: {"all": np.zeros(p.n + 1)}), AssertionError, "reason 'all'"),
        (First(fewer), AssertionError, "rows were chosen"),
        (First(written_to), ValueError, "read-only"),
        (First(unasked), KeyError, "gradient_norm"),
        (First(needs=("charm",)), AssertionError, "charm"),
    ],
)
def test_a_broken_promise_is_found(selector: First, error: type[Exception] | None, words: str) -> None:
    if error is None:
        check_selector(selector)
        return
    with pytest.raises(error, match=words):
        check_selector(selector)


@dataclass(frozen=True)
class Everybody:
    """Takes nobody out; `broken` then spoils the verdict or the pool."""

    broken: Callable[[Verdict, Pool], Verdict] | None = None
    needs: tuple[str, ...] = ("loss",)

    name = "everybody"
    says = "never"

    def judge(self, pool: Pool, budget: Budget) -> Verdict:
        verdict = Verdict(pool.usable.copy(), np.zeros(pool.n, np.float32))
        return self.broken(verdict, pool) if self.broken else verdict


def touched(verdict: Verdict, pool: Pool) -> Verdict:
    pool.features["loss"][0] += 1
    return verdict


def looked(verdict: Verdict, pool: Pool) -> Verdict:
    pool.feature("gradient_norm")
    return verdict


def changed(**parts: Callable[[Pool], object]) -> Everybody:
    return Everybody(lambda v, p: dataclasses.replace(v, **{name: make(p) for name, make in parts.items()}))


@pytest.mark.parametrize(
    ("filter", "error", "words"),
    [
        (changed(keep=lambda p: np.ones(p.n)), AssertionError, "keep is float64"),
        (changed(keep=lambda p: np.ones(p.n - 1, bool)), AssertionError, r"not bool_? \(60,\)"),
        (changed(score=lambda p: np.zeros(p.n)), AssertionError, "score is float64"),
        (changed(score=lambda p: np.full(p.n, np.inf, np.float32)), AssertionError, "infinite"),
        (changed(keep=lambda p: np.random.default_rng().random(p.n) > 0.5), AssertionError, "differ in keep"),
        (changed(figures=lambda p: {"all": np.nan}), AssertionError, "figure 'all'"),
        (Everybody(touched), ValueError, "read-only"),
        (Everybody(looked), KeyError, "gradient_norm"),
        (Everybody(needs=("charm",)), AssertionError, "charm"),
    ],
)
def test_a_broken_promise_of_a_filter_is_found(filter: Everybody, error: type[Exception], words: str) -> None:
    check_filter(Everybody())
    with pytest.raises(error, match=words):
        check_filter(filter)


def test_what_is_no_frozen_dataclass_fails() -> None:
    class Plain(First):
        __hash__ = None  # type: ignore[assignment]

    with pytest.raises(AssertionError, match="frozen"):
        check_selector(Plain())


# the pools of the exam


def test_synthetic_pool_holds_what_it_says() -> None:
    pool = synthetic_pool(200, 6, 0, copies=0.3, unusable=0.1)
    assert pool.usable.sum() == 180
    embedding = pool.features["response_embedding"]
    distinct = np.unique(embedding[pool.usable], axis=0)
    assert 180 * 0.6 < len(distinct) < 180 * 0.85
    assert np.linalg.norm(distinct, axis=1) == pytest.approx(np.ones(len(distinct)), abs=1e-5)
    known = (EQUAL_TO, FOLDED_TO, RESPONSE_TOKENS, TARGET_ROW)
    for name, value in pool.features.items():
        assert name in known or np.isnan(value[~pool.usable]).all()
    assert pool.graph is not None
    listed = pool.graph.neighbors
    assert (listed[~pool.usable] == -1).all()
    assert not np.isin(listed[pool.usable], np.flatnonzero(~pool.usable)).any()
    assert (listed != np.arange(200)[:, None]).all()


def test_synthetic_pool_is_the_same_for_the_same_seed() -> None:
    one, two, other = (synthetic_pool(50, 4, seed, copies=0.2) for seed in (1, 1, 2))
    for name, value in one.features.items():
        assert np.array_equal(value, two.features[name], equal_nan=True)
        if name != TARGET_ROW:  # every tenth row
            assert not np.array_equal(value, other.features[name], equal_nan=True)

"""Each engine against scipy on the augmented system, and against the KKT conditions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nnls_conditions import kkt_residual
from scipy.optimize import nnls

from coretune.engines.torch_nnls import torch_algebra
from coretune.select import cholesky
from coretune.select.nnls import MakeAlgebra, newton_nnls
from coretune.select.ridge_fit import Dense, solved
from coretune.types import Array

Engine = Callable[[Array, Array, float, Array], Array]


def newton(make: MakeAlgebra) -> Engine:
    def engine(columns: Array, target: Array, ridge: float, start: Array) -> Array:
        everyone = np.ones(len(columns), dtype=bool)
        return newton_nnls(make(columns, target, ridge), target, ridge, start > 0, everyone)

    return engine


ENGINES: dict[str, Engine] = {
    "newton": newton(Dense),
    "torch": newton(torch_algebra("cpu")),
}


def by_scipy(columns: Array, target: Array, ridge: float) -> Array:
    augmented = np.concatenate([columns.T.astype(np.float64), np.sqrt(ridge) * np.eye(len(columns))])
    found: Array = nnls(augmented, np.concatenate([target, np.zeros(len(columns))]))[0]
    return found


def unit(columns: Array) -> Array:
    norm = np.linalg.norm(columns, axis=1, keepdims=True)
    found: Array = np.divide(columns, norm, out=np.zeros_like(columns), where=norm > 0).astype(np.float32)
    return found


def plain(rng: np.random.Generator, m: int, d: int) -> tuple[Array, Array]:
    return rng.normal(size=(m, d)), rng.normal(size=d)


def copies(rng: np.random.Generator, m: int, d: int) -> tuple[Array, Array]:
    columns, target = plain(rng, m, d)
    return columns[rng.integers(max(1, m // 3), size=m)], target


def zeros(rng: np.random.Generator, m: int, d: int) -> tuple[Array, Array]:
    columns, target = plain(rng, m, d)
    columns[rng.random(m) < 0.5] = 0.0
    return columns, target


def low_rank(rng: np.random.Generator, m: int, d: int) -> tuple[Array, Array]:
    basis = rng.normal(size=(2, d))
    return rng.normal(size=(m, 2)) @ basis, rng.normal(size=d)


def all_negative(rng: np.random.Generator, m: int, d: int) -> tuple[Array, Array]:
    columns, target = plain(rng, m, d)
    return columns * np.where(columns @ target > 0, -1.0, 1.0)[:, None], target


def within_reach(rng: np.random.Generator, m: int, d: int) -> tuple[Array, Array]:
    """The target is a combination with positive weights: nothing remains but for the ridge."""
    columns = rng.normal(size=(m, d))
    return columns, rng.random(m) @ unit(columns)


PROBLEMS = [plain, copies, zeros, low_rank, all_negative, within_reach]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("problem", PROBLEMS)
@given(
    m=st.integers(1, 40),
    d=st.integers(1, 25),
    ridge=st.sampled_from([1.0, 1e-2, 1e-4, 1e-6]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=8)
def test_the_answer_is_scipys_and_satisfies_kkt(
    engine: str,
    problem: Callable[[np.random.Generator, int, int], tuple[Array, Array]],
    m: int,
    d: int,
    ridge: float,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    columns, target = problem(rng, m, d)
    columns = unit(columns)
    start = np.where(rng.random(m) < 0.5, rng.random(m), 0.0)
    x = ENGINES[engine](columns, target, ridge, start)
    assert x.shape == (m,)
    assert kkt_residual(columns, target, ridge, x) < 1e-6
    expected = by_scipy(columns, target, ridge)
    assert kkt_residual(columns, target, ridge, expected) < 1e-6
    scale = np.linalg.norm(target)
    assert x == pytest.approx(expected, abs=1e-6 * scale / np.sqrt(ridge))
    assert (
        objective(columns, target, ridge, x) <= objective(columns, target, ridge, expected) + 1e-9 * scale**2
    )


def objective(columns: Array, target: Array, ridge: float, x: Array) -> float:
    remainder = target - x @ columns.astype(np.float64)
    return float(remainder @ remainder + ridge * (x @ x))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("m", "d"), [(700, 40), (300, 500)])
def test_engines_agree_at_a_size_where_columns_come_and_go(engine: str, m: int, d: int) -> None:
    rng = np.random.default_rng(0)
    columns = unit(rng.normal(size=(m, d)) + 0.5 * rng.normal(size=d))
    columns[m // 2 : m // 2 + 50] = columns[:50]
    target = columns[: m // 4].mean(axis=0) + 0.02 * rng.normal(size=d)
    start = np.where(rng.random(m) < 0.3, 0.01, 0.0)
    x = ENGINES[engine](columns, target, 1e-2, start)
    assert kkt_residual(columns, target, 1e-2, x) < 1e-6
    assert x == pytest.approx(ENGINES["newton"](columns, target, 1e-2, np.zeros(m)), abs=1e-8)
    assert x[:50] == pytest.approx(x[m // 2 : m // 2 + 50], abs=1e-8)  # copies share their weight


@pytest.mark.parametrize("make", [Dense, torch_algebra("cpu")])
def test_columns_that_are_not_allowed_are_as_if_not_there(make: MakeAlgebra) -> None:
    rng = np.random.default_rng(2)
    columns, target = unit(rng.normal(size=(80, 15)) + rng.normal(size=15)), rng.normal(size=15)
    allowed, start = rng.random(80) < 0.4, rng.random(80)
    products = make(columns, target, 1e-2)
    everyone = newton_nnls(products, target, 1e-2, start > 0.5, np.ones(80, dtype=bool))
    some = newton_nnls(products, target, 1e-2, everyone > 0, allowed)
    assert (some[~allowed] == 0).all()
    assert some[allowed] == pytest.approx(by_scipy(columns[allowed], target, 1e-2), abs=1e-8)


def test_columns_of_very_different_lengths_are_solved() -> None:
    rng = np.random.default_rng(3)
    columns = (rng.normal(size=(60, 12)) * np.geomspace(1e-2, 1e2, 60)[:, None]).astype(np.float32)
    target = rng.normal(size=12)
    for engine in ENGINES.values():
        assert engine(columns, target, 0.1, np.zeros(60)) == pytest.approx(
            by_scipy(columns, target, 0.1), abs=1e-6
        )


def test_the_form_of_published_codes_minimises_something_else() -> None:
    rng = np.random.default_rng(1)
    columns, target = unit(rng.normal(size=(20, 10))), rng.normal(size=10)
    wide = columns.astype(np.float64)
    published = nnls(wide @ wide.T + 0.5 * np.eye(20), wide @ target)[0]
    ours = ENGINES["newton"](columns, target, 0.5, np.zeros(20))
    assert objective(columns, target, 0.5, published) > 1.01 * objective(columns, target, 0.5, ours)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("ridge", [0.0, -1.0, float("nan")])
def test_a_ridge_that_is_not_positive_is_an_error(engine: str, ridge: float) -> None:
    with pytest.raises(ValueError, match=r"a ridge of .* must be positive"):
        ENGINES[engine](np.ones((1, 1), np.float32), np.ones(1), ridge, np.zeros(1))


@given(d=st.integers(2, 12), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=30)
def test_the_factor_kept_up_to_date_is_the_factor_made_anew(d: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    columns = rng.normal(size=(d, d + 3))
    gram = columns @ columns.T
    factor, inside = np.zeros((d + 1, d + 1)), list[int]()
    for _ in range(3 * d):
        outside = sorted(set(range(d)) - set(inside))
        if inside and (not outside or rng.random() < 0.4):
            position = int(rng.integers(len(inside)))
            cholesky.remove(factor, len(inside), position)
            del inside[position]
        else:
            new = int(rng.choice(outside))
            assert cholesky.append(factor, len(inside), gram[new, inside], gram[new, new])
            inside.append(new)
        k = len(inside)
        lower = np.tril(factor[:k, :k])
        assert lower @ lower.T == pytest.approx(gram[np.ix_(inside, inside)], rel=1e-8, abs=1e-8)
        right, out = rng.normal(size=k), np.empty(k)
        cholesky.solve(factor, k, right, out)
        assert lower @ lower.T @ out == pytest.approx(right, rel=1e-6, abs=1e-6)


def test_a_row_that_depends_on_the_others_is_not_appended() -> None:
    factor = np.zeros((3, 3))
    assert cholesky.append(factor, 0, np.zeros(0), 4.0)
    assert not cholesky.append(factor, 1, np.array([6.0]), 9.0)


@pytest.mark.parametrize(("m", "d"), [(60, 200), (300, 40)])
@pytest.mark.parametrize("ridge", [1e-2, 1e-9])  # at 1e-9 float32 cannot, for half of the columns are copies
def test_a_fit_is_exact_to_rounding_whatever_the_ridge(m: int, d: int, ridge: float) -> None:
    rng = np.random.default_rng(5)
    columns, target = unit(rng.normal(size=(m, d))), rng.normal(size=d)
    columns[m // 2 :] = columns[: m // 2]
    passive = rng.random(m) < 0.9
    x = Dense(columns, target, ridge).fit(passive)
    wide = columns[passive].astype(np.float64)
    missing = wide @ (target - x[passive] @ wide) - ridge * x[passive]
    assert np.abs(missing).max() < 1e-7 * np.linalg.norm(target)
    assert (x[~passive] == 0.0).all()


def test_a_factor_too_rough_to_refine_with_gives_none() -> None:
    rng = np.random.default_rng(6)
    columns = rng.normal(size=(20, 20))
    gram, other = columns @ columns.T, np.eye(20)
    assert solved(other, 1e-3, lambda x: columns[0] - gram @ x - 1e-3 * x) is None
    found = solved(gram.copy(), 1e-3, lambda x: columns[0] - gram @ x - 1e-3 * x)
    assert found == pytest.approx(np.linalg.solve(gram + 1e-3 * np.eye(20), columns[0]), rel=1e-8)

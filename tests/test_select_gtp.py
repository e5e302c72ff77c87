"""GTP: whose mean is matched, with what weights, by whom, and what is said of it."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest

from coretune.coreset_section import build_coreset
from coretune.engines.torch_nnls import torch_algebra
from coretune.select.columns import Candidates, Columns, merge
from coretune.select.gtp import Gtp
from coretune.testing import synthetic_pool
from coretune.types import Array, Budget, Coreset, Pool, UsesCheckpoints, Valued

RNG = np.random.default_rng(0)


def pool_of(trajectory: Array, usable: Array | None = None) -> Pool:
    n = len(trajectory)
    usable = np.ones(n, dtype=bool) if usable is None else usable
    return dataclasses.replace(synthetic_pool(n, 4, 0), features={"trajectory": trajectory}, usable=usable)


def skilled(rng: np.random.Generator, n: int, d: int, skills: int = 12) -> tuple[Array, Array]:
    """(n, d) float32 columns around a direction a skill, uneven in number and length, and (n,) the skill."""
    skill = rng.choice(skills, size=n, p=rng.dirichlet(np.ones(skills)))
    rows = 1.5 * rng.normal(size=(skills, d))[skill] + rng.normal(size=(n, d))
    return (rows * rng.lognormal(0.0, 0.5, size=(n, 1))).astype(np.float32), skill


def relative_residual(target: Array, chosen: Coreset, trajectory: Array) -> float:
    """min over s of ‖b − s Σ w_i a_i‖ / ‖b‖."""
    total = chosen.weights @ trajectory[chosen.indices].astype(np.float64)
    scale = max(0.0, total @ target) / (total @ total)
    return float(np.linalg.norm(target - scale * total) / np.linalg.norm(target))


def test_in_domain_it_matches_the_mean_of_the_usable_rows_far_better_than_chance() -> None:
    rng = np.random.default_rng(1)
    trajectory, _ = skilled(rng, 800, 64)
    usable = rng.random(800) < 0.9
    trajectory[~usable] = np.nan
    pool = pool_of(trajectory, usable=usable)
    chosen = Gtp().select(pool, Budget(40), RNG)
    target = trajectory[usable].astype(np.float64).mean(axis=0)
    residual = relative_residual(target, chosen, trajectory)
    assert residual == pytest.approx(chosen.figures["residuals"][0], rel=0.05)
    assert Gtp().value(pool, chosen) == pytest.approx(1 - residual**2, abs=1e-6)
    drawn = [rng.choice(np.flatnonzero(usable), 40, replace=False) for _ in range(20)]
    random = [
        relative_residual(target, Coreset(rows, np.ones(40), np.zeros(40)), trajectory) for rows in drawn
    ]
    assert residual < 0.4 * min(random)
    assert isinstance(Gtp(), Valued)


def test_reasons_tell_the_correlation_at_the_start_the_weight_and_when_a_row_came_in() -> None:
    trajectory, _ = skilled(np.random.default_rng(2), 200, 16)
    chosen = Gtp().select(pool_of(trajectory), Budget(30), RNG)
    target = trajectory.astype(np.float64).mean(axis=0)
    norms = np.linalg.norm(trajectory, axis=1)
    assert chosen.reasons["correlation"] == pytest.approx(
        trajectory @ target / norms / np.linalg.norm(target), abs=1e-5
    )
    rest = np.setdiff1d(np.arange(200), chosen.indices)
    assert chosen.reasons["pursuit_weight"][chosen.indices] == pytest.approx(chosen.weights)
    for name in ("pursuit_weight", "iteration", "deflation"):
        assert (chosen.reasons[name][rest] == 0).all()
        assert (chosen.reasons[name][chosen.indices] > 0).all()
    assert chosen.reasons["iteration"].max() <= chosen.figures["iterations"]
    assert chosen.figures["distinct"] == 30
    assert chosen.figures["pursuits"] == 1


def test_weights_are_of_the_columns_as_they_are_not_of_unit_ones() -> None:
    trajectory, _ = skilled(np.random.default_rng(3), 200, 16)
    longer = trajectory.copy()
    longer[::2] *= 4.0  # the same directions; b is given, so the same problem
    reference = {"trajectory": trajectory.mean(axis=0)[None], "share": np.ones(1, dtype=np.float32)}
    one, other = (
        Gtp().select(dataclasses.replace(pool_of(each), references=reference), Budget(20), RNG)
        for each in (trajectory, longer)
    )
    assert sorted(one.indices) == sorted(other.indices)
    ratio = other.reasons["pursuit_weight"][one.indices] / one.weights
    even = one.indices % 2 == 0
    assert ratio[even] == pytest.approx(ratio[~even].mean() / 4.0, rel=1e-3)


def test_of_thirty_percent_copies_none_is_chosen_twice_where_the_top_rows_hold_many() -> None:
    rng = np.random.default_rng(4)
    distinct, _ = skilled(rng, 1000, 64)
    popular = rng.choice(700, size=60, replace=False)
    source = np.concatenate([np.arange(700), rng.choice(popular, size=300)])
    measured_apart = 1.0 + 1e-4 * rng.normal(size=(1000, 64))  # in other batches
    for noise in (1.0, measured_apart):
        trajectory = (distinct[source] * noise).astype(np.float32)
        chosen = Gtp().select(pool_of(trajectory), Budget(100), RNG)
        assert len(chosen.indices) == len(np.unique(source[chosen.indices])) == 100
        assert chosen.figures["distinct"] == 100
        top = np.argsort(-chosen.reasons["correlation"], kind="stable")[:100]
        assert len(np.unique(source[top])) < 70


def test_a_given_target_is_pursued_instead_of_the_mean() -> None:
    trajectory, skill = skilled(np.random.default_rng(5), 600, 48)
    rare = int(
        np.argmin(np.where(np.bincount(skill, minlength=12) >= 12, np.bincount(skill, minlength=12), 600))
    )
    target = trajectory[skill == rare].mean(axis=0)[None]
    pool = dataclasses.replace(
        pool_of(trajectory), references={"trajectory": target, "share": np.ones(1, dtype=np.float32)}
    )
    chosen = Gtp().select(pool, Budget(10), RNG)
    assert (skill[chosen.indices] == rare).mean() > 0.8
    assert relative_residual(target[0].astype(np.float64), chosen, trajectory) < 0.2


def test_several_targets_each_get_their_share_of_rows_or_tokens() -> None:
    trajectory, skill = skilled(np.random.default_rng(6), 600, 48, skills=4)
    targets = np.stack([trajectory[skill == k].mean(axis=0) for k in range(2)])
    pool = dataclasses.replace(
        pool_of(trajectory),
        references={"trajectory": targets, "share": np.array([0.75, 0.25], dtype=np.float32)},
    )
    chosen = Gtp().select(pool, Budget(40), RNG)
    assert len(np.unique(chosen.indices)) == 40
    assert len(chosen.figures["residuals"]) == 2
    assert (skill[chosen.indices[:30]] == 0).mean() > 0.8
    assert (skill[chosen.indices[30:]] == 1).mean() > 0.8
    assert chosen.weights[:30].mean() == pytest.approx(1.0)
    tokens = Gtp().select(pool, Budget(600, "tokens"), RNG)
    spent = pool.cost[tokens.indices]
    first = skill[tokens.indices] == 0
    assert spent.sum() <= 600
    assert spent[first].sum() == pytest.approx(450, abs=60)


def test_a_budget_that_nothing_of_use_can_fill_stays_unfilled_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    trajectory = np.random.default_rng(7).normal(size=(60, 5)).astype(np.float32)
    target = np.ones((1, 5), dtype=np.float32)
    pool = dataclasses.replace(
        pool_of(trajectory), references={"trajectory": target, "share": np.ones(1, dtype=np.float32)}
    )
    with caplog.at_level(logging.WARNING, logger="coretune"):
        chosen = Gtp().select(pool, Budget(60), RNG)
    towards = np.flatnonzero(trajectory @ target[0] > 0)
    assert set(towards) <= set(chosen.indices.tolist())
    assert len(chosen.indices) < 60
    assert f"{len(chosen.indices)} of the 60 rows asked for" in caplog.text
    assert "deflation" in caplog.text


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (-np.ones((1, 3)), "no usable row points towards the target"),
        (np.zeros((1, 3)), "finite target other"),
    ],
)
def test_a_target_nobody_points_towards_is_an_error(target: Array, message: str) -> None:
    pool = dataclasses.replace(
        pool_of(np.abs(np.random.default_rng(8).normal(size=(10, 3))).astype(np.float32)),
        references={"trajectory": target, "share": np.ones(1)},
    )
    with pytest.raises(ValueError, match=message):
        Gtp().select(pool, Budget(2), RNG)


@dataclasses.dataclass(frozen=True)
class Shards:
    """The passes split over three shards."""

    parts: list[Columns]

    @classmethod
    def of(cls, features: Array) -> Shards:
        split = np.array_split(np.arange(len(features)), 3)
        return cls([Columns.of(features[rows], first=int(rows[0])) for rows in split])

    @property
    def norms(self) -> Array:
        return np.concatenate([part.norms for part in self.parts])

    def correlate(self, residual: Array) -> Array:
        return np.concatenate([part.correlate(residual) for part in self.parts])

    def top(self, residual: Array, count: int, open_rows: Array) -> Candidates:
        slices = [slice(part.first, part.first + len(part.norms)) for part in self.parts]
        found = [
            part.top(residual, count, open_rows[rows]) for part, rows in zip(self.parts, slices, strict=True)
        ]
        return merge(found, count)


def test_other_engines_give_the_same_coreset() -> None:
    trajectory, _ = skilled(np.random.default_rng(9), 500, 32)
    pool = pool_of(trajectory)
    one = Gtp().select(pool, Budget(60), RNG)
    sharded = Gtp().choose(pool, Budget(60), passes_over=Shards.of)
    assert np.array_equal(one.indices, sharded.indices)
    assert np.array_equal(one.weights, sharded.weights)
    by_torch = Gtp().choose(pool, Budget(60), algebra=torch_algebra("cpu"))
    assert np.array_equal(one.indices, by_torch.indices)
    assert one.weights == pytest.approx(by_torch.weights, rel=1e-6)


def test_the_order_of_the_rows_does_not_matter() -> None:
    trajectory, _ = skilled(np.random.default_rng(10), 300, 24)
    order = np.random.default_rng(11).permutation(300)
    one = Gtp().select(pool_of(trajectory), Budget(30), RNG)
    other = Gtp().select(pool_of(trajectory[order]), Budget(30), RNG)
    assert sorted(one.indices) == sorted(order[other.indices])
    assert one.reasons["pursuit_weight"][order] == pytest.approx(other.reasons["pursuit_weight"], rel=1e-6)


def test_it_says_its_checkpoints_and_what_follows_for_the_settings_beside_it() -> None:
    method = Gtp()
    assert isinstance(method, UsesCheckpoints)
    assert (method.checkpoints_from, method.checkpoints) == ("warmup", 4)
    build_coreset({"method": "gtp", "budget": 10, **method.defaults}, 0)  # each a known setting, well typed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ridge": 0.0}, "ridge is 0.0: give a number above 0"),
        ({"checkpoints": 0}, "checkpoints is 0: give at least 1"),
        ({"iterations": 0}, "iterations is 0: give at least 1"),
        ({"copies": 1.5}, "copies is 1.5: give a cosine"),
    ],
)
def test_a_setting_that_cannot_be_is_an_error(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Gtp(**settings)  # type: ignore[arg-type]

"""The cascade: cheap signals of all rows, expensive ones of the few that the filter `narrow` leaves."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_model import FakeModel
from tiny_run import coreset_config, corpus, trainer

from coretune import refresh
from coretune.filters.duplicates import Duplicates
from coretune.filters.narrow import Narrow, spread_order
from coretune.filters.noise import Noise, scores
from coretune.ledger import Ledger
from coretune.planning.workload import measurement_work as planned
from coretune.presets import ONCE
from coretune.rounds.coreset_config import CoresetConfig
from coretune.rounds.measurement import Measurement
from coretune.rounds.schedule import Schedule
from coretune.rounds.state import State
from coretune.rounds.targets import Target
from coretune.rounds.transitions import empty_pool
from coretune.select.rds import Rds
from coretune.testing import synthetic_pool
from coretune.types import NOISE_SCORE, TARGET_SIMILARITY, Budget, Quota

RNG = np.random.default_rng(0)


def test_the_nearest_rows_stay_a_few_times_the_budget_and_are_those_that_rds_would_take() -> None:
    pool = synthetic_pool(60, 6, 0, unusable=0.2)
    for times, budget in ((1.0, Budget(7)), (3.5, Budget(4)), (50, Budget(9))):
        verdict = Narrow(times=times).judge(pool, budget)
        kept = np.flatnonzero(verdict.keep)
        assert len(kept) == min(int(np.ceil(times * budget.amount)), pool.usable.sum())
        assert set(Rds().select(pool, Budget(len(kept)), RNG).indices) == set(kept)
    near = pool.feature(TARGET_SIMILARITY)
    np.testing.assert_allclose(verdict.score[pool.usable], 1 - near[pool.usable].max(axis=1), rtol=1e-6)


def test_a_budget_of_tokens_stays_as_often_in_tokens() -> None:
    pool = synthetic_pool(60, 6, 0)
    kept = Narrow(times=3).judge(pool, Budget(200, "tokens")).keep
    assert 600 <= pool.cost[kept].sum() < 600 + pool.cost.max()


@pytest.mark.parametrize("by", ["target", "spread"])
def test_every_source_keeps_a_few_times_its_due(by: str) -> None:
    pool = synthetic_pool(60, 6, 0)
    group = (np.arange(60) < 50).astype(np.int64)  # the first source has ten rows
    quota = Quota(group, np.array([3, 0]), np.array([6, 6]), ("rare", "often"))
    kept = Narrow(times=3, by=by).judge(pool, Budget(6, "rows", quota)).keep
    assert (group[kept] == 0).sum() >= 9


def test_rows_are_spread_over_the_pool_as_densely_as_it_lies() -> None:
    centers = 10 * RNG.normal(size=(4, 8))
    of = np.repeat(np.arange(4), [160, 80, 40, 40])
    rows = (centers[of] + 0.1 * RNG.normal(size=(320, 8))).astype(np.float32)
    order = spread_order(rows)
    assert sorted(order.tolist()) == list(range(320))
    assert np.array_equal(order, spread_order(rows))
    for first in (16, 32, 64):
        share = np.bincount(of[order[:first]], minlength=4) / first
        assert share == pytest.approx([0.5, 0.25, 0.125, 0.125], abs=1.5 / first)
    assert spread_order(np.ones((1, 3), np.float32)).tolist() == [0]
    assert sorted(spread_order(np.ones((9, 3), np.float32)).tolist()) == list(range(9))


@pytest.mark.parametrize(
    ("setting", "words"), [({"times": 0.5}, "times is 0.5"), ({"by": "luck"}, "by is 'luck'")]
)
def test_a_setting_that_narrows_nothing_sensible_is_refused(setting: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Narrow(**setting)


# what is measured of whom


def cascade(**settings: Any) -> CoresetConfig:
    filters = (Duplicates(), Narrow(times=3, by="spread"))
    return coreset_config("craig", budget="5", **{**ONCE, "filters": filters, **settings})


def measured(model: FakeModel, other: FakeModel, config: CoresetConfig) -> tuple[State, Ledger]:
    """The first selection: the first model says cheap signals, the other the rest."""
    source, ledger = model.measurement("weighted_embedding"), Ledger()
    source = dataclasses.replace(source, rest=other.measurement("gradient"))
    assert isinstance(source, Measurement)
    state = refresh.start(config, empty_pool(np.arange(5, 45)), Schedule(4, 4, 0, 0), source, ledger)
    return state, ledger


def test_expensive_signals_are_measured_of_the_rows_that_are_left_and_booked() -> None:
    cheap, expensive = FakeModel(40), FakeModel(40, seed=1)
    state, ledger = measured(cheap, expensive, cascade())
    assert [len(rows) for rows in cheap.measured] == [40]
    kept = np.flatnonzero(state.coreset.filtered == 0)
    assert [rows.tolist() for rows in expensive.measured] == [kept.tolist()]
    assert len(kept) == 15
    assert set(state.coreset.indices) <= set(kept.tolist())
    cost = ledger.by_phase()["measurement"]
    assert (cost.rows, cost.flops) == (55, 550)
    whole = dataclasses.replace(
        state.pool, features={**state.pool.features, "gradient": expensive.signal("gradient")}
    )
    config = cascade()
    same = config.select(whole, config.budget.resolve(whole), np.random.default_rng([0, 0, 4]))
    assert same.indices.tolist() == state.coreset.indices.tolist()


def test_a_row_whose_expensive_signal_is_not_finite_gives_its_place_to_another() -> None:
    cheap, expensive = FakeModel(40), FakeModel(40, seed=1)
    kept = np.flatnonzero(measured(cheap, expensive, cascade())[0].coreset.filtered == 0)
    expensive = FakeModel(40, seed=1)
    expensive.broken = {int(kept[0]), int(kept[3])}
    state, _ = measured(FakeModel(40), expensive, cascade())
    assert len(expensive.measured) >= 2
    assert set(np.flatnonzero(~state.pool.usable)) == expensive.broken
    left = np.flatnonzero((state.coreset.filtered == 0) & state.pool.usable)
    assert len(left) == 15
    assert set(left) <= set(np.concatenate(expensive.measured).tolist())


def test_what_is_spread_along_a_graph_does_not_go_with_a_cascade() -> None:
    for wrong in ({"anchors": "candidates"}, {"propagate": "average"}, {"repair": "local"}):
        with pytest.raises(ValueError, match="filters has narrow, after which few rows have all signals"):
            cascade(**wrong)


def test_filters_behind_it_are_measured_of_few_rows_too() -> None:
    config = cascade()
    assert config.narrows_at == 2
    assert config.cheap_needs == ("weighted_embedding",)
    assert set(config.needs) == {"weighted_embedding", "gradient"}
    assert coreset_config("craig").cheap_needs == coreset_config("craig").needs


def test_a_noise_filter_behind_it_scores_what_was_measured_for_it() -> None:
    """At each refresh by the losses of that refresh, though the first stage measures none."""
    filters = (Narrow(times=3, by="spread"), Noise(pairs=8, min_auc=0.0))
    config, schedule, ledger = cascade(filters=filters, refresh_every=4), Schedule(4, 4, 0, 1), Ledger()
    cheap, expensive = FakeModel(40), FakeModel(40, seed=1)
    source = dataclasses.replace(
        cheap.measurement("weighted_embedding"),
        rest=expensive.measurement("loss", "empty_prompt_loss", "prompt_embedding", "gradient"),
    )
    state = refresh.start(config, empty_pool(np.arange(5, 45)), schedule, source, ledger)
    for age in (1, 2):
        cheap.age = expensive.age = age
        cheap.mismatched += 1
        state = refresh.advance(config, state, schedule, source, ledger)
        pool = state.pool
        anew = {name: value for name, value in pool.features.items() if name != NOISE_SCORE}
        anew |= {name: expensive.signal(name) for name in ("loss", "empty_prompt_loss")}
        left = np.setdiff1d(expensive.measured[-1], np.flatnonzero(~pool.usable))
        assert len(left) == 15
        np.testing.assert_allclose(
            state.coreset.reasons["noise"][left],
            scores(dataclasses.replace(pool, features=anew))[left],
            rtol=1e-6,
        )


# a whole run


def less(folder: Path, filters: tuple[Any, ...], **settings: Any) -> Any:
    config = coreset_config("less", budget="5", **{**ONCE, "filters": filters, **settings})
    return trainer(
        folder, config, target=[Target(corpus(6, 1))], max_steps=2, signals_dir=folder.parent / "s"
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Narrowed after everything was measured, by hand, and the cascade."""
    folder = tmp_path_factory.mktemp("cascade")
    plain, narrow = less(folder / "plain", ()), less(folder / "narrow", (Narrow(times=2),))
    plain.train()
    narrow.train()
    return plain, narrow


def test_a_cascade_chooses_what_the_whole_pool_narrowed_afterwards_would_give(runs: tuple[Any, Any]) -> None:
    plain, narrow = runs
    config = narrow.coreset_config
    pool = plain.coreset_state.pool
    expected = config.select(pool, config.budget.resolve(pool), np.random.default_rng(0))
    chosen = narrow.coreset_state.coreset
    assert chosen.indices.tolist() == expected.indices.tolist()
    assert chosen.figures["filtered_narrow"] == 48 - 10
    assert "serves" in chosen.reasons


def test_a_cascade_costs_what_it_measures_and_is_predicted_so(runs: tuple[Any, Any]) -> None:
    plain, narrow = runs
    measured = narrow.ledger.by_phase()["measurement"]
    assert measured.rows == 48 + 10
    assert measured.flops < 0.75 * plain.ledger.by_phase()["measurement"].flops
    kept = np.flatnonzero(narrow.coreset_state.coreset.filtered == 0)
    first = narrow.measurement.first
    assert measured.flops == pytest.approx(first.flops(np.arange(48)) + first.rest.flops(kept))
    said = planned(narrow, np.arange(48), first=True)
    assert said.rows == measured.rows
    assert said.flops == pytest.approx(measured.flops, rel=0.15)


def test_both_stages_are_kept_on_disk_and_not_measured_again(
    runs: tuple[Any, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, narrow = runs
    shared = Path(narrow.args.output_dir).parent / "s"
    again = trainer(
        tmp_path, narrow.coreset_config, target=[Target(corpus(6, 1))], max_steps=2, signals_dir=shared
    )
    with caplog.at_level(logging.WARNING, logger="coretune"):
        state = again.select()
    assert state.coreset.indices.tolist() == narrow.coreset_state.coreset.indices.tolist()
    assert "48 of 48 rows were measured before" in caplog.text
    assert "10 of 10 rows were measured before" in caplog.text


def test_a_cascade_is_made_anew_at_every_refresh(tmp_path: Path) -> None:
    made = less(tmp_path / "run", (Narrow(times=2),), refresh_every=1)
    made.train()
    assert made.ledger.by_phase()["measurement"].rows == 2 * (48 + 10)

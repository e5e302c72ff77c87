"""Which rows a refresh measures, and what is known when it is over."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from checkpoint_method import ByCheckpoints
from fake_model import FakeModel
from fake_run import COST, N, Run, config

from coretune.filters import DetectsNoise
from coretune.filters.neighbours import Neighbours
from coretune.filters.noise import Noise
from coretune.policies.reuse import Reuse, due, may_measure_once
from coretune.rounds.budget import parse_budget
from coretune.rounds.exact_duplicates import ExactDuplicates
from coretune.rounds.measurement import Measurement
from coretune.select.d2 import D2
from coretune.select.facility_location import FacilityLocation
from coretune.select.grace import Grace
from coretune.select.kcenter import KCenter
from coretune.select.loss import Loss
from coretune.select.random import Random
from coretune.types import Array, Budget, Coreset, Pool, Rows, Selector


@pytest.mark.parametrize("anchors", ["priority", "candidates"])
def test_few_anchors_are_few_measurements(anchors: str) -> None:
    run = Run(config(anchors=anchors, anchor_share=0.1)).go(2)
    first, *later = (entry.rows_measured for entry in run.ledger.rounds)
    assert first == N
    assert all(0 < rows < N for rows in later)
    cost = run.ledger.by_phase()["measurement"]
    assert cost.rows == sum(len(rows) for rows in run.model.measured) == first + sum(later)
    assert cost.flops == 10.0 * cost.rows
    assert cost.tokens == sum(int(COST[rows].sum()) for rows in run.model.measured)


@pytest.mark.parametrize("staleness_factor", [1.0, 1.5, 2.0, 3.0])
def test_candidates_are_measured_before_they_are_trained_on(staleness_factor: float) -> None:
    """Once the run is so many times as old as at the last measurement; with 1 at each refresh."""
    run = Run(config(anchors="candidates", staleness_factor=staleness_factor), FakeModel(N, drift=0.02))
    for _ in range(7):
        before = run.go(1).states[-2].pool.measured_at
        state = run.state
        looked_at = state.pool.measured_at
        good = looked_at[state.coreset.indices] * staleness_factor > state.round
        assert (good | (looked_at[state.coreset.indices] == state.round)).mean() >= 0.9
        again = np.flatnonzero(looked_at == state.round)
        assert (before[again] * staleness_factor <= state.round).all()  # no measurement of what was valid
    looked = [row for rows in run.model.measured[1:] for row in rows.tolist()]
    assert len(looked) < 7 * N


def test_measurements_that_stay_valid_are_fewer_measurements() -> None:
    def looks(**settings: Any) -> int:
        return sum(map(len, Run(config(anchors="candidates", **settings)).go(8).model.measured))

    assert looks(staleness_factor=3.0) < looks(staleness_factor=1.5) < looks(staleness_factor=1.0)


def test_a_model_that_cannot_tell_wrong_from_right_is_asked_again_when_it_is_twice_as_old() -> None:
    """Meanwhile nothing is measured; once noise detection is on, candidates are, in the same refresh."""
    model = FakeModel(N, drift=0.0)
    model.mismatched = 0.1
    settings = {"anchors": "candidates", "anchor_share": 0.1, "defer_first_measurement": False}
    run = Run(config(Grace(), filters=(Noise(pairs=8),), **settings), model).go(8)
    assert [len(rows) for rows in model.measured] == [N, 4, 4, 4, 4]
    assert [entry.rows_measured for entry in run.ledger.rounds] == [N, 4, 4, 0, 4, 0, 0, 0, 4]
    assert len({tuple(rows) for rows in model.measured}) == 5
    assert not any(state.coreset.figures["noise_on"] for state in run.states)
    model.mismatched = 4.0
    run.go(7)
    assert [entry.rows_measured for entry in run.ledger.rounds[9:]] == [0] * 7
    run.go(1)
    assert run.ledger.rounds[16].rows_measured > 4
    assert set(run.state.coreset.indices) <= set(np.flatnonzero(run.state.pool.measured_at == 16))


def test_without_a_noise_filter_candidates_are_measured() -> None:
    class Unasked(FakeModel):
        def measurement(self, *names: str) -> Measurement:
            return dataclasses.replace(super().measurement(*names), references=dict)

    run = Run(config(Grace(), anchors="candidates"), Unasked(N)).go(3)
    assert all(entry.rows_measured > 0 for entry in run.ledger.rounds[:3])


def test_a_choice_within_a_refresh_differs_only_where_a_row_gave_way() -> None:
    """All rows keep the values with which the refresh began, however far measurements moved some."""
    settings = {"anchors": "candidates", "staleness_factor": 1.0, "budget": parse_budget("25%")}
    run = Run(config(**settings), FakeModel(N, drift=2.0)).go(3)
    assert [len(rows) for rows in run.model.measured] == [
        N,
        10,
        10,
        10,
    ]  # no refresh chooses others to measure
    for before, state in zip(run.states, run.states[1:], strict=False):
        in_place = FacilityLocation().select(before.pool, run.config.budget.resolve(before.pool), None)
        assert set(state.coreset.indices) == set(in_place.indices)  # type: ignore[union-attr]
        moved = state.pool.feature(run.config.refresh.embedding)[state.coreset.indices]
        assert (
            np.abs(moved - before.pool.feature(run.config.refresh.embedding)[state.coreset.indices]).max()
            > 0.1
        )


def test_what_a_region_is_worth_stands_within_a_refresh() -> None:
    """Every choice of a refresh has the losses with which it began beside those that it measured."""
    seen: list[tuple[Array, Array]] = []

    class Weighing:
        needs = (*FacilityLocation().needs, "loss")

        def select(self, pool: Pool, budget: Budget, rng: np.random.Generator) -> Coreset:
            if "standing_loss" in pool.features:
                seen.append((pool.feature("standing_loss"), pool.feature("loss")))
            return FacilityLocation().select(pool, budget, rng)

    run = Run(config(Weighing(), anchors="candidates", propagate="none"), FakeModel(N, drift=2.0)).go(1)
    (before, now), (still, last) = seen[0], seen[-1]
    np.testing.assert_array_equal(before, run.states[0].pool.feature("loss"))
    np.testing.assert_array_equal(before, still)
    np.testing.assert_array_equal(before, now)
    assert (last != before).any()
    assert "standing_loss" not in run.state.pool.features


def test_rows_flagged_as_noisy_are_measured_again() -> None:
    """Some at a refresh, those of the oldest measurements: a row that is no longer flagged competes again."""

    odd = np.arange(0, N, N // 10)

    class Learning(FakeModel):
        """The losses of every fourth row are those of wrong ones until the model is five rounds old; the rows
        that ask alike are those of the numbers beside it."""

        def signal(self, name: str) -> Array:
            found = super().signal(name)
            if name == "prompt_embedding":
                angle = 2 * np.pi * np.arange(N) / N
                found = np.zeros_like(found)
                found[:, 0], found[:, 1] = np.cos(angle), np.sin(angle)
            if name == "loss":
                found = np.full(N, 0.1, np.float32)
                found[odd] += 0.1 if self.age >= 5 else 9.0
            return found

    settings = {"anchors": "candidates", "staleness_factor": 1.0, "anchor_share": 0.2, "propagate": "none"}
    run = Run(config(filters=(Noise(pairs=8),), **settings), Learning(N, drift=0.0)).go(10)
    assert all(len(np.intersect1d(rows, odd)) <= 8 for rows in run.model.measured[1:5])
    flagged = run.states[4].coreset.filtered_by("noise")
    assert flagged is not None
    assert np.flatnonzero(flagged).tolist() == odd.tolist()
    early, late = run.states[4].pool.feature("loss"), run.state.pool.feature("loss")
    assert (early[odd] > 0.5).all()
    assert (late[odd] < 0.5).all()


def test_exact_duplicates_are_measured_once_and_have_the_same_signals() -> None:
    class Copied(FakeModel):
        """Rows 20 to 39 are rows 0 to 19 again."""

        def signal(self, name: str) -> Array:
            return _twice(super().signal(name))

        def measurement(self, *names: str) -> Measurement:
            plain, twins = super().measurement(*names), ExactDuplicates(np.arange(N) % (N // 2))
            return dataclasses.replace(plain, measure=twins.sharing(plain.measure), duplicates=twins)

    run = Run(config(anchors="priority", anchor_share=0.1), Copied(N)).go(3)
    assert len(run.model.measured[0]) == N // 2
    spent = run.ledger.by_phase()["measurement"]
    assert spent.rows == sum(map(len, run.model.measured)) == sum(r.rows_measured for r in run.ledger.rounds)
    measured = run.state.pool.measured_at
    np.testing.assert_array_equal(measured[: N // 2], measured[N // 2 :])
    known = np.flatnonzero(measured == run.state.round)
    assert len(known) > len(run.model.measured[-1])
    name = run.config.refresh.embedding
    np.testing.assert_array_equal(run.state.pool.feature(name)[known], run.model.signal(name)[known])


def _twice(values: Array) -> Array:
    return np.concatenate([values[: N // 2], values[: N // 2]])


def test_a_run_is_asked_again_each_time_it_is_so_many_times_as_old() -> None:
    def of(staleness_factor: float, refreshes: range) -> list[int]:
        return [n for n in refreshes if due(staleness_factor, n, n - refreshes.step)]

    assert of(2.0, range(20)) == [0, 1, 2, 4, 8, 16]
    assert of(1.5, range(20)) == [0, 1, 2, 3, 4, 6, 8, 12, 18]
    assert of(2.0, range(1, 40, 2)) == [1, 3, 5, 9, 17, 33]  # a refresh every second round
    assert of(2.0, range(2, 40, 3)) == [2, 5, 8, 17, 32]
    assert of(1.0, range(20)) == list(range(20))


class Shown(FakeModel):
    """Training shows all rows but the last 4; the first 5 cost `cost` nats, all others less than 1."""

    cost = 0.5

    def measurement(self, *names: str) -> Measurement:
        def shown() -> tuple[Rows, dict[str, Array]]:
            rows = np.arange(N - 4)
            seen = {name: self.signal(name)[rows] for name in names}
            if "loss" in seen:
                seen["loss"][:5] = self.cost
            return rows, seen

        return dataclasses.replace(super().measurement(*names), online=shown)


def test_what_training_shows_of_a_row_is_known_of_its_equals() -> None:
    class ShownOfTwo(Shown):
        """Rows 20 to 39 are rows 0 to 19 again; training shows those below 36."""

        def signal(self, name: str) -> Array:
            return _twice(super().signal(name))

        def measurement(self, *names: str) -> Measurement:
            plain, twins = super().measurement(*names), ExactDuplicates(np.arange(N) % (N // 2))
            return dataclasses.replace(plain, measure=twins.sharing(plain.measure), duplicates=twins)

    run = Run(config(anchors="candidates", anchor_share=0.1), ShownOfTwo(N)).go(1)
    assert run.ledger.rounds[-1].rows_measured == 0
    assert (run.state.pool.measured_at == 1).all()
    for name, value in run.state.pool.features.items():
        if name in run.config.needs:
            np.testing.assert_array_equal(value[: N // 2], value[N // 2 :])


def calm_run(**settings: Any) -> Run:
    settings = {"anchors": "candidates", "anchor_share": 1.0, **settings}
    return Run(config(Grace(), filters=(Noise(pairs=8),), **settings), Shown(N, drift=0.0))


def test_candidates_are_not_measured_where_none_is_noisy_and_there_are_online_signals() -> None:
    """But some at random, when the run is twice as old: here all that training has not shown."""
    run = calm_run(warmup=0.1).go(8)
    assert [entry.rows_measured for entry in run.ledger.rounds] == [N, 4, 0, 4, 0, 0, 0, 4]
    assert run.state.coreset.figures["found_noisy"] == round(1 / (N + 2), 4)


def test_a_measurement_before_training_stays_valid_with_noise_detection_and_online_signals() -> None:
    run = calm_run(staleness_factor=1.0).go(4)
    assert [entry.rows_measured for entry in run.ledger.rounds] == [N, 0, 0, 0, 0]
    assert run.measurement is not None
    assert run.ledger.by_phase()["measurement"].flops == 10.0 * N
    plain = Run(config(Grace(), filters=(Noise(pairs=8),)), FakeModel(N, drift=0.0)).go(2)
    assert plain.ledger.rounds[-1].rows_measured > 0  # training shows nothing: measured again


@pytest.mark.parametrize("method", [Random(), D2(), KCenter(), FacilityLocation()])
def test_methods_that_read_embeddings_or_nothing_measure_once_where_noise_detection_is_on(
    method: Selector,
) -> None:
    settings_ = {"anchors": "candidates", "staleness_factor": 1.0, "warmup": "auto"}
    run = Run(config(method, filters=(Noise(pairs=8),), **settings_), Shown(N, drift=0.0)).go(4)
    assert [entry.rows_measured for entry in run.ledger.rounds] == [N, 0, 0, 0, 0]


def test_a_ranking_by_loss_does_not_stand_on_losses_of_before_training() -> None:
    made = config(Loss(), filters=(Noise(pairs=8),), anchors="candidates", warmup="auto")
    assert made.warmup_share == 0
    assert not may_measure_once(made, True)


@pytest.mark.parametrize("noise", [Noise(pairs=8, min_auc=0), Neighbours(pairs=8, min_loss_ratio=0)])
def test_a_measurement_of_before_any_training_does_not_stand_where_noise_is_on_untold(
    noise: DetectsNoise,
) -> None:
    """A filter that is always on flags rows by a model that can tell nothing yet."""
    model, settings_ = (
        Shown(N, drift=0.0),
        {"anchors": "candidates", "anchor_share": 1.0, "staleness_factor": 1.0},
    )
    model.mismatched = 1.0  # after another prompt a response is as likely as after its own
    run = Run(config(Grace(), filters=(noise,), defer_first_measurement=False, **settings_), model).go(2)
    assert run.state.coreset.figures["noise_on"] == 1
    assert "measured_at_once" not in run.state.coreset.figures
    assert sum(entry.rows_measured for entry in run.ledger.rounds[1:]) > 0
    told = Run(
        config(Grace(), filters=(noise,), defer_first_measurement=False, **settings_), Shown(N, drift=0.0)
    ).go(2)
    assert told.state.coreset.figures["measured_at_once"] == 1


def test_a_measurement_at_checkpoints_does_not_stay_valid() -> None:
    """Its model has been trained on the pool, and the one that is trained has not."""
    settings_ = {"anchors": "candidates", "filters": (Noise(pairs=8),), "warmup": 0.1}
    run = Run(config(ByCheckpoints(signal="prompt_embedding"), **settings_), Shown(N, drift=0.0)).go(2)
    assert run.state.coreset.figures["noise_on"] == 1
    assert "measured_at_once" not in run.state.coreset.figures
    assert not may_measure_once(run.config, True)


def test_candidates_are_measured_again_once_online_signals_show_noisy_rows() -> None:
    run = calm_run(anchor_share=0.1).go(4)
    run.model.cost = 9.0
    run.go(1)
    assert run.ledger.rounds[5].rows_measured == 0
    flagged = run.state.coreset.filtered_by("noise")
    assert flagged is not None
    many = flagged[: N - 4].sum()
    assert many >= 3
    assert run.state.coreset.figures["found_noisy"] == round((many + 1) / (N - 4 + 2), 4)
    before, after = run.states[-2:]
    rng, choose = np.random.default_rng(0), FacilityLocation().select
    assert Reuse(run.config, before, True, choose, rng).few_found_noisy
    assert not Reuse(run.config, after, True, choose, rng).few_found_noisy
    assert not Reuse(run.config, before, False, choose, rng).few_found_noisy

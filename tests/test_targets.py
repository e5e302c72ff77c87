"""A few trusted examples of what is wanted: who serves which, what is left out, what cannot be served."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import LENGTH, coreset_config, corpus, records, trainer, weights, write_jsonl
from tiny_tokenizer import tiny_tokenizer

from coretune.data.corpus import Corpus
from coretune.filters.target_rows import TargetRows
from coretune.presets import ONCE
from coretune.recording.run_files import WARMUP_RUN
from coretune.rounds.targets import Target, TargetExamples, equal_rows, without_examples
from coretune.select import SELECTORS
from coretune.select.by_target import NEAREST_OWN, NEAREST_POOL, nearness, turns, unserved, with_served
from coretune.select.loss_drop import LossDrop
from coretune.select.rds import Rds
from coretune.testing import synthetic_pool
from coretune.types import SERVES, SHARE, TARGET_NUMBER, TARGET_OF, TARGET_SIMILARITY, Budget, Pool, Quota

TARGETED = ["gtp", "less", "loss_drop", "rds"]
RNG = np.random.default_rng(0)


def two_targets(
    n: int = 40, examples: tuple[int, int] = (2, 3), share: tuple[float, float] = (0.75, 0.25)
) -> Pool:
    """A pool whose even rows are near the first target, and its odd ones near the second, in any signal."""
    pool, rng = synthetic_pool(n, 6, 0), np.random.default_rng(1)
    of = np.repeat([0, 1], examples)
    mine = np.arange(n)[:, None] % 2 == of
    near = (np.where(mine, 0.6, 0.1) + 0.2 * rng.random((n, len(of)))).astype(np.float32)
    each = (np.arange(n)[:, None] % 2 == np.arange(2)).astype(np.float32)
    own = np.arange(n)[:, None] % 2 == np.arange(64) // 32  # half of the directions are a target's alone
    trajectory = np.where(own, rng.random((n, 64)), 0).astype(np.float32)
    features = {
        TARGET_SIMILARITY: near,
        "target_cosine": near,
        "loss": np.full(n, 2, np.float32),
        "target_loss": (1.8 - each - 0.1 * rng.random((n, 2))).astype(np.float32),
        "trajectory": trajectory,
    }
    references = {
        TARGET_OF: of,
        SHARE: np.float32(share),
        "trajectory": np.repeat(np.eye(2, dtype=np.float32), 32, 1),
    }
    return dataclasses.replace(pool, features={**pool.features, **features}, references=references)


@pytest.mark.parametrize("name", TARGETED)
@pytest.mark.parametrize("unit", ["rows", "tokens"])
def test_targets_get_their_shares_of_the_budget_and_rows_serve_an_example_of_their_own(
    name: str, unit: str
) -> None:
    pool = two_targets()
    budget = Budget(12) if unit == "rows" else Budget(int(pool.cost.mean() * 12), "tokens")
    chosen = with_served(pool, SELECTORS[name]().select(pool, budget, RNG))
    number = chosen.reasons[TARGET_NUMBER]
    rows = chosen.indices
    assert (number[rows] == rows % 2).all()
    assert (np.delete(number, rows) == -1).all()
    size = pool.cost if unit == "tokens" else np.ones(pool.n)
    assert size[rows[rows % 2 == 0]].sum() / size[rows].sum() == pytest.approx(0.75, abs=0.12)
    served = chosen.reasons[SERVES][rows].astype(int)
    assert (pool.references[TARGET_OF][served] == number[rows]).all()
    near = pool.feature(TARGET_SIMILARITY)
    np.testing.assert_allclose(chosen.reasons[TARGET_SIMILARITY][rows], near[rows, served])


def test_examples_take_turns_and_a_row_serves_the_example_that_took_it() -> None:
    pool = two_targets(examples=(2, 2), share=(0.5, 0.5))
    chosen = Rds().select(pool, Budget(8), RNG)
    served = chosen.reasons[SERVES][chosen.indices]
    assert served.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    near, taken = pool.feature(TARGET_SIMILARITY), set[int]()
    for row, column, gain in zip(chosen.indices.tolist(), served.astype(int), chosen.gains, strict=True):
        left = [i for i in range(pool.n) if i not in taken]
        assert row == max(left, key=lambda i: (near[i, column], -i))
        assert gain == near[row, column]
        taken.add(row)


def test_turns_go_by_shares_and_sizes_until_no_row_is_left() -> None:
    worth = np.array([[3.0, 9], [2, 8], [1, 7], [0, 6]])
    order, taker = turns(worth, np.array([0.75, 0.25]), np.ones(4), np.arange(4))
    assert (order.tolist(), taker.tolist()) == ([0, 1, 2, 3], [0, 0, 1, 0])
    order, taker = turns(worth, np.array([0.5, 0.5]), np.array([1, 5, 1, 1]), np.array([1, 2, 3]))
    assert (order.tolist(), taker.tolist()) == ([1, 2, 3], [0, 1, 1])


@pytest.mark.parametrize("name", ["less", "loss_drop", "rds"])
def test_a_quota_holds_beside_targets(name: str) -> None:
    pool = two_targets()
    quota = Quota((np.arange(40) >= 20).astype(np.int64), np.array([6, 0]), np.array([12, 3]), ("a", "b"))
    chosen = SELECTORS[name]().select(pool, Budget(12, "rows", quota), RNG)
    assert len(chosen.indices) == 12
    assert (chosen.indices >= 20).sum() <= 3


def test_loss_drop_ranks_by_the_share_of_the_loss_that_is_gone() -> None:
    pool = synthetic_pool(20, 4, 2)
    features = {**pool.features, "loss": np.full(20, 4, np.float32)}
    features["target_loss"] = np.linspace(4.4, 1, 20, dtype=np.float32)[:, None]
    features["loss"][3], features["target_loss"][3] = 0.0, 0.0  # no loss to lose, and no division by it
    chosen = LossDrop().select(dataclasses.replace(pool, features=features), Budget(4), RNG)
    assert chosen.indices.tolist() == [19, 18, 17, 16]
    assert chosen.gains[0] == pytest.approx(0.75)
    assert chosen.reasons["loss_drop"][[0, 3]].tolist() == pytest.approx([-0.1, 0.0])
    with pytest.raises(ValueError, match="target_epochs is 0"):
        LossDrop(target_epochs=0)


def test_a_signal_of_other_examples_than_the_pools_is_an_error() -> None:
    pool = two_targets()
    with pytest.raises(ValueError, match="no target to compare with: give trusted rows as target_data"):
        Rds().select(dataclasses.replace(pool, references={}), Budget(3), RNG)
    other = {**pool.references, TARGET_OF: np.zeros(2, np.int64)}
    with pytest.raises(ValueError, match="compares with 5 target examples, and the pool has 2"):
        Rds().select(dataclasses.replace(pool, references=other), Budget(3), RNG)


# what the pool cannot serve


def embedded(pool_at: float, seed: int = 0) -> tuple[Pool, np.ndarray]:
    """A target of 6 examples about one direction, and a pool of 200 rows about one that is so far from it."""
    rng = np.random.default_rng(seed)
    center, far = np.eye(16)[0], np.cos(pool_at) * np.eye(16)[0] + np.sin(pool_at) * np.eye(16)[1]
    rows = [mean + 0.2 * rng.normal(size=(n, 16)) for mean, n in ((center, 6), (far, 200))]
    examples, others = (row / np.linalg.norm(row, axis=1, keepdims=True) for row in rows)
    pool = synthetic_pool(200, 4, 0)
    near = (others @ examples.T).astype(np.float32)
    references = {TARGET_OF: np.zeros(6, np.int64), TARGET_SIMILARITY: examples @ examples.T}
    return dataclasses.replace(
        pool, features={**pool.features, TARGET_SIMILARITY: near}, references=references
    ), near


@pytest.mark.parametrize(("pool_at", "served"), [(0.0, True), (0.2, True), (1.2, False), (1.5, False)])
def test_a_target_that_the_pool_cannot_serve_is_named_with_its_figures(pool_at: float, served: bool) -> None:
    pool, near = embedded(pool_at)
    figures = nearness(pool, near, pool.references[TARGET_OF])
    lines = unserved(figures, ["code.jsonl"])
    assert len(lines) == (0 if served else 1)
    if not served:
        own, nearest = figures[NEAREST_OWN][0], figures[NEAREST_POOL][0]
        assert lines[0].startswith("code.jsonl: the pool seems to hold nothing of this kind")
        assert f"similarity of {nearest:.3f}" in lines[0]
        assert f"have {own:.3f} among themselves" in lines[0]


def test_one_example_alone_says_nothing_of_how_far_apart_its_kind_is() -> None:
    pool, near = embedded(1.5)
    one = dataclasses.replace(
        pool, references={TARGET_OF: np.zeros(1, int), TARGET_SIMILARITY: np.ones((1, 1))}
    )
    assert nearness(one, near[:, :1], one.references[TARGET_OF]) == {}
    assert unserved({}, ["code.jsonl"]) == []


# whole runs


def target(n: int, seed: int, share: float = 1.0, name: str = "target") -> Target:
    return Target(corpus(n, seed), share, name)


BOTH = [target(6, 1, 0.75, "math"), target(5, 2, 0.25, "code")]
EXAMPLES = TargetExamples(tuple(BOTH))


def test_examples_of_several_targets_are_one_list_of_rows() -> None:
    rows = np.array([7, 0, 10])
    assert EXAMPLES.of.tolist() == [0] * 6 + [1] * 5
    for name in ("tokens", "labels"):
        own = [getattr(BOTH[t].rows, name)(np.array([i]))[0] for t, i in ((1, 1), (0, 0), (1, 4))]
        assert all(np.array_equal(a, b) for a, b in zip(getattr(EXAMPLES, name)(rows), own, strict=True))
    assert EXAMPLES.ids[6] == BOTH[1].rows.ids[0]
    assert EXAMPLES.length.tolist() == [*BOTH[0].rows.length, *BOTH[1].rows.length]


@pytest.fixture(scope="module")
def dropped(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of loss_drop for two targets, and its weights before it began."""
    folder = tmp_path_factory.mktemp("drop")
    made = trainer(folder, coreset_config("loss_drop", **ONCE), target=BOTH, max_steps=3)
    before = weights(made)
    made.signals.prepare(made.ledger, folder / WARMUP_RUN)
    after = weights(made)
    made.train()
    return made, before, after


def test_a_warm_up_on_each_target_leaves_the_model_as_it_was(dropped: Any) -> None:
    made, before, after = dropped
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    tuned = made.signals.target_warmups.snapshots(made.model)
    assert len(tuned) == 2
    assert not all(torch.equal(tuned[0].weights[name], tuned[1].weights[name]) for name in tuned[0].weights)


def test_a_target_becomes_easier_by_its_own_warm_up_and_its_cost_is_booked(dropped: Any) -> None:
    made, _, _ = dropped
    pool, costs = made.coreset_state.pool, made.ledger.by_phase()
    assert pool.feature("target_loss").shape == (48, 2)
    assert (pool.feature("target_loss").mean(axis=0) < pool.feature("loss").mean()).all()
    lengths = np.concatenate([np.tile(t.rows.length, 4) for t in BOTH])
    # Once by `prepare` of the fixture and once, found again, by `train`: rows are booked where they are used.
    assert (costs["warm-up"].rows, costs["warm-up"].tokens) == (2 * 44, 2 * lengths.sum())
    assert costs["warm-up"].flops == pytest.approx(2 * made.cost.training_of(lengths))
    everyone = np.arange(48)
    loss = dataclasses.replace(made.cost, signals=frozenset({"loss"}), tuned=0).measurement(everyone)
    assert costs["measurement"].flops == made.measurement.first.flops(everyone) > 3 * loss


def test_the_record_says_whom_each_row_serves_and_how_near_the_pool_is(dropped: Any) -> None:
    made, _, _ = dropped
    chosen = made.coreset_state.coreset
    assert {SERVES, TARGET_NUMBER, TARGET_SIMILARITY, "loss_drop"} <= set(chosen.reasons)
    served = chosen.reasons[SERVES][chosen.indices].astype(int)
    assert (EXAMPLES.of[served] == chosen.reasons[TARGET_NUMBER][chosen.indices]).all()
    assert len(chosen.figures[NEAREST_POOL]) == len(chosen.figures[NEAREST_OWN]) == 2


def test_loss_drop_compares_with_the_base_model_and_needs_a_target(tmp_path: Path) -> None:
    for wrong in ({"refresh_every": 2}, {"warmup": 0.1}):
        with pytest.raises(ValueError, match="set refresh_every to never and warmup to 0"):
            coreset_config("loss_drop", **{**ONCE, **wrong})
    with pytest.raises(ValueError, match="target_loss needs target examples and none are given"):
        trainer(tmp_path, coreset_config("loss_drop", **ONCE))
    with pytest.raises(ValueError, match="target_similarity needs target examples and none are given"):
        trainer(tmp_path, coreset_config("rds", **ONCE))


@pytest.fixture(scope="module")
def leaking(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Three rows of the pool, and one that only asks what a row of the pool asks."""
    folder, rows = tmp_path_factory.mktemp("leak"), records(48)
    rows[7] = {**rows[7], "completion": "sun sun"}
    write_jsonl(folder / "target.jsonl", rows[4:8])
    return Corpus.build(folder / "target.jsonl", tiny_tokenizer(), max_length=LENGTH)


def test_rows_that_equal_an_example_are_found_by_prompt_and_response(leaking: Corpus) -> None:
    found = equal_rows(corpus(), leaking)
    assert {corpus().ids[row] for row in np.flatnonzero(found)} == {"row-004", "row-005", "row-006"}


@pytest.mark.parametrize(("method", "settings"), [("random", {}), ("less", {"warmup": 0.4}), ("rds", ONCE)])
def test_examples_of_the_target_are_never_trained_on_whatever_the_method(
    method: str, settings: dict[str, Any], leaking: Corpus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = coreset_config(method, **{"budget": "100%", "refresh_every": 4, **settings})
    with caplog.at_level(logging.WARNING, logger="coretune"):
        made = trainer(tmp_path, config, target=leaking, max_steps=12 + 6 * (method == "less"))
    made.train()
    trained = {name for batch in made.trained for name in batch}
    assert caplog.text.count("3 rows of the pool equal examples of the target and are left out") == 1
    assert not trained & {"row-004", "row-005", "row-006"}
    assert "row-007" in trained
    assert made.coreset_state.coreset.filtered_by("target_rows").sum() == 3


def test_examples_of_the_target_are_trained_on_where_that_is_asked_for(
    leaking: Corpus, tmp_path: Path
) -> None:
    made = trainer(
        tmp_path,
        coreset_config("random", budget="100%", refresh_every="never", train_on_target=True),
        target=leaking,
        max_steps=12,
    )
    made.train()
    assert {"row-004", "row-005", "row-006"} <= {name for batch in made.trained for name in batch}


def test_train_on_target_says_so_where_it_does_nothing_or_contradicts(tmp_path: Path) -> None:
    told: list[str] = []
    without_examples(coreset_config("random", train_on_target=True), corpus(), (), told.append)
    assert told == ["train_on_target has no effect: no target is given"]
    with pytest.raises(
        ValueError, match="filters has target_rows, which takes out what train_on_target keeps"
    ):
        coreset_config("random", train_on_target=True, filters=(TargetRows(),))

"""The filter `noise`."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from coretune.filters.noise import Noise
from coretune.testing import synthetic_pool
from coretune.types import (
    EMPTY_PROMPT_LOSS,
    MISMATCHED,
    PAIR_TOKENS,
    RESPONSE_TOKENS,
    UNPROMPTED,
    Array,
    Budget,
    NeighborGraph,
    Pool,
)

POOL = synthetic_pool(60, 6, 2, unusable=0.1)

# ------------------------------------------------------------------------------------------------ noise


def noisy_pool(
    wrong: float, n: int = 2000, m: int = 64, told: float = 4.0, seed: int = 0
) -> tuple[Pool, Array]:
    """Responses of 5 to 60 tokens whose prompts save 1 to 3 nats a token, and which are wrong.

    A row's neighbours are drawn at random.
    """
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, 60, n)
    is_wrong = rng.random(n) < wrong
    empty = rng.normal(4, 0.3, n)
    spread = 0.5 / np.sqrt(tokens)  # of a mean over tokens
    saved = np.where(is_wrong, 0, told * rng.uniform(0.2, 0.6, n)) + rng.normal(0, spread)
    some = rng.choice(n, m, replace=False)
    known = {
        "unprompted_loss": empty[some],
        "matched_loss": (empty - saved)[some],
        "mismatched_loss": empty[some] + rng.normal(0, spread[some]),
        "pair_tokens": tokens[some],
    }
    features = {"loss": empty - saved, EMPTY_PROMPT_LOSS: empty, RESPONSE_TOKENS: tokens}
    pool = Pool(features, tokens + 9, np.zeros(n, np.int32), np.ones(n, bool), references=known)
    return with_neighbours(pool, rng.integers(0, n, (n, 10))), is_wrong


def with_neighbours(pool: Pool, neighbours: Array) -> Pool:
    lists = neighbours.astype(np.int32)
    graph = NeighborGraph(lists, np.ones(lists.shape, np.float32), np.zeros((pool.n, 1), np.float32))
    return dataclasses.replace(pool, graph=graph)


@pytest.mark.parametrize("wrong", [0.0, 0.02, 0.05, 0.2, 0.4])
def test_wrong_responses_are_flagged_whatever_their_share_and_hardly_any_right_one(wrong: float) -> None:
    flagged, right = [], []
    for seed in range(5):
        pool, is_wrong = noisy_pool(wrong, seed=seed)
        verdict = Noise().judge(pool, Budget(5))
        assert verdict.figures["noise_on"] == 1
        assert verdict.figures["noise_share"] == pytest.approx(wrong, abs=0.15)
        flagged.append((~verdict.keep)[is_wrong].mean() if wrong else 1)
        right.append((~verdict.keep)[~is_wrong].mean())
    assert np.mean(flagged) >= 0.85
    assert np.mean(right) <= 0.02


def test_a_kind_of_prompt_that_the_model_has_not_learnt_is_not_taken_for_noise() -> None:
    """Its responses score as wrong ones do, but so do their neighbours'."""
    pool, is_wrong = noisy_pool(0.2)
    unlearnt, rng = np.arange(pool.n) < 300, np.random.default_rng(1)
    other = pool.feature(EMPTY_PROMPT_LOSS) + rng.normal(0, 0.5 / np.sqrt(pool.feature(RESPONSE_TOKENS)))
    loss = np.where(unlearnt, other, pool.feature("loss"))
    near = np.where(
        unlearnt[:, None], rng.integers(0, 300, (pool.n, 10)), rng.integers(300, pool.n, (pool.n, 10))
    )
    learning = with_neighbours(dataclasses.replace(pool, features={**pool.features, "loss": loss}), near)
    taken = ~Noise().judge(learning, Budget(5)).keep
    assert taken[unlearnt].mean() < 0.02
    assert taken[~unlearnt & is_wrong].mean() > 0.7
    mixed = with_neighbours(learning, rng.integers(0, pool.n, (pool.n, 10)))
    assert (~Noise().judge(mixed, Budget(5)).keep)[unlearnt].mean() > 0.7


def test_neighbours_without_a_score_do_not_count() -> None:
    pool, is_wrong = noisy_pool(0.2)
    unmeasured = np.arange(pool.n) >= 500
    pool.usable[unmeasured] = False
    near = np.random.default_rng(1).integers(500, pool.n, (pool.n, 10))
    near[:, 0] = np.arange(pool.n) % 500
    taken = ~Noise().judge(with_neighbours(pool, near), Budget(5)).keep[:500]
    assert not taken[is_wrong[:500]].any()  # each is its own only neighbour with a score
    near[:, 0] = 501
    taken = ~Noise().judge(with_neighbours(pool, near), Budget(5)).keep[:500]
    assert taken[is_wrong[:500]].mean() > 0.8  # none has one


def test_noise_detection_is_off_where_a_prompt_says_nothing_of_its_response() -> None:
    pool, _ = noisy_pool(0.2, told=0.0)
    verdict = Noise().judge(pool, Budget(5))
    assert verdict.keep.all()
    assert verdict.figures["noise_on"] == 0
    assert verdict.figures["noise_auc"] < 0.8
    assert not Noise().on(pool)
    always = Noise(min_auc=0.0).judge(pool, Budget(5))
    assert always.figures["noise_on"] == 1
    assert not Noise(min_auc=1.0).on(noisy_pool(0.3)[0])


def test_any_value_of_the_least_separation_counts() -> None:
    pool, _ = noisy_pool(0.2, told=0.25)
    told = Noise().judge(pool, Budget(5)).figures["noise_auc"]
    assert 0.5 < told < 1.0
    assert Noise(min_auc=told - 0.01).on(pool)
    assert not Noise(min_auc=told + 0.01).on(pool)


def test_where_right_and_wrong_overlap_the_cut_gives_way_before_it_flags_many_clean_rows() -> None:
    """Prompts save little, so nine in ten wrong rows cannot be had."""
    pool, is_wrong = noisy_pool(0.3, told=0.5)
    found = Noise(min_auc=0.0).judge(pool, Budget(5))
    assert (~found.keep)[~is_wrong].mean() < 0.2
    assert 0.5 < (~found.keep)[is_wrong].mean() < 0.85


def test_the_noise_score_weighs_the_log_of_the_losses_ratio_by_the_root_of_the_tokens() -> None:
    """And counts it in standard deviations from the middle of the pairs'."""
    pool, _ = noisy_pool(0.2)
    pool.usable[3] = False
    score = Noise().judge(pool, Budget(5)).score

    def weighed(loss: Array, empty: Array, tokens: Array) -> Array:
        return np.sqrt(tokens) * np.log((loss + 0.02) / (empty + 0.02))

    own = [pool.features[name] for name in ("loss", EMPTY_PROMPT_LOSS, RESPONSE_TOKENS)]
    wrong = [pool.references[name] for name in (MISMATCHED, UNPROMPTED, PAIR_TOKENS)]
    low, middle = np.quantile(weighed(*wrong), [0.1, 0.5])
    expected = (weighed(*own)[7] - middle) / (middle - low) * 1.2815516
    assert score[7] == pytest.approx(expected, rel=1e-4)
    assert np.isnan(score[3])


def test_before_rows_are_measured_their_pairs_say_whether_noise_detection_is_on() -> None:
    pool, _ = noisy_pool(0.2)
    unmeasured = dataclasses.replace(pool, features={})
    assert Noise().on(unmeasured)
    assert Noise().seem_wrong(unmeasured) > 0
    assert Noise().seem_wrong(dataclasses.replace(noisy_pool(0.0)[0], features={})) == 0
    few = {name: value[:1] for name, value in pool.references.items()}
    alone = dataclasses.replace(pool, references=few)
    assert not Noise().on(alone)
    assert Noise().judge(alone, Budget(5)).keep.all()


def test_pairs_that_nobody_has_measured_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"no references\[.matched_loss.\].*leave noise out"):
        Noise().judge(dataclasses.replace(POOL, references={}), Budget(5))

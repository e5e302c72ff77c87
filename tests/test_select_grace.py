from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from coretune.select.copies import copy_groups
from coretune.select.facility_location import FacilityLocation
from coretune.select.grace import Grace
from coretune.select.held_back import CONTRADICTED, RESTING
from coretune.select.importance import scaled
from coretune.testing import synthetic_pool
from coretune.types import Array, Budget, Coreset, Pool

OBJECTIVE_ALONE = {
    "mismatched": 0,
    "copies": 2.0,
    "rest": 0,
    "demand": "equal",
}  # every usable row is a candidate


def plain(**settings: object) -> Grace:
    """GRACE by its formula, without the choices that keep rows out."""
    return Grace(**{**OBJECTIVE_ALONE, "importance_term": "sum", "lambda_": 0.5, **settings})  # type: ignore[arg-type]


POOL = synthetic_pool(60, 6, 2, unusable=0.1)
USABLE = np.flatnonzero(POOL.usable)
NINE = Budget(9)


def selected(method: Grace, pool: Pool = POOL, budget: Budget = NINE) -> Coreset:
    return method.select(pool, budget, np.random.default_rng(0))


def test_lambda_1_takes_the_most_important() -> None:
    norm = POOL.features["gradient_norm"]
    coreset = selected(plain(lambda_=1.0))
    assert coreset.indices.tolist() == sorted(USABLE.tolist(), key=lambda row: -norm[row])[:9]
    assert not coreset.reasons["coverage"].any()


@pytest.mark.parametrize("similarity", ["graph", "dense"])
def test_lambda_0_is_facility_location(similarity: str) -> None:
    coreset = selected(plain(lambda_=0.0, similarity=similarity))
    location = FacilityLocation(similarity).select(POOL, Budget(9), np.random.default_rng(0))
    assert coreset.indices.tolist() == location.indices.tolist()
    assert coreset.gains == pytest.approx(location.gains)


@pytest.mark.parametrize("term", ["sum", "mean"])
@pytest.mark.parametrize("lambda_", [0.02, 0.5])
@pytest.mark.parametrize("budget", [Budget(9), Budget(300, "tokens")])
def test_the_gains_are_the_objective_of_the_formula(term: str, lambda_: float, budget: Budget) -> None:
    coreset = selected(plain(lambda_=lambda_, importance_term=term, similarity="dense"), budget=budget)
    worth = scaled(POOL.features["gradient_norm"], POOL.usable)
    if term == "mean":
        worth = worth / (9 if budget.unit == "rows" else 300 / POOL.cost[USABLE].mean())
    embedding = POOL.features["prompt_embedding"]
    cosine = np.maximum(0, embedding[USABLE] @ embedding[coreset.indices].T)
    for count in range(1, len(coreset.indices) + 1):
        importance = lambda_ * worth[coreset.indices[:count]].sum()
        coverage = (1 - lambda_) * cosine[:, :count].max(axis=1).mean()
        assert coreset.gains[:count].sum() == pytest.approx(importance + coverage, rel=1e-5)


def test_the_reasons_add_up_to_the_gains() -> None:
    coreset = selected(plain(lambda_=0.02))
    total = coreset.reasons["importance"] + coreset.reasons["coverage"]
    assert total[coreset.indices] == pytest.approx(coreset.gains)
    left_out = np.setdiff1d(USABLE, coreset.indices)
    assert total[left_out].max() <= coreset.gains.min()  # why they were left out
    assert coreset.reasons["covered"][coreset.indices].tolist() == [1.0] * 9
    assert not total[~POOL.usable].any()


def test_demand_leads_to_where_the_losses_are_high() -> None:
    """By the neighbours' median: neither a row's own loss counts, nor one loud neighbour."""
    losses = np.full(POOL.n, 0.5, np.float32)
    assert POOL.graph is not None
    centre = int(USABLE[0])
    losses[POOL.graph.neighbors[centre]] = 5.0
    pool = dataclasses.replace(POOL, features={**POOL.features, "loss": losses})
    around = [
        np.median([losses[j] for j in row if j >= 0 and POOL.usable[j]] or [losses[v]])
        for v, row in enumerate(POOL.graph.neighbors)
    ]
    demand = np.where(POOL.usable, np.array(around) + 0.02, 0)
    demand /= demand[USABLE].mean()
    embedding = POOL.features["prompt_embedding"]
    cosine = np.maximum(0, embedding[USABLE] @ embedding[USABLE].T) * demand[USABLE][:, None]
    chosen = selected(plain(lambda_=0.0, similarity="dense", demand="loss"), pool)
    assert chosen.indices[0] == USABLE[cosine.sum(axis=0).argmax()]
    assert chosen.gains[0] == pytest.approx(cosine.sum(axis=0).max() / len(USABLE), rel=1e-5)
    losses[centre] = 500.0  # alone in being wrong
    louder = selected(plain(lambda_=0.0, similarity="dense", demand="loss"), pool)
    assert louder.indices.tolist() == chosen.indices.tolist()


def test_the_mean_term_brings_coverage_to_the_fore() -> None:
    covered = [
        selected(plain(lambda_=0.5, importance_term=term)).reasons["covered"][USABLE].mean()
        for term in ("sum", "mean")
    ]
    assert covered[1] > covered[0]


def test_the_cut_off_keeps_the_top_out_but_they_are_still_covered() -> None:
    norm = POOL.features["gradient_norm"]
    top = USABLE[np.argsort(-norm[USABLE])[: int(0.2 * len(USABLE))]]
    coreset = selected(plain(cutoff=0.2, cutoff_by="gradient_norm"))
    assert not np.isin(top, coreset.indices).any()
    assert np.isin(top, selected(plain()).indices).any()
    assert coreset.reasons["covered"][top].any()


def test_the_order_of_the_rows_is_irrelevant() -> None:
    for method in (plain(lambda_=0.02), plain(importance="neighbour_consistency", cutoff=0.1)):
        rows = selected(method).indices
        order = np.random.default_rng(1).permutation(POOL.n)
        assert order[selected(method, reordered(POOL, order)).indices].tolist() == rows.tolist()


def reordered(pool: Pool, order: np.ndarray) -> Pool:
    assert pool.graph is not None
    listed = pool.graph.neighbors[order]
    return dataclasses.replace(
        pool,
        features={name: value[order] for name, value in pool.features.items()},
        cost=pool.cost[order],
        usable=pool.usable[order],
        graph=dataclasses.replace(
            pool.graph,
            neighbors=np.where(listed >= 0, np.argsort(order)[listed], -1).astype(np.int32),
            similarity=pool.graph.similarity[order],
        ),
    )


def test_copies_are_not_taken_twice_for_coverage() -> None:
    pool = synthetic_pool(60, 6, 0, copies=0.5)
    embedding = pool.features["response_embedding"]
    picks = selected(plain(lambda_=0.0), pool, Budget(20)).indices
    assert len(np.unique(embedding[picks], axis=0)) == 20


def test_what_may_not_be_chosen_gives_way_to_the_budget() -> None:
    everything = Budget(len(USABLE))
    assert len(selected(Grace(cutoff=0.9, rest=5), budget=everything).indices) == len(USABLE)
    tokens = Budget(int(POOL.cost[USABLE].sum()), "tokens")
    assert len(selected(Grace(cutoff=0.9, rest=5), budget=tokens).indices) == len(USABLE)


def test_of_copies_only_the_least_noisy_is_chosen() -> None:
    pool = synthetic_pool(60, 6, 0, copies=0.5)
    answers = pool.features["response_embedding"]
    coreset = selected(plain(copies=0.999, cutoff_by="loss", cutoff=0.01, lambda_=1.0), pool, Budget(20))
    assert len(np.unique(answers[coreset.indices], axis=0)) == 20
    both = selected(plain(lambda_=1.0), pool, Budget(20))
    assert len(np.unique(answers[both.indices], axis=0)) < 20


def test_rows_that_point_the_same_way_as_all_are_no_copies() -> None:
    """Hidden states with a common part a hundred times as long as what tells them apart."""
    pool = synthetic_pool(60, 6, 0, copies=0.5)
    answers = pool.features["response_embedding"]
    common = np.eye(6, dtype=np.float32)[0] * 100 + answers
    alike = common / np.linalg.norm(common, axis=1, keepdims=True)
    assert (alike @ alike.T).min() > 0.999
    bent = dataclasses.replace(pool, features={**pool.features, "response_embedding": alike})
    copies = [copy_groups(each, 0.999, "response_embedding") for each in (pool, bent)]
    assert copies[0].tolist() == copies[1].tolist()
    assert 30 <= len(np.unique(copies[0])) < 60
    same = dataclasses.replace(pool, features={"response_embedding": np.tile(alike[:1], (60, 1))})
    assert len(np.unique(copy_groups(same, 0.999, "response_embedding"))) < 30  # each with its neighbours


def test_rows_that_rest_are_not_chosen_and_those_trained_longest_ago_come_back_first() -> None:
    trained_at = np.full(POOL.n, -1, np.int32)
    trained_at[USABLE[:20]], trained_at[USABLE[20:40]] = 5, 4
    pool = with_training(trained_at, np.zeros(POOL.n, np.int32))
    rested = set(USABLE[40:].tolist())
    assert set(selected(plain(rest=2), pool).indices.tolist()) <= rested
    assert set(selected(plain(rest=1), pool, Budget(20)).indices.tolist()) <= rested | set(
        USABLE[20:40].tolist()
    )
    more = selected(plain(rest=2), pool, Budget(len(rested) + 5)).indices
    assert not np.isin(more, USABLE[:20]).any()


def test_rows_are_trained_on_as_often_as_their_region_is_worth() -> None:
    """All once, twenty of them nine times: more than their share, unless their region is worth more."""
    trained_at, times = np.zeros(POOL.n, np.int32), np.ones(POOL.n, np.int32)
    trained_at[USABLE[-1]] = 9  # long ago for all others
    often = USABLE[:20]
    times[often] = 9
    alike = selected(plain(rest=1, demand="equal"), with_training(trained_at, times), Budget(20))
    assert not np.isin(alike.indices, often).any()
    assert (alike.reasons["held_back"][often] == RESTING).all()
    more = selected(plain(rest=1, demand="equal"), with_training(trained_at, times), Budget(len(USABLE) - 1))
    assert np.isin(often, more.indices).all()
    loss = np.full(POOL.n, 0.1, np.float32)
    near = POOL.graph.neighbors[often[0]]
    loss[near[near >= 0]] = 10  # the region of one of them
    wanted = with_training(trained_at, times, loss=loss)
    chosen = selected(plain(rest=1, demand="loss"), wanted, Budget(20))
    assert chosen.reasons["held_back"][often[0]] != RESTING
    assert (chosen.reasons["held_back"][often] == RESTING).sum() > 10


def test_rows_may_come_more_often_the_more_of_the_others_are_contradicted() -> None:
    """A fifth are: a share is divided by 0.8², and three times are enough for a mean of two."""
    loss, times = np.ones(POOL.n, np.float32), np.full(POOL.n, 2, np.int32)
    trained_at = np.zeros(POOL.n, np.int32)
    wrong, often = USABLE[::5], USABLE[1::5]
    times[often], times[wrong], trained_at[USABLE[0]] = 3, 0, 9
    references = compared(9, 9)
    clean = dataclasses.replace(with_training(trained_at, times, loss=loss.copy()), references=references)
    loss[wrong] = 8.0
    for around in POOL.graph.neighbors[wrong]:
        assert np.isin(around, wrong).mean() < 0.5  # their neighbourhoods are of ones
    dirty = dataclasses.replace(with_training(trained_at, times, loss=loss), references=references)
    settings = {"rest": 1, "mismatched": 32, "demand": "equal"}
    kept_out = selected(plain(**settings), dirty, Budget(5)).reasons["held_back"]
    assert (kept_out[wrong] == CONTRADICTED).all()
    assert not (kept_out[often] == RESTING).any()
    assert (selected(plain(**settings), clean, Budget(5)).reasons["held_back"][often] == RESTING).all()


def compared(*mismatched: float, own: Sequence[float] = (1.0,)) -> dict[str, Array]:
    """References: losses of responses after other rows' prompts, and after their own."""
    return {"mismatched_loss": np.float32(mismatched), "matched_loss": np.float32(own)}


def with_training(trained_at: Array, times: Array, **more: Array) -> Pool:
    known = {"trained_at": trained_at, "trained_times": times, **more}
    return dataclasses.replace(POOL, features={**POOL.features, **known})


def test_rows_that_their_neighbourhood_contradicts_are_not_chosen() -> None:
    """Neighbours cost 1, a mismatched response 6: a third of the way is 2.65. And 1.6 is not 1.65 times 1."""
    loss = np.ones(POOL.n, np.float32)
    hard, harder, wrong = USABLE[3], USABLE[8], USABLE[15]
    loss[[hard, harder, wrong]] = 1.6, 2.6, 2.7
    references = compared(2, 6, 40)
    pool = dataclasses.replace(POOL, features={**POOL.features, "loss": loss}, references=references)
    budget = Budget(len(USABLE) - 1)
    coreset = selected(plain(mismatched=32), pool, budget)
    assert set(USABLE) - set(coreset.indices.tolist()) == {wrong}
    assert coreset.reasons["suspicion"][[hard, wrong]] == pytest.approx([0.12, 0.34])
    assert not coreset.reasons["suspicion"][~POOL.usable].any()
    assert coreset.figures == {"contradicted": 1, "matched_loss": 1.0, "mismatched_loss": 6.0}
    low = dataclasses.replace(pool, references=compared(0.5))  # below the neighbours
    shown = selected(plain(mismatched=32), low, budget).reasons["suspicion"]
    assert (shown.min(), shown.max()) == (0, 1)
    strict = selected(plain(mismatched=32, mismatch_above=0.3), pool, Budget(len(USABLE) - 2))
    assert set(USABLE) - set(strict.indices.tolist()) == {harder, wrong}


def test_responses_asked_after_seem_wrong_by_their_loss_and_by_the_other_prompt() -> None:
    """They cost 1, a mismatched response 6: as above 2.6 is not suspected and 2.7 is."""
    own, other = [1, 1, 1, 1, 1, 2.6, 2.7, 9, 9], [6, 6, 6, 6, 1, 2.6, 3, 10, 10.5]

    def asked(own: Sequence[float], other: Sequence[float]) -> Pool:
        return dataclasses.replace(POOL, references=compared(*other, own=own))

    assert Grace().suspects(asked(own, other)) == 2
    assert Grace(mismatch_above=0.3).suspects(asked(own, other)) == 3
    assert Grace().suspects(asked([1, 1, 9], [6, 6, 90])) == 0
    assert Grace().suspects(asked([], [])) == 0


def test_nobody_is_suspected_where_no_response_could_be_anothers() -> None:
    pool = dataclasses.replace(POOL, references=compared(own=()))
    coreset = selected(plain(mismatched=32), pool, Budget(len(USABLE)))
    assert set(coreset.indices.tolist()) == set(USABLE)
    assert not coreset.reasons["suspicion"].any()
    assert coreset.figures == {}
    assert selected(plain(mismatched=0), pool, Budget(5)).figures == {}


def test_what_a_mismatched_response_costs_has_to_be_known() -> None:
    with pytest.raises(ValueError, match=r"no references\[.mismatched_loss.\].*set mismatched to 0"):
        selected(Grace(), dataclasses.replace(POOL, references={}))


def test_regions_are_weighed_by_the_losses_that_stand() -> None:
    """Where a pool says what it was when the refresh began, looks since then change no region's worth."""
    loss = POOL.features["loss"]
    standing = np.where(POOL.usable, np.roll(loss, 1), np.nan)
    then = dataclasses.replace(POOL, features={**POOL.features, "loss": standing})
    now = dataclasses.replace(POOL, features={**POOL.features, "standing_loss": standing})
    method = plain(lambda_=0.0, demand="loss")
    usable_then = dataclasses.replace(then, usable=POOL.usable & np.isfinite(standing))
    usable_now = dataclasses.replace(now, usable=POOL.usable & np.isfinite(standing))
    assert selected(method, usable_now).indices.tolist() == selected(method, usable_then).indices.tolist()
    assert selected(method).indices.tolist() != selected(method, usable_now).indices.tolist()


def test_needs_names_what_its_settings_read() -> None:
    assert plain(lambda_=0.0).needs == ("prompt_embedding",)
    assert plain(lambda_=0.5).needs == ("gradient_norm", "prompt_embedding")
    assert plain(lambda_=0.0, demand="loss").needs == ("loss", "prompt_embedding")
    assert plain(lambda_=0.5, importance="ifd").needs == ("loss", "unconditional_loss", "prompt_embedding")
    assert set(Grace().needs) == {"loss", "response_embedding", "prompt_embedding"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lambda_": 1.5}, "lambda 1.5 .*0 <= lambda <= 1"),
        ({"mismatched": -1}, "mismatched -1 .*0 or more"),
        ({"mismatch_above": 1.0}, "mismatch_above 1.0 .*0 to below 1"),
        ({"importance": "charm"}, "'charm'; there are gradient_norm"),
        ({"importance_term": "median"}, "'median' is unknown; there are sum, mean"),
        ({"similarity": "hamming"}, "'hamming'; there are graph, dense"),
        ({"cutoff": 1.0}, "0 <= cutoff < 1"),
        ({"rest": -1}, "rest -1"),
        ({"demand": "high"}, "'high' is unknown; there are loss, equal"),
    ],
)
def test_a_setting_out_of_range_is_an_error(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        selected(plain(**settings))

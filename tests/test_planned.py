"""Which rows a refresh plans to measure, and which settings there are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from clustered_rows import K, N, measured, paper, unmeasured

from coretune.policies.anchors import Planned, planned
from coretune.rounds.refresh_settings import AnchorRefresh
from coretune.types import RefreshPolicy


def test_it_makes_a_policy_and_names_its_needs() -> None:
    refresh = paper(scores=("gradient_norm", "loss"), priority_score="gradient_norm")
    assert isinstance(Planned(refresh, 0), RefreshPolicy)
    assert refresh.needs == ("response_embedding", "gradient_norm", "loss")
    assert AnchorRefresh().needs == AnchorRefresh(anchors="all").needs == ()
    for along in ({"anchors": "priority"}, {"propagate": "average"}, {"repair": "local"}):
        assert AnchorRefresh(**along).needs == ("prompt_embedding", "loss")  # type: ignore[arg-type]


@pytest.mark.parametrize("anchors", ["priority", "all"])
def test_the_first_plan_is_everybody(anchors: str) -> None:
    plan = planned(paper(anchors=anchors), unmeasured(), 0)  # type: ignore[arg-type]
    assert plan.tolist() == list(range(N))


def test_plans_hold_the_share_of_usable_rows() -> None:
    refresh = paper(anchor_share=0.11, k=K)
    pool = measured(refresh)
    usable = np.arange(N) % 4 > 0
    pool = replace(pool, usable=usable)
    plan = planned(refresh, pool, 3)
    assert len(plan) == len(set(plan.tolist())) == 7  # ⌈0.11 · 60⌉
    assert usable[plan].all()
    assert (np.diff(plan) > 0).all()
    np.testing.assert_array_equal(plan, planned(refresh, pool, 3))
    assert planned(paper(anchors="all"), pool, 3).tolist() == np.flatnonzero(usable).tolist()


def test_stale_rows_come_first_when_only_staleness_counts() -> None:
    refresh = paper(beta=1, anchor_share=0.1, k=K)
    pool = measured(refresh)
    stale = np.arange(0, N, 10)
    pool = replace(pool, measured_at=np.where(np.isin(np.arange(N), stale), 0, 4).astype(np.int32))
    assert planned(refresh, pool, 5).tolist() == stale.tolist()


def test_a_row_that_contradicts_its_neighbourhood_is_an_anchor() -> None:
    refresh = paper(beta=0, anchor_share=1 / N, k=K)
    pool = measured(refresh)
    loss = np.zeros(N, np.float32)
    loss[37] = 5
    plan = planned(refresh, replace(pool, features={**pool.features, "loss": loss}), 1)
    assert plan.tolist() == [37]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"anchors": "some"}, "candidates, priority, all"),
        ({"propagate": "avg"}, "average, none"),
        ({"repair": "all"}, "local, none"),
        ({"online_signals": "sometimes"}, "auto, true, false"),
        ({"anchor_share": 0}, "anchor_share is 0"),
        ({"anchor_share": 1.5}, "at most 1"),
        ({"beta": 2}, "beta is 2"),
        ({"delta": -1}, "delta is -1"),
        ({"k": 0}, "k is 0"),
        ({"staleness_factor": 0.5}, "staleness_factor is 0.5"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnchorRefresh(**settings)  # type: ignore[arg-type]

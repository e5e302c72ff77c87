"""The engine follows rows, dimensions, memory and deadline alone, and is said before it starts."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest

from coretune.config import ConfigError
from coretune.coreset_section import build_coreset, coreset
from coretune.select import engines, two_rounds
from coretune.select.craig import Craig
from coretune.select.engines import bytes_of, plan_pairs, seconds_of
from coretune.select.facility_location import FacilityLocation
from coretune.testing import synthetic_pool
from coretune.types import Budget, Coreset, Pool, Quota


def test_a_deadline_decides_between_all_pairs_and_two_rounds() -> None:
    rows = Budget(3_700)
    assert plan_pairs(74_000, 1024, rows, 2**32, None).kind == "all pairs"
    exact = plan_pairs(74_000, 1024, rows, 2**32, 600.0)
    assert exact.kind == "all pairs"
    assert exact.memory <= 2**31
    assert exact.work == pytest.approx(4 * 74_000**2 * 1024)
    short = plan_pairs(74_000, 1024, rows, 2**32, 200.0)
    assert short.kind == "two rounds"
    assert short.work < exact.work / 3
    assert "weaker" in short.guarantee
    assert plan_pairs(74_000, 1024, Budget(10**6, "tokens"), 2**32, 600.0).kind == "two rounds"  # two runs
    held, anew = (plan_pairs(16_000, 1024, rows, memory, 1.0) for memory in (2**32, 2**30))
    assert held.kind == anew.kind == "all pairs"  # one part
    assert 2 * held.work < anew.work  # all similarities fit 2 GiB, and not 0.5
    quota = Quota(np.zeros(74_000, np.int64), np.array([1]), np.array([9]), ("a",))
    assert plan_pairs(74_000, 1024, Budget(9, "rows", quota), 2**32, 1.0).kind == "all pairs"


@pytest.fixture
def pool() -> Pool:
    return synthetic_pool(300, 8, 0, unusable=0.1)


@pytest.mark.parametrize("selector", [FacilityLocation(similarity="dense"), Craig()])
def test_memory_changes_no_row_and_a_short_deadline_is_logged(
    pool: Pool, selector: FacilityLocation | Craig, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    monkeypatch.setattr(engines, "ROUND_ROWS", 100)
    monkeypatch.setattr(two_rounds, "PART_ROWS", 100)
    base = coreset("random", budget=20)
    caplog.set_level(logging.INFO, "coretune")
    found = {}
    for memory, deadline in (("4GiB", None), ("0.01MiB", None), ("4GiB", "0.00001s")):
        config = dataclasses.replace(base, selector=selector, memory_limit=memory, deadline=deadline)
        found[memory, deadline] = config.select(pool, Budget(20), np.random.default_rng(0))
        again = config.select(pool, Budget(20), np.random.default_rng(0))
        assert found[memory, deadline].indices.tolist() == again.indices.tolist()
    exact, little, short = found.values()
    alone = selector.select(pool, Budget(20), np.random.default_rng(0))
    assert exact.indices.tolist() == little.indices.tolist() == alone.indices.tolist()
    assert "guarantee" not in exact.figures
    assert "weaker" in short.figures["guarantee"]
    assert f"{selector.name}: {pool.usable.sum()} rows, all pairs: about" in caplog.text
    assert f"{selector.name}: {pool.usable.sum()} rows, two rounds: about" in caplog.text


def test_units_are_read_and_anything_else_is_refused() -> None:
    assert bytes_of("4GiB") == 2**32
    assert bytes_of("512 MiB") == 2**29
    assert [seconds_of(text) for text in ("90s", "1.5min", "2h", None)] == [90, 90, 7200, None]
    for key, value, words in (
        ("memory_limit", "4GB", "4GiB or 512MiB"),
        ("memory_limit", "0GiB", "4GiB or 512MiB"),
        ("deadline", "10", "90s, 10min or 2h"),
    ):
        for method in ("grace", "brief"):
            with pytest.raises(ConfigError, match=words):
                build_coreset({"method": method, "budget": 10, "solver": {key: value}}, 0)


def test_brief_selects_within_the_limits_of_the_run() -> None:
    pool, kinds = synthetic_pool(200, 6, 0), []
    for memory, deadline in (("4GiB", None), ("0.1MiB", None), ("0.1MiB", "0.00001s")):
        limits = {"memory_limit": memory, "deadline": deadline}
        config = coreset({"brief": {"alpha": 0.4, "neighbors": 2}}, budget=20, solver=limits)
        chosen = config.select(pool, Budget(20), np.random.default_rng(0))
        kinds.append(chosen.figures["lower_level"])
    assert kinds == ["held", "blocks", "graph"]


def test_a_method_made_from_one_of_ours_is_asked_itself() -> None:
    class First(FacilityLocation):
        def select(self, pool: Pool, budget: Budget, rng: np.random.Generator) -> Coreset:
            rows = np.flatnonzero(pool.usable)[: budget.amount]
            return Coreset(rows, np.ones(len(rows)), np.zeros(len(rows)))

    pool = synthetic_pool(40, 4, 0)
    chosen = coreset(First(), budget=5).select(pool, Budget(5), np.random.default_rng(0))
    assert chosen.indices.tolist() == [0, 1, 2, 3, 4]

"""A model card is for everybody: it says method and cost, and nothing of the user's data or machine."""

from __future__ import annotations

from typing import Any

import pytest

from coretune.coreset_section import build_coreset
from coretune.ledger import Ledger
from coretune.training.card import section


def card(**settings: Any) -> str:
    coreset = build_coreset({"method": "grace", "budget": "10%", **settings}, 0)
    return section(coreset, None, Ledger())


@pytest.mark.parametrize(
    "settings",
    [
        {"quota": {"source": {"secret-source": {"min": 0.3}, "other-secret": 0.1}}},
        {"method": {"brief": {"checkpoints_from": "/home/secret/teacher"}}},
        {
            "method": {"grace": {"similarity": "dense"}},
            "solver": {"engine": "ray", "ray_address": "ray://secret.host:10001"},
        },
    ],
)
def test_names_of_sources_folders_and_hosts_stay_out_of_the_card(settings: dict[str, Any]) -> None:
    assert "secret" not in card(**settings)


def test_the_card_says_every_setting() -> None:
    found = card(quota={"source": 0.2}, solver={"memory_limit": "3GiB"})
    for line in (
        "| budget | 10 % |",
        "| quota.each | 0.2 |",
        "| memory_limit | '3GiB' |",
        "| ray_address | None |",
        "| signals.projection_dim | 512 |",
    ):
        assert line in found
    assert "| quota.named | 0 values with shares of their own |" in found
    assert all(line.count(" | ") == 1 for line in found.splitlines() if line.startswith("| selector."))

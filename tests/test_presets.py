"""Presets: the settings of a method's name."""

from __future__ import annotations

from dataclasses import fields

import pytest

from coretune.coreset_section import build_coreset, coreset, spelled_out
from coretune.presets import GRACE_PAPER, PRESETS
from coretune.rounds.coreset_config import CoresetConfig
from coretune.rounds.refresh_settings import AnchorRefresh
from coretune.select import SELECTORS
from coretune.select.grace import Grace
from coretune.types import UsesCheckpoints

#: Of the run, not of the method; and what another value of the same preset switches off.
NOT_THE_METHODS = {"selector", "refresh", "budget", "quota", "signals", "seed", "audit_every"}
NOT_THE_METHODS |= {
    "record_unchosen",
    "memory_limit",
    "deadline",
    "engine",
    "ray_address",
    "train_on_target",
}
SWITCHED_OFF = {"staleness_factor": "anchors"}


@pytest.mark.parametrize("name", GRACE_PAPER)
def test_grace_paper_is_what_the_paper_says_field_by_field(name: str) -> None:
    value, words = GRACE_PAPER[name]
    assert words.startswith(("[paper]", "[unknown]"))
    made = coreset("grace-paper", budget=5)
    parts = (made, made.selector, made.refresh)
    found = [
        getattr(part, field.name)
        for part in parts
        for field in fields(part)  # type: ignore[arg-type]
        if field.name.rstrip("_") == name.rpartition(".")[2]
    ]
    assert found
    assert all(each == (tuple(value) if isinstance(value, list) else value) for each in found)


def test_grace_paper_leaves_no_setting_of_the_method_to_our_defaults() -> None:
    known = {f.name.rstrip("_") for part in (Grace, AnchorRefresh, CoresetConfig) for f in fields(part)}
    said = {path.rpartition(".")[2] for path in GRACE_PAPER}
    assert not known - said - NOT_THE_METHODS - set(SWITCHED_OFF)
    assert said.issuperset(SWITCHED_OFF.values())


def test_grace_paper_measures_what_the_paper_measures() -> None:
    assert set(coreset("grace-paper", budget=5).needs) == {"gradient_norm", "response_embedding"}


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_given_counts_before_a_preset_and_a_run_is_replayed_by_its_own_config(name: str) -> None:
    given = {"method": name, "budget": "10%"}
    made = build_coreset(given, 0)
    assert build_coreset(spelled_out(made, given), 0) == made
    assert name in spelled_out(made, given)["method"]
    other = build_coreset({**given, "weighted": not made.weighted}, 0)
    assert other.weighted != made.weighted


def test_methods_with_a_warm_up_run_have_a_preset_with_their_defaults() -> None:
    for name, kind in SELECTORS.items():
        made = kind()
        if isinstance(made, UsesCheckpoints):
            assert PRESETS[name] == {"method": {name: {}}, **made.defaults}

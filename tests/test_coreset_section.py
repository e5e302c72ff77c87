"""The `coreset` section: every setting has one place, in YAML and in Python; a written section replays."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from checkpoint_method import ByCheckpoints
from coreset_sections import Lowest, flat, message, section_of
from hypothesis import given, settings
from hypothesis import strategies as st

from coretune.coreset_section import build_coreset, coreset, spelled_out
from coretune.filters.cooldown import Cooldown
from coretune.filters.duplicates import Duplicates
from coretune.filters.noise import Noise
from coretune.measure.settings import MeasureSettings
from coretune.select import SELECTORS
from coretune.select.grace import Grace
from coretune.yaml_text import ConfigError


def test_the_page_of_settings_has_every_setting_with_its_default() -> None:
    text = (Path(__file__).parent.parent / "docs" / "settings.md").read_text(encoding="utf-8")
    short, whole = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    usual = build_coreset(section_of("grace"), 0)
    assert yaml.safe_load(whole)["coreset"] == spelled_out(usual, section_of("grace"))
    assert build_coreset(yaml.safe_load(short)["coreset"], 0) == usual


@pytest.mark.parametrize("method", sorted(SELECTORS))
def test_a_section_spelled_out_replays(method: str) -> None:
    """What a run writes gives the same objects, and names every setting."""
    given = section_of(method, **{"refresh_every": "never", "refresh.anchor_share": 0.2})
    made = build_coreset(given, seed=4)
    spelled = spelled_out(made, given)
    replayed = yaml.safe_load(yaml.safe_dump(spelled))
    assert build_coreset(replayed, seed=4) == made
    assert {"refresh.warmup", "refresh.delta", "signals.last_blocks", "solver.deadline"} <= set(flat(spelled))
    assert all(not key.endswith("_") for key in flat(spelled))


@given(
    settings_=st.fixed_dictionaries(
        {},
        optional={
            "method.grace.lambda": st.floats(0, 1),
            "refresh_every": st.sampled_from(["never", "pass", 1, 50]),
            "refresh.warmup": st.floats(0, 0.5),
            "refresh.anchors": st.sampled_from(["candidates", "priority", "all"]),
            "refresh.propagate": st.sampled_from(["average", "none"]),
            "refresh.repair": st.sampled_from(["local", "none"]),
            "method.grace.embedding": st.sampled_from(["response_embedding", "prompt_embedding"]),
            "refresh.scores": st.lists(st.sampled_from(["loss", "gradient_norm"]), unique=True),
            "signals.last_blocks": st.none() | st.integers(1, 4),
            "weighted": st.booleans(),
            "refresh.audit_every": st.none() | st.integers(1, 3),
        },
    ).filter(
        lambda given_: (
            given_.get("refresh.audit_every") is None or given_.get("refresh.repair", "none") != "none"
        )
    )
)
@settings(deadline=None, max_examples=50)
def test_any_settings_spelled_out_replay(settings_: dict[str, Any]) -> None:
    given_ = section_of("grace", **settings_)
    made = build_coreset(given_, seed=1)
    spelled = yaml.safe_load(yaml.safe_dump(spelled_out(made, given_)))
    assert build_coreset(spelled, seed=1) == made
    assert all(flat(spelled)[path] == value for path, value in settings_.items())


@pytest.mark.parametrize("method", ["d2", "random", "grace", "kcenter"])
def test_any_method_takes_any_filters_with_their_settings(method: str) -> None:
    given_ = {
        "method": method,
        "budget": 5,
        "filters": ["duplicates", {"cooldown": {"coresets": 2}}, "noise"],
    }
    made = build_coreset(given_, 0)
    assert made.filters == (Duplicates(), Cooldown(coresets=2), Noise())
    assert "loss" in made.needs
    assert build_coreset(spelled_out(made, given_), 0) == made
    folded = Duplicates(alike="folded")
    assert coreset(method, budget=5, filters=[folded]).filters == (folded,)


def test_filters_of_a_method_are_those_of_its_preset_and_an_empty_list_turns_all_off() -> None:
    assert [each.name for each in coreset("grace", budget=5).filters] == ["duplicates", "noise", "cooldown"]
    assert coreset("grace", budget=5, filters=[]).filters == ()
    assert coreset("d2", budget=5).filters == ()


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (
            "noise",
            "coreset.filters is 'noise': give a list of duplicates, noise, neighbours, cooldown",
        ),
        (
            ["noize"],
            "coreset.filters: 'noize' is unknown, did you mean 'noise'?; there are cooldown, duplicates",
        ),
        ([{"noise": {"pair": 3}}], "noise.pair, did you mean 'coreset.filters.noise.pairs'?"),
        ([{"cooldown": {"coresets": "x"}}], "coreset.filters.cooldown.coresets is 'x': input should be"),
        ([{"cooldown": {"coresets": 0}}], "coreset.filters: cooldown.coresets is 0: give at least 1"),
        ([{"cooldown": 3}], "coreset.filters.cooldown is 3: give its settings as {setting: value}"),
        (["noise", "noise"], "coreset: filters has noise twice"),
        (["noise", "neighbours"], "coreset: filters has noise and neighbours: give one of them"),
        ([{}], "coreset.filters: {} is unknown; there are cooldown"),
    ],
)
def test_wrong_filters_are_one_line(filters: Any, expected: str) -> None:
    assert expected in message(section_of(filters=filters))


def test_the_graph_is_of_the_embedding_by_which_the_method_compares_rows() -> None:
    for name in ("grace", "d2", "facility_location"):
        made = coreset({name: {"embedding": "response_embedding"}}, budget=5)
        assert made.refresh.embedding == "response_embedding"
        assert "did you mean" in message(section_of(name, **{"refresh.embedding": "response_embedding"}))
    assert coreset(Grace(embedding="response_embedding"), budget=5).refresh.embedding == "response_embedding"
    apart = coreset("kcenter", budget=5)  # which covers responses, and reads no graph
    assert (apart.selector.embedding, apart.refresh.embedding) == ("response_embedding", "prompt_embedding")  # type: ignore[attr-defined]


def test_python_takes_the_keys_of_the_section() -> None:
    made = coreset(
        {"grace": {"lambda": 0.5}},
        budget="10%",
        filters=["noise", {"cooldown": {"by": "loss"}}],
        refresh={"anchors": "all", "warmup": 0.2},
        signals={"projection_dim": 64},
        solver={"memory_limit": "1GiB"},
        seed=3,
    )
    assert (made.selector, made.refresh.anchors, made.warmup) == (Grace(lambda_=0.5), "all", 0.2)
    assert made.signals == MeasureSettings(projection_dim=64, seed=3)
    assert made.memory_limit == "1GiB"


def test_what_is_given_beside_a_preset_counts_setting_by_setting() -> None:
    made = coreset({"grace-paper": {"lambda": 0.25}}, budget=5, refresh={"k": 3})
    assert made.selector == Grace(0.25, "equal", "gradient_norm", "graph", "response_embedding")
    assert (made.refresh.k, made.refresh.anchors, made.warmup) == (3, "priority", 0.0)


# ---------------------------------------------------------------------------- methods with a warm-up run


@pytest.fixture
def by_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SELECTORS, "by_checkpoints", ByCheckpoints)


@pytest.mark.usefixtures("by_checkpoints")
def test_a_method_with_a_warm_up_run_has_defaults_that_given_settings_replace() -> None:
    given_ = section_of(
        "by_checkpoints", **{"refresh.warmup": 0.5, "refresh.k": 3, "signals.projection_dim": 8}
    )
    made = build_coreset(given_, seed=2)
    assert (made.warmup, made.signals.projection_dim, made.refresh.k) == (0.5, 8, 3)
    assert (made.weighted, made.refresh_every, made.refresh.anchors) == (True, "never", "all")
    spelled = flat(spelled_out(made, given_))
    assert (
        spelled["weighted"],
        spelled["refresh.anchors"],
        spelled["method.by_checkpoints.checkpoints"],
    ) == (
        True,
        "all",
        2,
    )
    assert build_coreset(spelled_out(made, given_), seed=2) == made
    assert coreset("by_checkpoints", budget="10%").weighted
    assert coreset("by_checkpoints", budget="10%", seed=4).signals == MeasureSettings(
        projection_dim=16, seed=4
    )


@pytest.mark.usefixtures("by_checkpoints")
def test_a_default_that_is_no_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ByCheckpoints, "defaults", {"signals": {"projection_dims": 3}})
    with pytest.raises(ConfigError, match=r"unknown key coreset.signals.projection_dims, did you mean"):
        build_coreset({"method": "by_checkpoints", "budget": 5}, 0)


def test_a_selector_of_ones_own_takes_the_place_of_a_method() -> None:
    found = coreset(Lowest(from_row=3), budget=5, refresh_every=7, refresh={"k": 4})
    assert found.selector == Lowest(from_row=3)
    assert (found.refresh_every, found.refresh.k, found.budget) == (7, 4, coreset("random", budget=5).budget)
    with pytest.raises(ConfigError, match=r"unknown key coreset\.from_row"):
        coreset(Lowest(), budget=5, from_row=3)

"""The `coreset` section: every setting has one place, in YAML and in Python; a written section replays."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from checkpoint_method import ByCheckpoints
from fake_model import FakeModel
from fake_run import N, Run, config
from hypothesis import given, settings
from hypothesis import strategies as st

from coretune.coreset_section import build_coreset, coreset, nested, spelled_out, without_effect
from coretune.filters.cooldown import Cooldown
from coretune.filters.duplicates import Duplicates
from coretune.filters.noise import Noise
from coretune.keys import put
from coretune.measure.meter import NEED_BACKWARD
from coretune.measure.meter import PROJECTED as METER_PROJECTED
from coretune.measure.settings import MeasureSettings
from coretune.measure.signals import SIGNALS, _Passes
from coretune.policies.unused_settings import GRADIENTS, PROJECTED, unused_settings
from coretune.presets import PRESETS
from coretune.rounds.refresh_settings import AnchorRefresh
from coretune.select import SELECTORS
from coretune.select.grace import Grace
from coretune.types import Budget, Coreset, Pool
from coretune.yaml_text import ConfigError


def section_of(method: Any = "grace", **settings_: Any) -> dict[str, Any]:
    """With a setting for each path: section_of("grace", **{"refresh.k": 3})."""
    section = {"method": method, "budget": "10%"}
    for path, value in settings_.items():
        put(section, path, value)
    return section


def message(section: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        build_coreset(section, 0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def flat(section: Any, path: str = "") -> dict[str, Any]:
    """Path -> value of all settings of a section that was spelled out."""
    if not isinstance(section, dict) or not section:
        return {path: section}
    return {k: v for key, one in section.items() for k, v in flat(one, f"{path}.{key}".lstrip(".")).items()}


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


OLD = {
    "refresh": "anchors staleness_factor anchor_share propagate repair beta delta k scores priority_score "
    "online_signals warmup defer_first_measurement audit_every",
    "signals": "last_blocks parameters projection_dim factor_dim basis preconditioner batch_tokens",
    "solver": "memory_limit deadline engine ray_address",
    "method.grace": "lambda lambda_ demand importance similarity embedding",
    "method.grace-paper": "lambda demand importance similarity embedding",
    "method.brief": "alpha objective search grid tolerance evaluations lower greedy neighbors "
    "checkpoints_from checkpoints",
    "method.d2": "gamma_forward gamma_reverse difficulty embedding",
    "method.facility_location": "similarity embedding",
    "method.gradmatch": "signal lambda",
    "method.gtp": "checkpoints_from checkpoints ridge iterations copies",
    "method.kcenter": "embedding",
    "method.loss": "highest",
}


@pytest.mark.parametrize(
    ("place", "key"), [(place, key) for place, keys in OLD.items() for key in keys.split()]
)
def test_a_setting_that_stood_beside_the_method_is_answered_with_its_place(place: str, key: str) -> None:
    name = place.removeprefix("method.") if place.startswith("method.") else "grace"
    expected = f"coreset.{key} is now coreset.{place}.{key.rstrip('_')}"
    assert message({"method": name, "budget": 5, key: 3}).startswith(expected)
    with pytest.raises(ConfigError, match=expected):
        coreset(name, budget=5, **{key: 3})


def test_a_setting_that_set_two_objects_is_answered_with_both_places() -> None:
    now = "coreset.method.kcenter.embedding and coreset.refresh.embedding"
    assert message(section_of("kcenter", embedding="x")) == f"coreset.embedding is now {now}"


def test_a_section_of_before_settings_were_nested_is_read_as_it_was_meant() -> None:
    before = {"method": "grace", "budget": "10%", "lambda": 0.5, "k": 3, "warmup": 0.1, "last_blocks": None}
    before |= {
        "memory_limit": "1GiB",
        "filters": ["noise"],
        "weighted": True,
        "embedding": "response_embedding",
    }
    now = section_of(filters=["noise"], weighted=True)
    now["method"] = {"grace": {"lambda": 0.5, "embedding": "response_embedding"}}
    now |= {"refresh": {"k": 3, "warmup": 0.1}, "signals": {"last_blocks": None}}
    now["solver"] = {"memory_limit": "1GiB"}
    assert nested(before) == now == nested(now)
    both = nested(section_of("kcenter", embedding="prompt_embedding"))
    assert both["method"] == {"kcenter": {"embedding": "prompt_embedding"}}
    assert both["refresh"] == {"embedding": "prompt_embedding"}


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"refresh_evry": 3}, "coreset.refresh_evry, did you mean 'coreset.refresh_every'?"),
        ({"refesh": {}}, "coreset.refesh, did you mean 'coreset.refresh'?"),
        ({"lamda": 0.3}, "coreset.lamda, did you mean 'coreset.method.grace.lambda'?"),
        ({"anchor_shrae": 0.3}, "did you mean 'coreset.refresh.anchor_share'?"),
        (
            {"refresh": {"anchor_shrae": 0.3}},
            "refresh.anchor_shrae, did you mean 'coreset.refresh.anchor_share'?",
        ),
        (
            {"refresh": {"projection_dim": 3}},
            "refresh.projection_dim, did you mean 'coreset.signals.projection_dim'",
        ),
        ({"signals": {"last_block": 1}}, "did you mean 'coreset.signals.last_blocks'?"),
        ({"solver": {"engin": "ray"}}, "did you mean 'coreset.solver.engine'?"),
        ({"method": {"grace": {"lamda": 1}}}, "grace.lamda, did you mean 'coreset.method.grace.lambda'?"),
        (
            {"refresh": {"quixotic": 1}},
            "unknown key coreset.refresh.quixotic; known are anchor_share, anchors",
        ),
        ({"selector": 1}, "unknown key coreset.selector"),
        ({"seed": 1}, "unknown key coreset.seed"),
        ({"signals": {"autocast": "bfloat16"}}, "unknown key coreset.signals.autocast"),
        ({"method": "gracee"}, "coreset.method: 'gracee' is unknown, did you mean 'grace'?; there are brief"),
        (
            {"method": {"grace": {}, "d2": {}}},
            "coreset.method has 2 names, grace, d2: give one",
        ),
        ({"method": {"grace": 3}}, "coreset.method.grace is 3: give its settings as {setting: value}"),
        ({"refresh": 3}, "coreset.refresh is 3: give its settings as {setting: value}"),
        ({"mismatched": 3}, "coreset.mismatched is gone: write filters: [{noise: {pairs"),
        ({"rest": 3}, "coreset.rest is gone: write filters: [{cooldown: {coresets"),
        ({"refresh": {"wait": False}}, "coreset.refresh.wait is gone: write refresh: {defer_first_"),
        ({"refresh": {"look_again": 3}}, "coreset.refresh.look_again is gone: write refresh: {staleness_f"),
        ({"harvest": False}, "coreset.harvest is gone: write refresh: {online_signals"),
        (
            {"filters": [{"noise": {"least_told": 0}}]},
            "coreset.filters.noise.least_told is gone: write {noise",
        ),
        ({"record_others": 3}, "coreset.record_others is gone: write record_unchosen"),
        (
            {"method": {"gtp": {"teacher": "runs/a"}}},
            "coreset.method.gtp.teacher is gone: write checkpoints_from",
        ),
        (
            {"filters": [{"neighbours": {"on_above": 2}}]},
            "coreset.filters.neighbours.on_above is gone: write {neighbours: {min_loss_ratio",
        ),
        ({"copies": 3}, "coreset.copies is gone: write filters: [{duplicates: {alike"),
        ({"propagate": "fit"}, "coreset.propagate is now coreset.refresh.propagate"),
        (
            {"refresh": {"propagate": "delta"}},
            "coreset.refresh.propagate: delta is gone: it gained nothing over none (docs/results.md); leave",
        ),
        ({"refresh": {"propagate": "fit"}}, "coreset.refresh.propagate: fit is gone"),
        (
            {"refresh": {"anchors": "random"}},
            "coreset.refresh.anchors: random is gone: candidates and priority",
        ),
        (
            {"refresh": {"count_alike": True}},
            "coreset.refresh.count_alike is gone: anchors of priority are as",
        ),
        ({"spread_anchors": True}, "coreset.spread_anchors is gone: anchors of priority are as published"),
        ({"refresh": {"repair": "rebuild"}}, "coreset.refresh.repair: rebuild is gone: it gained nothing"),
        (
            {"refresh_every": "adaptive"},
            "coreset.refresh_every: adaptive is gone: it cost half as much again",
        ),
        (
            {"method": {"grace": {"importance_term": "sum"}}},
            "coreset.method.grace.importance_term is gone: importance",
        ),
        ({"signals": {"reference_rows": 64}}, "coreset.signals.reference_rows is gone: no signal compares"),
        ({"importance_term": "mean"}, "coreset.importance_term is gone: importance counts by its mean"),
        (
            {"method": {"grace": {"importance": "ifd"}}},
            "coreset.method.grace.importance: ifd is gone: it gained nothing",
        ),
        (
            {"method": {"d2": {"difficulty": "uniform"}}},
            "coreset.method.d2.difficulty: uniform is gone: it gained nothing",
        ),
        (
            {"refresh": {"check_every": 5}},
            "coreset.refresh.check_every is gone: refresh_every has no adaptive",
        ),
        ({"refresh": {"threshold": 0.1}}, "coreset.refresh.threshold is gone: refresh_every has no adaptive"),
        ({"refresh": {"anchors": "trained"}}, "coreset.refresh.anchors: trained is gone: candidates gain"),
    ],
)
def test_an_unknown_key_is_answered_with_the_path_of_the_nearest(
    section: dict[str, Any], expected: str
) -> None:
    assert expected in message({"method": "grace", "budget": 5, **section})


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


@dataclass(frozen=True)
class Lowest:
    """A selector of a user's own, whose settings are its fields."""

    from_row: int = 0
    needs: tuple[str, ...] = ()

    def select(self, pool: Pool, budget: Budget, rng: np.random.Generator) -> Coreset:
        rows = np.arange(self.from_row, self.from_row + budget.amount)
        return Coreset(rows, np.ones(len(rows)), np.zeros(len(rows)))


def test_a_selector_of_ones_own_takes_the_place_of_a_method() -> None:
    found = coreset(Lowest(from_row=3), budget=5, refresh_every=7, refresh={"k": 4})
    assert found.selector == Lowest(from_row=3)
    assert (found.refresh_every, found.refresh.k, found.budget) == (7, 4, coreset("random", budget=5).budget)
    with pytest.raises(ConfigError, match=r"unknown key coreset\.from_row"):
        coreset(Lowest(), budget=5, from_row=3)


# ------------------------------------------------------------------------------- settings that do nothing


@pytest.mark.parametrize(
    ("section", "unused"),
    [
        (
            section_of("random", refresh={"k": 5, "audit_every": 2, "warmup": 0.1}),
            ["refresh.audit_every", "refresh.k", "refresh.warmup"],
        ),
        (section_of("random", refresh={"k": 10, "warmup": "auto", "scores": ["loss"]}), []),
        (section_of("random", signals={"projection_dim": 64}, refresh_every=5), ["signals.projection_dim"]),
        (section_of("loss", refresh={"anchor_share": 0.5}, refresh_every="never"), ["refresh.anchor_share"]),
        (section_of("grace", refresh={"anchor_share": 0.5, "k": 5, "audit_every": 2}), []),
        (
            section_of("grace", signals={"projection_dim": 64, "last_blocks": 3, "batch_tokens": 64}),
            ["signals.last_blocks", "signals.projection_dim"],
        ),
        (
            section_of("gradient_norm", signals={"projection_dim": 64, "last_blocks": 3}),
            ["signals.projection_dim"],
        ),
        (section_of("craig", signals={"factor_dim": 9, "basis": "sjlt"}), ["signals.factor_dim"]),
        (section_of("craig", signals={"basis": "gradient_pca"}), ["signals.basis"]),
        (section_of("craig", signals={"basis": "sjlt"}), []),
        (section_of("brief", signals={"basis": "sjlt"}), ["signals.basis"]),  # adam: gradients are whole
        (section_of("gtp", signals={"basis": "gradient_pca"}), []),
        (section_of({"grace": {"importance": "loss"}}), ["method.grace.importance"]),
        (section_of({"grace": {"importance": "loss", "lambda": 0.5}}), []),
        (section_of({"grace-paper": {"demand": "loss", "lambda": 1.0}}), ["method.grace-paper.demand"]),
        (section_of({"brief": {"alpha": 0.5, "grid": 3}}), ["method.brief.grid"]),
        (
            section_of({"brief": {"alpha": 0.5, "objective": "sft", "lower": "dense", "neighbors": 9}}),
            ["method.brief.alpha", "method.brief.neighbors"],
        ),
        (
            section_of(
                "d2",
                refresh={
                    "beta": 0.1,
                    "defer_first_measurement": False,
                    "anchor_share": 0.5,
                    "staleness_factor": 3.0,
                },
            ),
            ["refresh.anchor_share", "refresh.beta", "refresh.defer_first_measurement"],
        ),
        (
            section_of("d2", refresh={"beta": 0.1, "anchors": "priority", "staleness_factor": 3.0}),
            ["refresh.staleness_factor"],
        ),
        (section_of("rds", refresh={"k": 5, "scores": ["gradient_norm"]}), ["refresh.k", "refresh.scores"]),
        (section_of("gtp", refresh={"warmup": 0.2}), []),
        (section_of({"gtp": {"checkpoints_from": "folder"}}, refresh={"warmup": 0.2}), ["refresh.warmup"]),
        (section_of("grace", solver={"memory_limit": "1GiB"}), ["solver.memory_limit"]),
        (
            section_of({"grace": {"similarity": "dense"}}, solver={"memory_limit": "1GiB", "deadline": "9s"}),
            [],
        ),
        (section_of("d2", solver={"deadline": "9s"}), ["solver.deadline"]),
        (section_of("brief", solver={"deadline": "9s"}), []),
        (section_of("craig", solver={"deadline": "9s"}, quota={"source": 0.5}), ["solver.deadline"]),
        (section_of("random", refresh_every="never", filters=["cooldown"]), ["filters.cooldown"]),
        (section_of("gradient_norm", refresh_every="never", filters=["cooldown"]), []),
        (section_of("grace", refresh_every="never", filters=["noise", "cooldown"]), ["filters.cooldown"]),
        (section_of("random", filters=["cooldown"]), []),
        (section_of("d2", refresh_every="never", refresh={"anchors": "all"}), ["refresh.anchors"]),
        (section_of("d2", refresh_every="never", refresh={"propagate": "average"}), ["refresh.propagate"]),
        (
            section_of("kcenter", refresh_every="never", refresh={"propagate": "average"}),
            [],
        ),  # it measures for it
        (
            section_of("d2", refresh_every="never", refresh=dict(PRESETS["rds"]["refresh"])),
            ["refresh.anchors"],
        ),
        (section_of("rds", refresh={"anchors": "priority"}), []),  # it measures for a graph then
        (
            section_of("d2", refresh={"anchors": "all", "propagate": "average", "delta": 0.1}),
            ["refresh.delta", "refresh.propagate"],
        ),
        (section_of("d2", refresh={"priority_score": "gradient_norm"}), ["refresh.priority_score"]),
        (section_of("d2", refresh={"priority_score": "gradient_norm", "audit_every": 2}), []),
        (section_of("grace", weighted=True), ["weighted"]),
        (section_of("craig", weighted=True), []),
        (section_of("brief", weighted=False), []),
    ],
)
def test_settings_that_a_method_never_reads_are_named(section: dict[str, Any], unused: list[str]) -> None:
    made = build_coreset(section, 0)
    assert without_effect(section, made) == [f"coreset.{path}" for path in unused]
    written = spelled_out(made, section)  # the written config gives every setting
    assert without_effect(written, build_coreset(written, 0)) == [f"coreset.{path}" for path in unused]


def test_signals_that_need_a_gradient_are_those_that_the_meter_asks_one_for() -> None:
    for name in SIGNALS:
        passes = _Passes.of(frozenset([name]))
        assert (name in GRADIENTS) == bool(passes.names & NEED_BACKWARD), name
        assert (name in PROJECTED) == bool(passes.names & METER_PROJECTED), name


@pytest.mark.parametrize(
    "given_",
    [
        {},
        {"refresh_every": "never"},
        {"anchors": "priority"},
        {"anchors": "all", "repair": "local"},
        {"anchors": "all", "propagate": "average"},
        {"repair": "local"},
        {"filters": (Noise(pairs=8),)},
        {"anchors": "all", "propagate": "none", "repair": "none"},
    ],
)
def test_what_is_said_to_be_unread_changes_nothing(given_: dict[str, Any]) -> None:
    def outcome(**settings_: Any) -> Any:
        run = Run(config(**{**given_, **settings_}), FakeModel(N)).go(4)
        return [
            (state.coreset.indices.tolist(), state.coreset.filters) for state in run.states
        ], run.model.measured

    usual, unused = outcome(), unused_settings(config(**given_))["refresh"]
    assert unused
    for key in sorted(unused - set(given_)):
        part = AnchorRefresh() if key in AnchorRefresh.__dataclass_fields__ else config()
        changed = outcome(**{key: other_value(key, getattr(part, key))})
        assert changed[0] == usual[0], key
        assert all(map(np.array_equal, changed[1], usual[1])), key


def test_settings_without_effect_are_named_in_python_too(caplog: pytest.LogCaptureFixture) -> None:
    coreset("d2", budget=5, solver={"deadline": "9s"})
    assert caplog.messages == ["no effect with method d2 as it is refreshed: coreset.solver.deadline"]
    caplog.clear()
    coreset(Lowest(), budget=5)
    coreset("grace", budget=5)
    assert not caplog.messages


def every_setting() -> list[Any]:
    """(method, path, value that is not the default) of all there are."""
    found = []
    for method in sorted(SELECTORS):
        section = section_of(method)
        for path, value in flat(spelled_out(build_coreset(section, 0), section)).items():
            mine = path.startswith("method.")
            if path not in ("method", "budget", "filters") and (mine or method == "grace"):
                found.append(pytest.param(method, path, value, id=f"{method}: {path}"))
    return found


ELSE: dict[str, Any] = {
    "anchors": "all",
    "basis": "sjlt",
    "deadline": "90s",
    "difficulty": "learnability",
    "embedding": "response_embedding",
    "engine": "ray",
    "online_signals": False,
    "memory_limit": "1GiB",
    "parameters": "trainable",
    "preconditioner": "adam",
    "priority_score": "gradient_norm",
    "propagate": "average",
    "ray_address": "auto",
    "refresh_every": 7,
    "repair": "local",
    "scores": ["gradient_norm"],
}


def other_value(key: str, value: Any) -> Any:
    if key in ELSE:
        return ELSE[key] if ELSE[key] != value else "prompt_embedding"
    if isinstance(value, bool):
        return not value
    if key == "staleness_factor":
        return value + 1
    if isinstance(value, float):
        return 0.375 if value != 0.375 else 0.5
    if isinstance(value, int) or value is None:
        return (value or 0) + 3
    return "something else"


@pytest.mark.parametrize(("method", "path", "value"), every_setting())
def test_every_setting_is_taken_or_refused_by_name(method: str, path: str, value: Any) -> None:
    key = path.rpartition(".")[2]
    section, plain = section_of(method, **{path: other_value(key, value)}), section_of(method)
    try:
        made = build_coreset(section, 0)
    except ConfigError as error:
        said = str(error)
    else:
        spelled = flat(spelled_out(made, section)), flat(spelled_out(build_coreset(plain, 0), plain))
        assert [at for at in spelled[0] if spelled[0][at] != spelled[1][at]] == [path]  # and nothing else
        return
    assert key in said
    assert "\n" not in said

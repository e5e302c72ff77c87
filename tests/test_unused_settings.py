"""Settings that do nothing in a run are named, and every setting is taken or refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from coreset_sections import Lowest, flat, section_of
from fake_model import FakeModel
from fake_run import N, Run, config

from coretune.coreset_section import build_coreset, coreset, spelled_out, without_effect
from coretune.filters.noise import Noise
from coretune.measure.meter import NEED_BACKWARD
from coretune.measure.meter import PROJECTED as METER_PROJECTED
from coretune.measure.signals import SIGNALS, _Passes
from coretune.policies.unused_settings import GRADIENTS, PROJECTED, unused_settings
from coretune.presets import PRESETS
from coretune.rounds.refresh_settings import AnchorRefresh
from coretune.select import SELECTORS
from coretune.yaml_text import ConfigError

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

"""Old and misplaced keys of the section are answered with what to write."""

from __future__ import annotations

from typing import Any

import pytest
from coreset_sections import message, section_of

from coretune.coreset_section import coreset, nested
from coretune.yaml_text import ConfigError

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

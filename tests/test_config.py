"""A config: every key known, every value checked, one line for every mistake, and a written one replays."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from taught import Pupil

import coretune as coretune_package
from coretune.config import (
    ConfigError,
    RunConfig,
    build_coreset,
    check_config,
    coreset,
    load_config,
    without_effect,
)
from coretune.filters.cooldown import Cooldown
from coretune.filters.duplicates import Duplicates
from coretune.filters.noise import Noise
from coretune.measure.settings import MeasureSettings
from coretune.rounds.schedule import default_measuring
from coretune.scoring.evaluate_section import EvaluateSection
from coretune.select import SELECTORS
from coretune.types import Budget, Coreset, Pool

ROOT = Path(coretune_package.__file__).parent
SMALL = {
    "model_name_or_path": "m",
    "train_data": "pool.jsonl",
    "output_dir": "runs/x",
    "coreset": {"method": "grace", "budget": "10%"},
}
TEXT = """\
model_name_or_path: models/base3m     # folder or hub id
train_data: pool.jsonl
eval_data: eval.jsonl
columns: {prompt: prompt, completion: completion}
output_dir: runs/skills
seed: 3
coreset:
  method: grace
  budget: 10%
  refresh_every: 20
training: {max_steps: 200, per_device_train_batch_size: 16, learning_rate: 1.0e-3, bf16: true}
peft: {r: 16, lora_alpha: 32}
"""


def written(tmp_path: Path, text: str = TEXT) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def with_coreset(**section: Any) -> dict[str, Any]:
    return {**SMALL, "coreset": {"method": "grace", "budget": "10%", **section}}


def message(raw: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        check_config(raw)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_file_of_the_readme_reads(tmp_path: Path) -> None:
    config = load_config(written(tmp_path))
    assert config.training["learning_rate"] == 0.001
    assert config.peft == {"r": 16, "lora_alpha": 32}
    section = build_coreset(config.coreset, config.seed)
    assert section.coreset.refresh_every == 20
    assert section.coreset.seed == section.measuring.seed == 3
    assert section.coreset.selector == SELECTORS["grace"]()


@pytest.mark.parametrize(
    ("override", "where", "value"),
    [
        ("coreset.budget=5%", ("coreset", "budget"), "5%"),
        ("coreset.budget=2M tokens", ("coreset", "budget"), "2M tokens"),
        ("coreset.lambda=0.25", ("coreset", "lambda"), 0.25),
        ("training.learning_rate=1e-3", ("training", "learning_rate"), 0.001),
        ("training.learning_rate=2E4", ("training", "learning_rate"), 20000.0),
        ("training.weight_decay=-1.5e+2", ("training", "weight_decay"), -150.0),
        ("training.optim_args=a=b,c=d", ("training", "optim_args"), "a=b,c=d"),
        ("peft.target_modules=[q_proj, v_proj]", ("peft", "target_modules"), ["q_proj", "v_proj"]),
        ("columns.prompt=question", ("columns", "prompt"), "question"),
        ("seed=7", ("seed",), 7),
        ("eval_data=", ("eval_data",), None),
        ("target_data=null", ("target_data",), None),
        ("skip_bad_rows=true", ("skip_bad_rows",), True),
    ],
)
def test_overrides(tmp_path: Path, override: str, where: tuple[str, ...], value: Any) -> None:
    found: Any = load_config(written(tmp_path), [override]).model_dump()
    for key in where:
        found = found[key]
    assert found == value
    assert type(found) is type(value)


def test_an_override_makes_the_section_it_names(tmp_path: Path) -> None:
    text = "\n".join(line for line in TEXT.splitlines() if not line.startswith(("peft", "training")))
    config = load_config(written(tmp_path, text), ["peft.r=4", "training.max_steps=3"])
    assert config.peft == {"r": 4}
    assert config.training == {"max_steps": 3}


def test_the_last_of_two_overrides_counts(tmp_path: Path) -> None:
    assert load_config(written(tmp_path), ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("coreset.budget", "'coreset.budget' is not an override; write key=value"),
        ("=5", "'=5' is not an override"),
        ("train_data.x=5", "'train_data.x=5': train_data is not a section"),
        ("training.max_steps=[1", "'training.max_steps=[1' is not YAML"),
        ("coresett.budget=5%", "unknown key coresett, did you mean 'coreset'?"),
        ("coreset.budgte=5%", "unknown key coreset.budgte, did you mean 'budget'?"),
    ],
)
def test_a_wrong_override_is_one_line(tmp_path: Path, override: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(written(tmp_path), [override])
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({**SMALL, "modle_name_or_path": "m"}, "key modle_name_or_path, did you mean 'model_name_or_path'?"),
        ({**SMALL, "quixotic": 1}, "unknown key quixotic; known are columns, coreset, corpus_dir"),
        (with_coreset(refresh_evry=3), "unknown key coreset.refresh_evry, did you mean 'refresh_every'?"),
        (with_coreset(lamda=0.3), "unknown key coreset.lamda, did you mean 'lambda'?"),
        (with_coreset(lambda_=0.3), "unknown key coreset.lambda_, did you mean 'lambda'?"),
        (with_coreset(anchor_shrae=0.3), "did you mean 'anchor_share'?"),
        (with_coreset(last_block=1), "did you mean 'last_blocks'?"),
        (with_coreset(selector=1), "unknown key coreset.selector"),
        (with_coreset(seed=1), "unknown key coreset.seed"),
        (with_coreset(autocast="bfloat16"), "unknown key coreset.autocast"),
        (with_coreset(method="gracee"), "coreset.method is 'gracee', did you mean 'grace'?; there are brief"),
        (with_coreset(method=["grace"]), "coreset.method is ['grace'], did you mean 'grace'?; there are"),
        ({**SMALL, "coreset": {"budget": "10%"}}, "coreset.method is missing; there are brief"),
        ({**SMALL, "coreset": {"method": "grace"}}, "coreset.budget is missing; give rows (600), a share"),
        ({k: v for k, v in SMALL.items() if k != "train_data"}, "train_data is missing from the config"),
        ({k: v for k, v in SMALL.items() if k != "coreset"}, "coreset is missing from the config"),
    ],
)
def test_unknown_and_missing_keys(raw: dict[str, Any], expected: str) -> None:
    assert expected in message(raw)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({**SMALL, "seed": "one"}, "seed is 'one': input should be a valid integer"),
        ({**SMALL, "coreset": "grace"}, "coreset is 'grace': input should be a valid dictionary"),
        ({**SMALL, "training": None}, "training is None: input should be a valid dictionary"),
        ({**SMALL, "columns": {"prompt": 5}}, "columns.prompt is 5: input should be a valid string"),
        (with_coreset(budget="many"), "coreset.budget: budget 'many' is not understood"),
        (with_coreset(budget=0), "coreset.budget: budget '0' chooses nothing"),
        (with_coreset(budget="120%"), "coreset.budget: budget '120%' is more than the whole pool"),
        (with_coreset(k="ten"), "coreset.k is 'ten': input should be a valid integer"),
        (with_coreset(k=2.5), "coreset.k is 2.5: input should be a valid integer"),
        (with_coreset(k=True), "coreset.k is True: give a value that is not true or false"),
        (with_coreset(refresh_every=True), "coreset.refresh_every is True: give a value"),
        (with_coreset(**{"lambda": "half"}), "coreset.lambda is 'half': input should be a valid number"),
        (with_coreset(**{"lambda": 2}), "coreset: lambda 2.0 is no share"),
        (with_coreset(scores="loss"), "coreset.scores is 'loss': input should be a valid tuple"),
        (with_coreset(anchors="some"), "coreset.anchors is 'some': input should be"),
        (with_coreset(refresh_every="often"), "coreset: refresh_every is 'often': give a number of steps"),
        (with_coreset(weighted="perhaps"), "coreset.weighted is 'perhaps': input should be a valid boolean"),
        (with_coreset(batch_tokens=0), "coreset: batch_tokens is 0; it must be at least 1"),
    ],
)
def test_wrong_values_are_one_line(raw: dict[str, Any], expected: str) -> None:
    assert expected in message(raw)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- a\n- b\n", "holds list; a config is `key: value` lines"),
        ("", "holds NoneType; a config is `key: value` lines"),
        ("a: [1\n", "is not YAML"),
        ("seed: 1\nseed: 2\n", "the key 'seed' is written twice"),
        ("coreset: {method: grace, budget: 5%, budget: 6%}\n", "the key 'budget' is written twice"),
    ],
)
def test_a_file_that_is_no_config(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(written(tmp_path, text))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file_and_a_file_that_is_not_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml is no file; give the path of a YAML file"):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="is no file"):
        load_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("seed: 1 # später".encode("latin-1"))
    with pytest.raises(ConfigError, match="is not YAML: 'utf-8' codec"):
        load_config(tmp_path / "latin.yaml")


@pytest.mark.parametrize("method", sorted(SELECTORS))
def test_a_section_spelled_out_replays(method: str) -> None:
    """What a run writes gives the same objects, and names every setting but those it would change."""
    given = {"method": method, "budget": 600, "refresh_every": "never", "anchor_share": 0.2}
    section = build_coreset(given, seed=4)
    spelled = section.spelled_out(given)
    replayed = yaml.safe_load(yaml.safe_dump(spelled))
    assert build_coreset(replayed, seed=4) == section
    assert {"warmup", "anchor_share", "delta", "last_blocks"} <= set(spelled)
    assert all(not key.endswith("_") for key in spelled)


@given(
    settings_=st.fixed_dictionaries(
        {},
        optional={
            "lambda": st.floats(0, 1),
            "refresh_every": st.sampled_from(["never", "adaptive", 1, 50]),
            "warmup": st.floats(0, 0.5),
            "anchors": st.sampled_from(["priority", "random", "all", "trained"]),
            "propagate": st.sampled_from(["average", "delta", "none"]),
            "repair": st.sampled_from(["local", "rebuild", "none"]),
            "embedding": st.sampled_from(["response_embedding", "prompt_embedding"]),
            "scores": st.lists(st.sampled_from(["loss", "gradient_norm"]), unique=True),
            "last_blocks": st.none() | st.integers(1, 4),
            "weighted": st.booleans(),
            "audit_every": st.none() | st.integers(1, 3),
        },
    ).filter(lambda given_: given_.get("audit_every") is None or given_.get("repair") != "none")
)
@settings(deadline=None, max_examples=50)
def test_any_settings_spelled_out_replay(settings_: dict[str, Any]) -> None:
    given_ = {"method": "grace", "budget": "7%", **settings_}
    section = build_coreset(given_, seed=1)
    spelled = yaml.safe_load(yaml.safe_dump(section.spelled_out(given_)))
    assert build_coreset(spelled, seed=1) == section
    assert all(spelled[key] == value for key, value in settings_.items())


@pytest.mark.parametrize("method", ["d2", "random", "grace", "kcenter"])
def test_any_method_takes_any_filters_with_their_settings(method: str) -> None:
    given_ = {
        "method": method,
        "budget": 5,
        "filters": ["duplicates", {"cooldown": {"coresets": 2}}, "noise"],
    }
    section = build_coreset(given_, 0)
    assert section.coreset.filters == (Duplicates(), Cooldown(coresets=2), Noise())
    assert "loss" in section.coreset.needs
    assert build_coreset(section.spelled_out(given_), 0) == section
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
            "coreset.filters has 'noize', did you mean 'noise'?; there are duplicates, noise",
        ),
        ([{"noise": {"pair": 3}}], "unknown key coreset.filters.noise.pair, did you mean 'pairs'?"),
        ([{"cooldown": {"coresets": "x"}}], "coreset.filters.cooldown.coresets is 'x': input should be"),
        ([{"cooldown": {"coresets": 0}}], "coreset: cooldown.coresets is 0: give at least 1"),
        ([{"cooldown": 3}], "coreset.filters.cooldown is 3: give its settings as {setting: value}"),
        (["noise", "noise"], "coreset: filters has noise twice"),
        (["noise", "neighbours"], "coreset: filters has noise and neighbours: give one of them"),
        ([{}], "coreset.filters has {}; there are duplicates"),
    ],
)
def test_wrong_filters_are_one_line(filters: Any, expected: str) -> None:
    assert expected in message(with_coreset(filters=filters))


@pytest.mark.parametrize(
    ("key", "new"),
    [
        ("mismatched", "[{noise: {pairs"),
        ("rest", "[{cooldown: {coresets"),
        ("copies", "[{duplicates: {alike"),
    ],
)
def test_a_setting_that_moved_is_answered_with_where_it_is_now(key: str, new: str) -> None:
    assert f"coreset.{key} is gone: write filters: {new}" in message(with_coreset(**{key: 3}))


def test_a_setting_that_another_method_still_has_is_not_gone() -> None:
    section = build_coreset({"method": "gtp", "budget": 5, "copies": 0.99}, 0)
    assert section.coreset.selector.copies == 0.99  # type: ignore[attr-defined]


def test_a_key_of_two_parts_sets_both_and_is_not_invented() -> None:
    """k-center covers responses, the graph is of prompts: writing one for both would change a replay."""
    plain = build_coreset({"method": "kcenter", "budget": 5}, 0)
    assert plain.coreset.selector.embedding != plain.coreset.refresh.embedding  # type: ignore[attr-defined]
    assert "embedding" not in plain.spelled_out({"method": "kcenter", "budget": 5})
    given = {"method": "kcenter", "budget": 5, "embedding": "prompt_embedding"}
    both = build_coreset(given, 0)
    assert both.coreset.selector.embedding == both.coreset.refresh.embedding  # type: ignore[attr-defined]
    assert both.spelled_out(given)["embedding"] == "prompt_embedding"


def test_a_config_is_not_changed_by_being_checked() -> None:
    raw = {**SMALL, "target_data": None, "peft": {}}
    config = check_config(raw)
    assert isinstance(config, RunConfig)
    assert config.peft == {}
    assert config.target_data is None
    assert raw["coreset"] == SMALL["coreset"]


# ---------------------------------------------------------------------------------------- taught methods


@pytest.fixture
def pupil(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SELECTORS, "pupil", Pupil)


@pytest.mark.usefixtures("pupil")
def test_a_taught_method_brings_defaults_that_what_is_given_beats() -> None:
    given_ = {"method": "pupil", "budget": "10%", "warmup": 0.5, "projection_dim": 8, "k": 3}
    section = build_coreset(given_, seed=2)
    assert (section.coreset.warmup, section.measuring.projection_dim, section.coreset.refresh.k) == (
        0.5,
        8,
        3,
    )
    assert (section.coreset.weighted, section.coreset.refresh_every) == (True, "never")
    spelled = section.spelled_out(given_)
    assert (spelled["weighted"], spelled["anchors"], spelled["checkpoints"]) == (True, "all", 2)
    assert build_coreset(spelled, seed=2) == section
    assert coreset("pupil", budget="10%").weighted
    assert default_measuring(coreset("pupil", budget="10%", seed=4)) == MeasureSettings(
        projection_dim=16, seed=4
    )


@pytest.mark.usefixtures("pupil")
def test_a_default_that_is_no_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pupil, "defaults", {"projection_dims": 3})
    with pytest.raises(ConfigError, match=r"unknown key coreset.projection_dims, did you mean"):
        build_coreset({"method": "pupil", "budget": 5}, 0)


def test_targets_have_shares_that_make_a_whole() -> None:
    assert check_config({**SMALL, "target_data": {"a.jsonl": 0.7, "b.jsonl": 0.3}}).target_data == {
        "a.jsonl": 0.7,
        "b.jsonl": 0.3,
    }
    assert "the shares of target_data sum to 0.9" in message({**SMALL, "target_data": {"a": 0.7, "b": 0.2}})
    assert "give each file a share above 0" in message({**SMALL, "target_data": {"a": 1.5, "b": -0.5}})
    assert "give each file a share above 0" in message({**SMALL, "target_data": {}})


@dataclass(frozen=True)
class Lowest:
    """A selector of a user's own, whose settings are its fields."""

    from_row: int = 0
    needs: tuple[str, ...] = ()

    def select(self, pool: Pool, budget: Budget, rng: np.random.Generator) -> Coreset:
        rows = np.arange(self.from_row, self.from_row + budget.amount)
        return Coreset(rows, np.ones(len(rows)), np.zeros(len(rows)))


def test_a_selector_of_ones_own_takes_the_place_of_a_method() -> None:
    found = coreset(Lowest(from_row=3), budget=5, refresh_every=7, k=4)
    assert found.selector == Lowest(from_row=3)
    assert (found.refresh_every, found.refresh.k, found.budget) == (7, 4, coreset("random", budget=5).budget)
    with pytest.raises(ConfigError, match=r"unknown key coreset\.from_row"):
        coreset(Lowest(), budget=5, from_row=3)


# ------------------------------------------------------------------------------------ stock sections, places


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"training": {"learning_rate": "fast"}}, "training.learning_rate is 'fast': give a number"),
        ({"training": {"max_steps": "200"}}, "training.max_steps is '200': give a whole number"),
        ({"training": {"max_step": 2}}, "unknown key training.max_step, did you mean 'max_steps'?"),
        ({"training": {"seed": 2}}, "training.seed belongs at the top of the config"),
        ({"training": {"bf16": "x" * 10_000}}, "training.bf16 is 'xxxx"),
        ({"training": {"hub_token": 12345}}, "training.hub_token is (hidden): give text or null"),
        ({"peft": {"r": "sixteen"}}, "peft.r is 'sixteen': give a whole number"),
        ({"peft": {"lora_dropout": [0.1]}}, "peft.lora_dropout is [0.1]: give a number"),
        ({"peft": {"rank": 3}}, "unknown key peft.rank"),
        ({"seed": -1}, "seed is -1: "),
        ({"seed": True}, "seed is True: "),
        ({"seed": 2**40}, "seed is 1099511627776: "),
        ({"train_data": "po\0ol.jsonl"}, "train_data is 'po\\x00ol.jsonl': give a name of printable"),
        ({"output_dir": ""}, "output_dir is '': give a name"),
        ({"target_data": {"\x1b[2J": 1.0}}, "target_data is '\\x1b[2J': give a name"),
    ],
)
def test_a_wrong_kind_of_value_is_told_before_anything_is_loaded(
    section: dict[str, Any], expected: str
) -> None:
    assert expected in message({**SMALL, **section})
    assert len(message({**SMALL, **section})) < 300


TOLD = {
    ("quixotic=1",): "unknown key quixotic",
    ("training.max_steps=many",): "training.max_steps is 'many': give a whole number",
    ("model_name_or_path=./nowhere",): "model_name_or_path is ./nowhere, and there is no such folder",
    ("model_name_or_path=hub/name",): "train_data is pool.jsonl, and there is no such file or folder",
    (
        "model_name_or_path=hub/name",
        "train_data=hub/rows",
        "eval_data=/no/rows",
    ): "eval_data is /no/rows, and",
}


def test_a_bad_config_is_told_without_importing_torch(tmp_path: Path) -> None:
    path = written(tmp_path)
    code = f"""
import sys
from typer.testing import CliRunner
from coretune.cli import app
for command in ("train", "select", "plan", "compare"):
    for overrides, expected in {TOLD!r}.items():
        result = CliRunner().invoke(app, [command, {str(path)!r}, *overrides])
        assert result.exit_code == 1 and expected in result.output, result.output
print(sorted({{"torch", "transformers", "trl", "peft", "datasets"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("key", ["corpus_dir", "signals_dir"])
@pytest.mark.parametrize(
    "place", ["{out}", "{out}/kept", "{out}/a/../kept", "{out}/checkpoint-1/kept", "link/kept"]
)
def test_rows_and_signals_are_not_kept_where_a_push_takes_them_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "x").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "runs" / "x")
    given = place.format(out="runs/x")
    assert f"{key} is {given}, within output_dir, which push_to_hub uploads" in message({**SMALL, key: given})
    for good in ("runs/kept", "runs/x/_coretune/kept", "runs/x-kept"):
        assert getattr(check_config({**SMALL, key: good}), key) == good


# ------------------------------------------------------------------------------- settings that do nothing


@pytest.mark.parametrize(
    ("section", "idle"),
    [
        ({"method": "random", "k": 5, "audit_every": 2, "warmup": 0.1}, ["audit_every", "k", "warmup"]),
        ({"method": "random", "k": 10, "warmup": 0.05, "scores": ["loss"]}, []),
        ({"method": "random", "projection_dim": 64, "refresh_every": 5}, ["projection_dim"]),
        ({"method": "loss", "check_every": 3, "threshold": 0.3}, ["check_every", "threshold"]),
        ({"method": "loss", "check_every": 3, "refresh_every": "adaptive"}, []),
        ({"method": "loss", "anchor_share": 0.5, "refresh_every": "never"}, ["anchor_share"]),
        ({"method": "grace", "anchor_share": 0.5, "k": 5, "audit_every": 2, "projection_dim": 64}, []),
    ],
)
def test_settings_that_a_method_never_looks_at_are_named(section: dict[str, Any], idle: list[str]) -> None:
    section = {"budget": "10%", **section}
    assert without_effect(section, build_coreset(section, 0)) == idle
    written = build_coreset(section, 0).spelled_out(section)  # the written config gives every setting
    assert without_effect(written, build_coreset(written, 0)) == idle


def every_setting() -> list[Any]:
    """(method, key, value other than the default) of all there are."""
    found = []
    for method, selector in sorted(SELECTORS.items()):
        plain = build_coreset({"method": method, "budget": "10%"}, 0)
        for part in (plain.coreset, plain.coreset.selector, plain.coreset.refresh, plain.measuring):
            shared = part is not plain.coreset.selector
            for field in fields(part):
                key = field.name.rstrip("_")
                if field.init and key not in NOT_SET and (not shared or selector is SELECTORS["grace"]):
                    found.append(pytest.param(method, key, getattr(part, field.name), id=f"{method}.{key}"))
    return found


NOT_SET = ("selector", "refresh", "budget", "quota", "seed", "autocast")
ELSE: dict[str, Any] = {
    "anchors": "all",
    "basis": "sjlt",
    "deadline": "90s",
    "difficulty": "uniform",
    "embedding": "response_embedding",
    "engine": "ray",
    "harvest": False,
    "memory_limit": "1GiB",
    "parameters": "trainable",
    "preconditioner": "adam",
    "priority_score": "gradient_norm",
    "propagate": "none",
    "ray_address": "auto",
    "refresh_every": 7,
    "repair": "none",
    "scores": ["gradient_norm"],
}


def other_value(key: str, value: Any) -> Any:
    if key in ELSE:
        return ELSE[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, float):
        return 0.375 if value != 0.375 else 0.5
    if isinstance(value, int) or value is None:
        return (value or 0) + 3
    return "something else"


@pytest.mark.parametrize(("method", "key", "value"), every_setting())
def test_every_setting_of_the_coreset_is_taken_or_refused_by_name(method: str, key: str, value: Any) -> None:
    section = {"method": method, "budget": "10%", key: other_value(key, value)}
    plain = build_coreset({"method": method, "budget": "10%"}, 0)
    try:
        made = build_coreset(section, 0)
    except ConfigError as error:
        said = str(error)
    else:
        assert made != plain
        assert made.spelled_out(section) != plain.spelled_out({"method": method, "budget": "10%"})
        return
    assert key in said
    assert "\n" not in said


@pytest.mark.parametrize("key", [*RunConfig.model_fields, *EvaluateSection.model_fields])
def test_every_key_at_the_top_is_looked_at_by_somebody(key: str) -> None:
    """By name, in the code that runs a job."""
    code = "".join(path.read_text() for path in ROOT.rglob("*.py"))
    assert re.search(rf"\b(config|self|section|settings|evaluate)\.{key}\b", code), key

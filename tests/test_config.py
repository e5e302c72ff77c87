"""A config: every key known, every value checked, one line for every mistake, and a written one replays."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import coretune as coretune_package
from coretune.config import PLACES, ConfigError, RunConfig, check_config, load_config
from coretune.coreset_section import build_coreset
from coretune.scoring.evaluate_section import EvaluateSection
from coretune.select import SELECTORS

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


def test_the_config_of_the_readme_reads_and_has_the_defaults_of_grace(tmp_path: Path) -> None:
    readme = (ROOT.parent / "README.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```yaml\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    config = load_config(written(tmp_path, text))
    assert config.training["learning_rate"] == 0.001
    assert config.peft == {"r": 16, "lora_alpha": 32}
    made = build_coreset(config.coreset, config.seed)
    assert made == build_coreset({"method": "grace", "budget": "10%"}, config.seed)


def test_the_seed_of_the_run_is_that_of_the_coreset_and_its_signals(tmp_path: Path) -> None:
    config = load_config(written(tmp_path))
    made = build_coreset(config.coreset, config.seed)
    assert made.refresh_every == 20
    assert made.seed == made.signals.seed == 3
    assert made.selector == SELECTORS["grace"]()


@pytest.mark.parametrize(
    ("override", "where", "value"),
    [
        ("coreset.budget=5%", ("coreset", "budget"), "5%"),
        ("coreset.budget=2M tokens", ("coreset", "budget"), "2M tokens"),
        ("coreset.method.grace.lambda=0.25", ("coreset", "method", "grace", "lambda"), 0.25),
        ("coreset.refresh.anchors=all", ("coreset", "refresh", "anchors"), "all"),
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


def test_an_override_reaches_the_settings_of_a_filter_that_the_file_lists(tmp_path: Path) -> None:
    listed = TEXT.replace("budget: 10%", "budget: 10%\n  filters: [duplicates, {cooldown: {by: loss}}]")
    path = written(tmp_path, listed)
    both = ["coreset.filters.cooldown.coresets=2", "coreset.filters.duplicates.alike=folded"]
    assert load_config(path, both).coreset["filters"] == [
        {"duplicates": {"alike": "folded"}},
        {"cooldown": {"by": "loss", "coresets": 2}},
    ]
    with pytest.raises(ConfigError, match=r"coreset.filters.noise.pairs cannot be set: filters is \['dupl"):
        load_config(path, ["coreset.filters.noise.pairs=3"])


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
        ("train_data.x=5", "train_data.x cannot be set: train_data is 'pool.jsonl', which has no x"),
        ("coreset.method.d2.x=5", "coreset.method.d2.x cannot be set: method is 'grace', which has no d2"),
        ("coreset.lambda=0.5", "coreset.lambda is now coreset.method.grace.lambda"),
        ("training.max_steps=[1", "'training.max_steps=[1' is not YAML"),
        ("coresett.budget=5%", "unknown key coresett, did you mean 'coreset'?"),
        ("coreset.budgte=5%", "unknown key coreset.budgte, did you mean 'coreset.budget'?"),
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
        (with_coreset(refresh={"k": "ten"}), "coreset.refresh.k is 'ten': input should be a valid integer"),
        (with_coreset(refresh={"k": 2.5}), "coreset.refresh.k is 2.5: input should be a valid integer"),
        (with_coreset(refresh={"k": True}), "coreset.refresh.k is True: give a value that is not true or"),
        (with_coreset(refresh_every=True), "coreset.refresh_every is True: give a value"),
        (with_coreset(method={"grace": {"lambda": "half"}}), "coreset.method.grace.lambda is 'half': input"),
        (with_coreset(method={"grace": {"lambda": 2}}), "coreset.method.grace: lambda 2.0 is no share"),
        (
            with_coreset(refresh={"scores": "loss"}),
            "coreset.refresh.scores is 'loss': input should be a valid",
        ),
        (with_coreset(refresh={"anchors": "some"}), "coreset.refresh.anchors is 'some': input should be"),
        (with_coreset(refresh_every="often"), "coreset: refresh_every is 'often': give a number of steps"),
        (with_coreset(weighted="perhaps"), "coreset.weighted is 'perhaps': input should be a valid boolean"),
        (
            with_coreset(signals={"batch_tokens": 0}),
            "coreset.signals: batch_tokens is 0; it must be at least",
        ),
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


def test_a_runs_own_config_of_before_settings_were_nested_replays() -> None:
    """Other files are answered: theirs are written by hand, and few."""
    own = {**with_coreset(anchors="all", last_blocks=1), "provenance": {"versions": {}}}
    made = build_coreset(check_config(own).coreset, 0)
    assert (made.refresh.anchors, made.signals.last_blocks) == ("all", 1)
    assert "coreset.anchors is now coreset.refresh.anchors" in message(with_coreset(anchors="all"))


def test_a_config_is_not_changed_by_being_checked() -> None:
    raw = {**SMALL, "target_data": None, "peft": {}}
    config = check_config(raw)
    assert isinstance(config, RunConfig)
    assert config.peft == {}
    assert config.target_data is None
    assert raw["coreset"] == SMALL["coreset"]


def test_targets_have_shares_that_make_a_whole() -> None:
    assert check_config({**SMALL, "target_data": {"a.jsonl": 0.7, "b.jsonl": 0.3}}).target_data == {
        "a.jsonl": 0.7,
        "b.jsonl": 0.3,
    }
    assert "the shares of target_data sum to 0.9" in message({**SMALL, "target_data": {"a": 0.7, "b": 0.2}})
    assert "give each file a share above 0" in message({**SMALL, "target_data": {"a": 1.5, "b": -0.5}})
    assert "give each file a share above 0" in message({**SMALL, "target_data": {}})


# ------------------------------------------------------------------------------------ stock sections, places


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"training": {"learning_rate": "fast"}}, "training.learning_rate is 'fast': give a number"),
        ({"training": {"max_steps": "200"}}, "training.max_steps is '200': give a whole number"),
        ({"training": {"max_step": 2}}, "unknown key training.max_step, did you mean 'training.max_steps'?"),
        ({"training": {"seed": 2}}, "training.seed belongs at the top of the config"),
        ({"training": {"bf16": "x" * 10_000}}, "training.bf16 is 'xxxx"),
        ({"training": {"hub_token": 12345}}, "training.hub_token is (hidden): give text or null"),
        ({"peft": {"r": "sixteen"}}, "peft.r is 'sixteen': give a whole number"),
        ({"peft": {"lora_dropout": [0.1]}}, "peft.lora_dropout is [0.1]: give a number"),
        ({"peft": {"init_lora_weights": 3}}, "peft.init_lora_weights is 3: give true or false or text"),
        ({"peft": {"rank": 3}}, "unknown key peft.rank"),
        ({"seed": -1}, "seed is -1: "),
        ({"seed": True}, "seed is True: "),
        ({"seed": 2**40}, "seed is 1099511627776: "),
        ({"train_data": "po\0ol.jsonl"}, "train_data is 'po\\x00ol.jsonl': give a name of printable"),
        *(({key: ""}, f"{key} is '': give a name") for key in PLACES),
        ({"target_data": ""}, "target_data is '': give a name"),
        ({"resume_from_checkpoint": ""}, "resume_from_checkpoint is '': give a name"),
        ({"target_data": {"\x1b[2J": 1.0}}, "target_data is '\\x1b[2J': give a name"),
    ],
)
def test_a_wrong_kind_of_value_is_refused_before_anything_is_loaded(
    section: dict[str, Any], expected: str
) -> None:
    assert expected in message({**SMALL, **section})
    assert len(message({**SMALL, **section})) < 300


HUB = ("model_name_or_path=hub/name", "train_data=hub/rows", "eval_data=null")
TOLD = {
    ("quixotic=1",): "unknown key quixotic",
    ("training.optim=adamw_torh",): "training.optim is 'adamw_torh': did you mean 'adamw_torch'?",
    ("training.save_strategy=sometimes",): "'sometimes': give one of no, steps, epoch, best",
    ("training.dataset_text_field=q",): "texts are read from `text`: write columns: {text: …} at the top",
    ("peft.peft_type=LOAR",): "peft.peft_type is 'LOAR', did you mean 'LORA'?; there are",
    ("peft.peft_type=ia3", "peft.r=2"): "unknown key peft.r",
    ("training.max_steps=many",): "training.max_steps is 'many': give a whole number",
    ("model_name_or_path=./nowhere",): "model_name_or_path is ./nowhere, and there is no such folder",
    ("model_name_or_path=hub/name",): "train_data is pool.jsonl, and there is no such file or folder",
    (*HUB, "eval_data=/no/rows"): "eval_data is /no/rows, and",
    (
        *HUB,
        "training.chat_template_path=no.jinja",
    ): "training.chat_template_path is no.jinja, which is not there",
    (*HUB, "training.deepspeed=./no"): "training.deepspeed is ./no, which is not there",
    (*HUB, "resume_from_checkpoint=runs/no/checkpoint-3"): "checkpoint-3, which is not there",
    (
        *HUB,
        "evaluate.metric=exat_match",
    ): "evaluate.metric is 'exat_match': input should be 'loss', 'exact_match'",
}


def test_a_bad_config_is_refused_without_importing_torch(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("key", [*RunConfig.model_fields, *EvaluateSection.model_fields])
def test_every_key_at_the_top_is_read_somewhere(key: str) -> None:
    """By name, in the code that runs a job."""
    code = "".join(path.read_text() for path in ROOT.rglob("*.py"))
    assert re.search(rf"\b(config|self|section|settings|evaluate)\.{key}\b", code), key

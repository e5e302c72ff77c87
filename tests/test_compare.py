"""Arms against each other: what is shared, what is run again, and the statistics against formulas."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from compare_results import result
from tiny_run import model_folder, records, write_jsonl
from typer.testing import CliRunner

from coretune.cli import app
from coretune.comparing import arm_runs, compare
from coretune.comparing.arms import arm_section, split_arms
from coretune.comparing.compare import Job, Result
from coretune.config import ConfigError, RunConfig, check_config
from coretune.coreset_section import build_coreset
from coretune.recording.run_files import REPORT
from coretune.storing.inputs import _revision, inputs

SHARED = {
    "method": {"grace": {"lambda": 0.5}},
    "budget": "25%",
    "refresh_every": 2,
    "refresh": {"k": 4, "warmup": 0.1},
}


def config(folder: Path, **top: Any) -> RunConfig:
    return check_config(
        {
            "model_name_or_path": str(model_folder()),
            "train_data": str(folder / "pool.jsonl"),
            "eval_data": str(folder / "eval.jsonl"),
            "output_dir": str(folder / "out"),
            "coreset": SHARED,
            "training": {
                "max_steps": 8,
                "per_device_train_batch_size": 4,
                "learning_rate": 1e-2,
                "bf16": False,
                "dataloader_pin_memory": False,
            },
            **top,
        }
    )


# ------------------------------------------------------------------------------------------------- arms


def test_an_arm_shares_what_is_not_its_methods_own() -> None:
    audited = {**SHARED, "refresh": {**SHARED["refresh"], "audit_every": 2}}  # type: ignore[dict-item]
    assert arm_section("grace", audited) == SHARED
    assert audited["refresh"] == {"k": 4, "warmup": 0.1, "audit_every": 2}  # which other arms share
    assert arm_section("random", SHARED) == {**SHARED, "method": "random"}
    full = arm_section("full", SHARED)
    assert full == {"method": "random", "budget": "100%", "refresh_every": "never"}
    assert arm_section("d2:filters=[duplicates, {cooldown: {coresets: 2}}]", SHARED)["filters"] == [
        "duplicates",
        {"cooldown": {"coresets": 2}},
    ]
    with_more = arm_section("grace:refresh.anchors=all;method.grace.lambda=0.25", SHARED)
    assert with_more["refresh"] == {"k": 4, "warmup": 0.1, "anchors": "all"}
    assert with_more["method"] == {"grace": {"lambda": 0.25}}


def test_a_method_with_a_warm_up_run_keeps_its_schedule_unless_the_arm_says_otherwise() -> None:
    section = arm_section("brief", SHARED)
    assert "refresh_every" not in section
    assert section["budget"] == "25%"
    assert build_coreset(section, 0).refresh_every == "never"
    assert arm_section("brief:refresh_every=4", SHARED)["refresh_every"] == 4
    assert section["refresh"] == {"k": 4}  # warmup is its own
    assert arm_section("brief", {**SHARED, "method": "brief"})["refresh_every"] == 2


def test_arms_are_parted_by_commas_that_are_in_no_brackets() -> None:
    assert split_arms("full, d2:filters=[noise,{cooldown: {by: loss, coresets: 2}}];k=3,random") == [
        "full",
        "d2:filters=[noise,{cooldown: {by: loss, coresets: 2}}];k=3",
        "random",
    ]


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ("grase", "there is no arm 'grase', did you mean 'grace'"),
        ("grace:lambda", "'lambda' in the arm 'grace:lambda' is no setting: write path=value"),
        ("grace:refresh.k=[", "'refresh.k=\\[' is not YAML"),
        ("d2:method.grace.lambda=1", "method.grace.lambda cannot be set: method is 'd2', which has no grace"),
        ("grace:quota={a: 1, a: 2}", "the key 'a' is written twice"),
    ],
)
def test_mistakes_in_an_arm_are_named(arm: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        arm_section(arm, SHARED)


def test_what_cannot_be_compared_is_refused_before_anything_is_run(tmp_path: Path) -> None:
    for top, arms, message in (
        ({"training": {}}, ["random"], "compare needs training.max_steps"),
        ({"eval_data": None}, ["random"], "compare needs eval_data"),
        ({}, ["random", "random"], "an arm is given twice"),
        ({}, ["random:bugdet=4"], "unknown key coreset.bugdet, did you mean 'coreset.budget'"),
    ):
        with pytest.raises(ConfigError, match=message):
            compare.jobs_of(config(tmp_path, **top), arms, [0], tmp_path)


def test_a_job_is_named_by_all_that_decides_it(tmp_path: Path) -> None:
    def key(arm: str = "random", seed: int = 0, steps: int = 8, out: Path = tmp_path, **top: Any) -> str:
        return compare.job_of(config(tmp_path, **top), arm, seed, steps, out).key

    assert key() == key(out=tmp_path / "elsewhere")
    training = {**config(tmp_path).training, "learning_rate": 2e-2}
    keys = [key(), key("grace"), key("random:budget=30%"), key(seed=1), key(steps=9), key(training=training)]
    assert len(set(keys)) == 6


def rewrite(path: Path, old: str, new: str) -> None:
    """In place, with the size and the time of before."""
    stamp, content = path.stat(), path.read_text()
    assert content.count(old) >= 1
    path.write_text(content.replace(old, new, 1))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


def test_a_job_is_another_when_what_its_config_names_has_changed_in_place(tmp_path: Path) -> None:
    names = ("pool", "eval", "target", "quality")
    for name in names:
        write_jsonl(tmp_path / f"{name}.jsonl", records(8))
    files = {name: str(tmp_path / f"{name}.jsonl") for name in names}
    model = shutil.copytree(model_folder(), tmp_path / "model")
    warmup = shutil.copytree(model_folder(), tmp_path / "warmup" / "checkpoint-1")
    template = tmp_path / "chat.jinja"
    template.write_text("{{ messages }}")
    given = config(
        tmp_path,
        model_name_or_path=str(model),
        train_data=files["pool"],
        eval_data=files["eval"],
        target_data={files["target"]: 1.0},
        evaluate={"metric": ["loss"], "file": files["quality"]},
        training={"max_steps": 8, "chat_template_path": str(template)},
    )

    def key() -> str:
        return compare.job_of(
            given, f"brief:method.brief.checkpoints_from={tmp_path / 'warmup'}", 0, 8, tmp_path
        ).key

    keys = [key(), key()]
    for change in (
        *(lambda name=name: rewrite(tmp_path / f"{name}.jsonl", "say 3", "say 4") for name in names),
        lambda: rewrite(model / "config.json", "silu", "gelu"),
        lambda: rewrite(model / "tokenizer_config.json", "{", "{ "),
        lambda: rewrite(template, "messages", "messages "),
        lambda: (warmup / "optimizer.pt").write_bytes(b"moments"),
    ):
        change()
        keys.append(key())
    assert keys[0] == keys[1]
    assert len(set(keys)) == len(keys) - 1


@pytest.mark.parametrize("package", ["torch", "trl", "faiss-cpu"])
def test_a_job_under_another_version_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    job = compare.job_of(config(tmp_path), "random", 0, 8, tmp_path)
    before = job.key
    monkeypatch.setattr("coretune.installed.version", lambda name: "9" if name == package else "1")
    other = job.key
    monkeypatch.setattr("coretune.installed.version", lambda name: "1")
    assert len({before, other, job.key}) == 3


def test_a_hub_id_is_known_by_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one downloaded last, where the hub cannot be asked."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    refs = tmp_path / "models--an-owner--a-model" / "refs"
    refs.mkdir(parents=True)
    found = []
    for commit in ("a" * 40, "b" * 40):
        (refs / "main").write_text(commit)
        _revision.cache_clear()
        found.append(
            inputs({"model_name_or_path": "an-owner/a-model"})["model_name_or_path an-owner/a-model"]
        )
    assert found == ["a" * 40, "b" * 40]
    assert inputs({"train_data": "an-owner/none"})["train_data an-owner/none"] == "unknown"


# ---------------------------------------------------------------------------------------------- running


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "pool.jsonl", records(40))
    write_jsonl(tmp_path / "eval.jsonl", records(8, seed=1))
    return tmp_path


def test_finished_jobs_are_not_repeated_and_cut_ones_begin_anew(data: Path) -> None:
    job = compare.jobs_of(config(data), ["random"], [3], data / "out")[0]
    ran: list[Job] = []

    def cut(job: Job) -> Result:
        Path(job.config.output_dir).mkdir(parents=True)
        (Path(job.config.output_dir) / "ledger.json").write_text("{}")
        raise KeyboardInterrupt

    def whole(job: Job) -> Result:
        assert not Path(job.config.output_dir).exists()
        ran.append(job)
        return result("random", 3, 1.0)

    with pytest.raises(KeyboardInterrupt):
        arm_runs.finished(job, data / "out", cut)
    first = arm_runs.finished(job, data / "out", whole)
    assert arm_runs.finished(job, data / "out", whole) == first
    assert len(ran) == 1
    (kept,) = (data / "out").glob("*.json")
    rewrite(kept, '"seed": 3', '"seed": 4')
    assert arm_runs.finished(job, data / "out", whole) == first  # damaged, so made again
    assert len(ran) == 2
    rewrite(data / "pool.jsonl", "say 3", "say 4")
    arm_runs.finished(job, data / "out", whole)
    assert len(ran) == 3


def test_a_result_of_data_that_changed_meanwhile_is_not_kept(data: Path) -> None:
    job = compare.jobs_of(config(data), ["random"], [3], data / "out")[0]

    def changing(job: Job) -> Result:
        rewrite(data / "eval.jsonl", "say 3", "say 4")
        return result("random", 3, 1.0)

    arm_runs.finished(job, data / "results", changing)
    assert not (data / "results").exists()
    assert not list((data / "out").rglob("*.part"))


def test_a_whole_comparison(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two arms, two seeds, at equal steps and at equal compute; a second time nothing is run."""
    path = data / "config.yaml"
    path.write_text(yaml.safe_dump(config(data).model_dump(exclude_none=True)), encoding="utf-8")
    command = ["compare", str(path), "--arms", "random,loss:refresh.anchors=all", "--seeds", "2", "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    out = data / "out"
    found = json.loads((out / "compare.json").read_text())
    assert json.loads(done.stdout) == found
    steps, compute = found["tables"]
    assert [line[:3] for line in steps["rows"]] == [
        ["random", "2", "8"],
        ["loss:refresh.anchors=all", "2", "8"],
    ]
    afforded = {line[0]: int(line[2]) for line in compute["rows"]}
    assert afforded["loss:refresh.anchors=all"] == 8
    assert afforded["random"] > 8
    flops = {r["arm"]: r["flops"] for r in found["results"] if r["steps"] == afforded[r["arm"]]}
    assert flops["random"] == pytest.approx(flops["loss:refresh.anchors=all"], rel=0.2)
    assert len(found["results"]) == 6
    assert [len(curve["flops"]) > 3 for curve in found["curves"]] == [True, True]
    assert {"loss", "exact_match"} <= set(found["results"][0]["metrics"])
    page = (out / found["results"][0]["folder"] / REPORT).read_text(encoding="utf-8")
    assert "Compared with other arms" in page
    assert not list(out.glob("*/model.safetensors"))

    def never(job: Job) -> Result:
        raise AssertionError("a finished job was run again")

    monkeypatch.setattr(arm_runs, "run_job", never)
    again = CliRunner().invoke(app, command[:-1])
    assert again.exit_code == 0, again.output
    assert "At equal compute, choosing included" in again.stdout

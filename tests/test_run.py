"""One whole job: a config in, a run directory out; replayed, reordered, resumed, and refused in one line."""

from __future__ import annotations

import json
import logging
import shutil
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import HfApi
from huggingface_hub.utils import filter_repo_objects
from run_configs import CORESET, TRAINING, config, raw_config, written_data
from safetensors.torch import load_file, save_file
from tiny_run import model_folder, records, write_jsonl
from transformers import TrainerState

from coretune import run
from coretune.config import ConfigError, load_config
from coretune.recording import audit
from coretune.recording.run_files import CONFIG, LEDGER, OWN, POOL, REPORT, ROWS, SELECTION


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run, as `coretune train` makes it."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "config.yaml").write_text(yaml.safe_dump(raw_config(data, folder / "first")), encoding="utf-8")
    run.train(load_config(folder / "config.yaml"))
    return folder / "first"


def final_weights(folder: Path, name: str = "adapter_model.safetensors") -> dict[str, torch.Tensor]:
    return load_file(folder / name)


def selection(folder: Path, round: int | None = None) -> Any:
    return audit.read(folder / SELECTION, round)


def assert_same_weights(one: Path, other: Path, name: str = "adapter_model.safetensors") -> None:
    theirs = final_weights(other, name)
    for key, value in final_weights(one, name).items():
        assert torch.equal(value, theirs[key]), key


# ------------------------------------------------------------------------------------ the run directory


def test_a_run_directory_holds_what_it_promises(done: Path) -> None:
    for name in (CONFIG, POOL, SELECTION, LEDGER, REPORT):
        assert (done / name).is_file()
    assert {"checkpoint-4", "checkpoint-8"} <= {path.name for path in done.iterdir()}
    assert TrainerState.load_from_json(str(done / "checkpoint-8" / "trainer_state.json")).global_step == 8
    assert (done / "checkpoint-8" / "adapter_model.safetensors").exists()
    assert json.loads((done / "eval_results.json").read_text())["eval_loss"] > 0
    ledger = json.loads((done / LEDGER).read_text())
    assert [entry["round"] for entry in ledger["rounds"]] == [1, 2, 3]
    assert ledger["phases"]["training"]["rows"] + ledger["phases"]["warm-up"]["rows"] == 32
    assert ledger["phases"]["evaluation"]["rows"] == 12
    assert ledger["total"]["flops"] > 0
    weights = sum(path.stat().st_size for path in done.glob("checkpoint-*/*"))
    assert weights <= ledger["disk"]["checkpoints"] < 1.5 * weights + 1e6
    assert min(ledger["disk"][kind] for kind in ("weights", "signals", "records")) > 0
    saved = (done / "adapter_model.safetensors").stat().st_mtime_ns
    assert saved < min((done / name).stat().st_mtime_ns for name in (LEDGER, REPORT))  # weights come first
    assert json.loads((done / ROWS).read_text()) == {"kept": 48, "out": [], "cut": 0, "notes": []}
    assert "spearman" in ledger["rounds"][2]["approximation"]


def test_the_selection_is_recorded_row_by_row(done: Path) -> None:
    table = selection(done).to_pylist()
    assert {line["round"] for line in table} == {1, 2, 3}
    assert sorted({line["id"] for line in table}) == sorted(row["id"] for row in records(48))
    for number in (1, 2, 3):
        lines = [line for line in table if line["round"] == number]
        chosen = [line for line in lines if line["chosen"]]
        assert len(lines) == 48
        assert sorted(line["rank"] for line in chosen) == list(range(12))
        assert all(line["weight"] == 1.0 for line in chosen)
        assert all(line["gain"] is None for line in lines if not line["chosen"])
        assert {"importance", "coverage"} <= set(chosen[0])
    assert all(line["measured"] for line in table if line["round"] == 1)
    assert not all(line["measured"] for line in table if line["round"] == 2)


def test_where_all_settings_count_the_trainer_warns_of_nothing(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run.build_trainer(config(data, tmp_path))
    assert [line.getMessage() for line in caplog.records if line.name == "coretune"] == []


def test_the_config_written_replays_the_run(done: Path, tmp_path: Path) -> None:
    replayed = load_config(done / CONFIG, [f"output_dir={tmp_path / 'again'}"])
    assert replayed.provenance is not None
    assert replayed.provenance["rows"] == 48
    assert replayed.coreset["refresh"]["anchor_share"] == 0.05
    run.train(replayed)
    assert selection(tmp_path / "again").equals(selection(done))
    assert_same_weights(done, tmp_path / "again")
    first, again = (yaml.safe_load((folder / CONFIG).read_text()) for folder in (done, tmp_path / "again"))
    assert {**first, "output_dir": None} == {**again, "output_dir": None}


def test_a_replay_on_other_data_is_refused_with_both_fingerprints(
    done: Path, data: Path, tmp_path: Path
) -> None:
    written = yaml.safe_load((done / CONFIG).read_text())
    replayed = load_config(done / CONFIG, [f"output_dir={tmp_path}", f"train_data={data / 'eval.jsonl'}"])
    then = written["provenance"]["train_data"][:16]
    with pytest.raises(
        ConfigError, match=f"train_data has fingerprint [0-9a-f]{{16}}, the run .* had {then}"
    ):
        run.train(replayed)


def with_sources(path: Path, names: str) -> Path:
    return write_jsonl(path, [{**row, "source": names[i % 2]} for i, row in enumerate(records(48))])


def test_a_replay_with_any_other_input_is_refused_and_each_is_named(data: Path, tmp_path: Path) -> None:
    """Changed in place: no path says so."""
    model = shutil.copytree(model_folder(), tmp_path / "model")
    for name in ("eval", "target"):
        shutil.copy(data / f"{name}.jsonl", tmp_path)
    scored = write_jsonl(tmp_path / "scored.jsonl", records(4, seed=3))
    first = config(
        tmp_path,
        tmp_path / "run",
        model_name_or_path=str(model),
        train_data=str(with_sources(tmp_path / "pool.jsonl", "ab")),
        target_data=str(tmp_path / "target.jsonl"),
        evaluate={"metric": ["loss"], "file": str(scored)},
        coreset={"method": "less", "budget": "25%", "quota": {"source": {"a": 0.2}}},
    )
    run._write_config(first, run.build_trainer(first))
    replayed = load_config(tmp_path / "run" / CONFIG, [f"output_dir={tmp_path / 'again'}"])
    run.build_trainer(replayed)
    with_sources(tmp_path / "pool.jsonl", "ba")
    write_jsonl(tmp_path / "eval.jsonl", records(12, seed=4))
    write_jsonl(tmp_path / "target.jsonl", records(8, seed=5))
    write_jsonl(scored, records(4, seed=6))
    entries = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**entries, "rms_norm_eps": 1e-2}))
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="the run to replay had other inputs") as refused:
        run.build_trainer(replayed)
    named = (
        "eval_data (",
        "target_data (",
        "the sources of",
        "evaluate.file (",
        "config.json",
        "the weights of",
    )
    assert [name for name in named if name not in str(refused.value)] == []
    assert "tokenizer" not in str(refused.value)


def test_a_replay_from_copies_elsewhere_is_the_same(done: Path, data: Path, tmp_path: Path) -> None:
    model = shutil.copytree(model_folder(), tmp_path / "model")
    pool = write_jsonl(tmp_path / "elsewhere.jsonl", records(48))
    places = [f"model_name_or_path={model}", f"train_data={pool}", f"output_dir={tmp_path / 'run'}"]
    run.build_trainer(load_config(done / CONFIG, places))


def test_a_replay_with_other_versions_says_so(
    done: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    replayed = load_config(done / CONFIG, [f"output_dir={tmp_path}"])
    assert replayed.provenance is not None
    replayed.provenance["versions"]["trl"] = "0.0.1"
    with caplog.at_level(logging.WARNING, logger="coretune"):
        run.build_trainer(replayed)
    assert "the run to replay used trl 0.0.1" in caplog.text


def test_the_order_of_the_file_changes_nothing(done: Path, data: Path, tmp_path: Path) -> None:
    rows = records(48)
    shuffled = [rows[i] for i in np.random.default_rng(5).permutation(48)]
    path = write_jsonl(tmp_path / "shuffled.jsonl", shuffled)
    run.train(config(data, tmp_path / "run", train_data=str(path)))
    assert selection(tmp_path / "run").equals(selection(done))
    assert_same_weights(done, tmp_path / "run")


def test_a_run_killed_and_resumed_is_the_run(done: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(done / "checkpoint-4", tmp_path / "run" / "checkpoint-4")
    (tmp_path / "run" / OWN).mkdir()
    shutil.copy(done / SELECTION, tmp_path / "run" / SELECTION)  # with the rounds after the checkpoint
    run.train(config(data, tmp_path / "run", resume_from_checkpoint=True))
    assert selection(tmp_path / "run").equals(selection(done))
    assert_same_weights(done, tmp_path / "run")


def test_full_fine_tuning_another_seed_and_no_evaluation(data: Path, tmp_path: Path) -> None:
    top = {"peft": None, "eval_data": None, "target_data": None}
    chosen = []
    for number, seed in enumerate((0, 0, 1)):
        out = tmp_path / str(number)
        made = run.train(config(data, out, seed=seed, **top))
        table = selection(out).to_pylist()
        chosen.append([line["id"] for line in table if line["chosen"]])
        assert made.cost.adapter_parameters is None
        assert not (out / "eval_results.json").exists()
    assert_same_weights(tmp_path / "0", tmp_path / "1", "model.safetensors")
    assert chosen[0] == chosen[1] != chosen[2]


def test_a_target_file_reaches_the_methods_that_take_one(data: Path, tmp_path: Path) -> None:
    section = {**CORESET, "method": "less"}
    with pytest.raises(
        ValueError, match="target_cosine needs target examples and none are given; set target_data"
    ):
        run.train(config(data, tmp_path / "without", coreset=section))
    target = str(data / "target.jsonl")
    made = run.train(config(data, tmp_path / "with", coreset=section, target_data=target))
    assert np.isfinite(made.coreset_state.pool.feature("target_cosine")).all()


# ------------------------------------------------------------------------------------------- publishing


def test_a_push_takes_the_model_and_its_card_and_no_text_of_the_pool(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every folder that the stock trainer hands to the hub, with the patterns that it hands over."""
    pushed: dict[str, set[Path]] = {}

    def upload(self: HfApi, *, folder_path: str, ignore_patterns: Any = None, **given: Any) -> Future[None]:
        files = {path.relative_to(folder_path) for path in Path(folder_path).rglob("*") if path.is_file()}
        taken = set(filter_repo_objects(map(str, files), ignore_patterns=ignore_patterns))
        pushed.setdefault(given.get("path_in_repo", "model"), set()).update(map(Path, taken))
        texts = [row["prompt"].encode() for row in records(48)]
        told = [(folder_path / Path(name)).read_bytes() for name in taken]
        assert not [text for text in texts for content in told if text in content]
        done: Future[None] = Future()
        done.set_result(None)
        return done

    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **_: SimpleNamespace(repo_id=name))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    hub = {
        "push_to_hub": True,
        "hub_model_id": "me/mine",
        "hub_strategy": "checkpoint",
        "hub_token": "secret",
        "model_init_kwargs": {"token": "secret"},
    }
    out = tmp_path / "run"
    run.train(config(data, out, training={**TRAINING, **hub})).push_to_hub()
    assert (out / SELECTION).is_file()
    assert "secret" not in (out / CONFIG).read_text()
    assert {Path("README.md"), Path("adapter_model.safetensors")} <= pushed["model"]
    assert not {OWN, "checkpoint-4", "checkpoint-8"} & {path.parts[0] for path in pushed["model"]}
    assert Path("coreset_state.npz") in pushed["last-checkpoint"]


# -------------------------------------------------------------------------------------------- selecting


def test_select_writes_the_users_rows_with_their_reasons(done: Path, data: Path, tmp_path: Path) -> None:
    """And they are the first coreset of the run that trains."""
    path = run.select(config(data, tmp_path))
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    source = {row["id"]: row for row in records(48)}
    for rank, line in enumerate(lines):
        facts = line.pop("coretune")
        assert line == source[line["id"]]
        assert list(line) == list(source[line["id"]])
        assert (facts["id"], facts["rank"], facts["weight"]) == (line["id"], rank, 1.0)
        assert set(facts) == {"id", "rank", "weight", "gain", "components", "why"}
        assert facts["components"]["coverage"] + facts["components"]["importance"] == pytest.approx(
            facts["gain"], abs=1e-6
        )
    trained = selection(done, 1).to_pylist()
    chosen = sorted((line["rank"], line["id"]) for line in trained if line["chosen"])
    assert [line["id"] for line in lines] == [name for _, name in chosen]
    assert selection(tmp_path)["round"].unique().to_pylist() == [1]
    assert json.loads((tmp_path / LEDGER).read_text())["phases"]["training"]["rows"] == 0
    assert not list(tmp_path.glob("checkpoint-*"))


# --------------------------------------------------------------------------------------------- refusals


def test_a_directory_that_holds_a_run_is_refused(done: Path, data: Path) -> None:
    before = (done / CONFIG).read_bytes()
    for work in (run.train, run.select):
        with pytest.raises(
            ConfigError, match=r"holds a run already; give another output_dir, (or )?remove it"
        ):
            work(config(data, done))
    assert (done / CONFIG).read_bytes() == before

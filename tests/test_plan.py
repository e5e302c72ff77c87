"""What a run will cost: counted against a ledger, extrapolated against formulas, held against outcomes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import coreset_config, corpus, model_folder, records, write_jsonl
from trl.trainer import sft_trainer
from typer.testing import CliRunner

from coretune import run
from coretune.cli import app
from coretune.config import RunConfig, check_config
from coretune.filters.duplicates import Duplicates
from coretune.filters.target_rows import TargetRows
from coretune.ledger import Cost, Ledger, table_of
from coretune.neighbors.graph import build
from coretune.planning import plan, rehearsal
from coretune.planning.plan import Plan, Rates, Work, Workload, audits_of, predict, verdict
from coretune.planning.rehearsal import Choosing, Rehearsal
from coretune.planning.workload import about_run, workload
from coretune.probing import probe
from coretune.probing.probe_config import Size, size_of, small_config
from coretune.rounds.schedule import Schedule
from coretune.types import Pool


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_jsonl(folder / "pool.jsonl", records(48))
    write_jsonl(folder / "eval.jsonl", records(12, seed=1))
    return folder


def config(data: Path, out: Path, training: dict[str, Any] | None = None, **coreset: Any) -> RunConfig:
    section = {"method": "grace", "budget": "25%", "refresh_every": 2, **coreset}
    section["refresh"] = {"warmup": 0.1, "k": 4, **coreset.get("refresh", {})}
    return check_config(
        {
            "model_name_or_path": str(model_folder()),
            "train_data": str(data / "pool.jsonl"),
            "eval_data": str(data / "eval.jsonl"),
            "output_dir": str(out),
            "coreset": section,
            "training": {
                "max_steps": 8,
                "per_device_train_batch_size": 4,
                "learning_rate": 1e-2,
                "save_strategy": "no",
                "bf16": False,
                "disable_tqdm": True,
                "dataloader_pin_memory": False,
                **(training or {}),
            },
            "report": "never",
        }
    )


# ------------------------------------------------------------------------------------------- what is done


@settings(deadline=None, max_examples=60)
@given(
    steps=st.integers(1, 6),
    warmup=st.integers(0, 3),
    every=st.integers(0, 4),
    total=st.integers(1, 60),
    audit=st.one_of(st.none(), st.integers(1, 4)),
)
def test_selections_and_audits_are_those_that_dynamic_makes(
    steps: int, warmup: int, every: int, total: int, audit: int | None
) -> None:
    schedule = Schedule(steps, 4, warmup, every)
    made = audits = 0
    for round in range(-(-total // steps)):
        after = round - warmup
        if after == 0 or (after > 0 and every and after % every == 0):
            audits += bool(audit and made and made % audit == 0)
            made += 1
    assert schedule.selections(total) == made
    assert audits_of(made, audit) == audits


@pytest.mark.parametrize(
    ("training", "coreset"),
    [
        ({}, {"refresh": {"anchors": "all"}}),
        (
            {"eval_strategy": "steps", "eval_steps": 3},
            {"refresh": {"anchors": "priority", "anchor_share": 0.25}},
        ),
        ({"eval_strategy": "epoch", "eval_on_start": True}, {"method": "random"}),
        ({"max_steps": -1, "num_train_epochs": 2}, {"method": "loss", "refresh_every": "never"}),
    ],
)
def test_what_is_counted_before_is_what_the_ledger_counts(
    data: Path, tmp_path: Path, training: dict[str, Any], coreset: dict[str, Any]
) -> None:
    """Rows to the last one where nothing depends on the model; FLOPs but for the lengths of those chosen."""
    trainer = run.train(config(data, tmp_path, training, **coreset))
    said = trainer.ledger.predicted
    assert said is not None
    assert said["total"]["seconds"] is None
    was = trainer.ledger.by_phase()
    for name in ("warm-up", "measurement", "training", "evaluation"):
        assert said["phases"][name]["rows"] == was[name].rows, name
        if was[name].rows:
            a_token = said["phases"][name]["flops"] / said["phases"][name]["tokens"]
            assert a_token == pytest.approx(was[name].flops / was[name].tokens, rel=0.15), name
    written = json.loads((tmp_path / "_coretune" / "ledger.json").read_text())
    assert written["predicted"] == json.loads(json.dumps(said))
    assert Ledger.from_dict(written).predicted == written["predicted"]


# -------------------------------------------------------------------------------------------- rehearsal


def sample_pool(n: int = 40) -> Pool:
    rng = np.random.default_rng(0)
    unit = rng.standard_normal((n, 6)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    features = {
        name: unit if name.endswith("_embedding") else rng.random(n).astype(np.float32)
        for name in (*coreset_config("loss").needs, *coreset_config("facility_location").needs)
    }
    nothing = np.zeros(n, np.int32)
    return Pool(features, np.full(n, 9), nothing, np.ones(n, bool), build(unit, 4, seed=0))


def test_a_rehearsal_measures_the_rows_that_the_settings_ask_for() -> None:
    cost = np.full(100, 9)
    for anchors, rows in (("all", 100), ("priority", 10)):
        settings = coreset_config("loss", anchors=anchors, anchor_share=0.1)
        found = rehearsal.rehearse(settings, sample_pool(), cost)
        assert (found.first.rows, found.later.rows) == (100, rows)
        assert found.first.graph > 0
        assert found.first.selection > 0
    still = rehearsal.rehearse(coreset_config("random"), sample_pool(), cost)
    assert still.later.rows == 0


ONE = Choosing(1.0, 2.0, 100.0, 2.0)


def test_rows_of_the_target_do_not_stop_a_rehearsal() -> None:
    """The filter is there where the pool holds examples of the target, which the sample does not mark."""
    settings = replace(coreset_config("loss"), filters=(TargetRows(), Duplicates()))
    assert rehearsal.rehearse(settings, sample_pool(), np.full(60, 9)).first.rows == 60


def test_refreshes_that_measure_nothing_only_choose() -> None:
    found = rehearsal.measuring(Rehearsal(ONE, Choosing(1.0, 4.0, 100.0, 2.0)), 0.0)
    assert (found.first, found.later) == (ONE, Choosing(0.0, 1.0, 0.0, 0.0))
    found = rehearsal.measuring(Rehearsal(ONE, ONE), 70.0)
    assert found.later == replace(ONE, rows=70.0)


def test_a_slow_model_is_probed_with_fewer_rows() -> None:
    """FLOPs that the machine does in the seconds allowed; a quick one runs the steps of the run itself."""
    of = work(pool=Work(100, 1000, 6e6), first=Work(100, 1000, 2e6))  # 6e4 and 2e4 a row
    assert size_of(of, 16, 1e12) == Size(256, 16)
    assert size_of(of, 16, 6 * 6e4 * 8) == Size(24, 4)
    assert size_of(of, 16, 1.0) == Size(8, 1)
    assert size_of(work(first=Work(0, 0, 0.0)), 64, 1e12) == Size(512, 64)


def test_a_slow_model_is_evaluated_on_fewer_rows() -> None:
    of = work(held_out=Work(100, 1000, 5e6))
    assert [probe._evaluated(of, flops) for flops in (1e12, 10 * 5e4, 1.0)] == [64, 10, 2]
    assert probe._evaluated(work(held_out=Work(0, 0, 0.0)), 1e12) == 0


def test_a_large_pool_is_extrapolated_by_the_power_that_two_sizes_show(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def play(config: Any, sample: Any, cost: Any, seed: int, clock: Any) -> Rehearsal:
        n = len(cost)
        one = Choosing(graph=n**2 / 1e6, selection=n**1.5 / 1e6, rows=n / 10, measurements=3)
        return Rehearsal(one, one)

    monkeypatch.setattr(rehearsal, "_play", play)
    found = rehearsal.rehearse(coreset_config("loss"), sample_pool(), np.full(40_000, 9)).later
    assert found.graph == pytest.approx(40_000**2 / 1e6)
    assert found.selection == pytest.approx(40_000**1.5 / 1e6)
    assert (found.rows, found.measurements) == (4000, 3)


# ------------------------------------------------------------------------------------ costs and verdicts


def work(**changes: Any) -> Workload:
    def done(flops: float) -> Work:
        return Work(100, 1000, flops)

    known = {
        "pool_rows": 100,
        "steps": 10,
        "rounds": 5,
        "selections": 3,
        "audits": 0,
        "evaluations": 2,
        "batch": 10,
        "warmup": Work(0, 0, 0.0),
        "training": done(30.0),
        "pool": done(30.0),
        "first": done(10.0),
        "later": done(10.0),
        "held_out": done(5.0),
        "budget_rows": 20,
        "epochs": 1.0,
    }
    return Workload(**{**known, **changes})


ONCE = Choosing(graph=2.0, selection=1.0, rows=20.0, measurements=2.0)
TWICE = Rehearsal(Choosing(4.0, 2.0, 100.0, 1.0), ONCE)


def test_costs_are_rates_times_work() -> None:
    rates = Rates(1.0, 3.0, 0.5, 2.0, 0.25, 7.0, 1.0, 11.0, 0.01, 0.02)
    phases = predict(work(), rates, TWICE, measures=True)
    assert phases["training"] == Cost(30 + 3 + 4 * 0.5, 100, 1000, 30.0)
    assert phases["measurement"].rows == 100 + 2 * 20
    assert phases["measurement"].flops == 10 + 2 * 2
    assert phases["measurement"].seconds == pytest.approx(2 * 14 + 0.25 * (1 + 2 * 2) + 7)
    assert phases["graph"].seconds == 4 + 2 * 2
    assert phases["selection"].seconds == 2 + 2 * 1
    assert phases["evaluation"] == Cost(10.0, 200, 2000, 10.0)
    assert phases["other"].seconds == pytest.approx(11 + 100 * (0.02 + 3 * 0.01))
    blind = predict(work(first=Work(0, 0, 0.0), later=Work(0, 0, 0.0)), rates, TWICE, measures=False)
    assert blind["measurement"] == Cost()


def told(changes: dict[str, Any], phases: dict[str, Cost] | None = None, measures: bool = True) -> str:
    of = work(**changes)
    return "\n".join(verdict(Plan(phases or predict(of, Rates(1.0), TWICE, measures), of)))


def test_the_verdict_warns_when_choosing_saves_nothing() -> None:
    assert "WARNING: selection saves no compute against full training" in told({})
    saved = told({"epochs": 3.0})
    assert "against full training: 49% of the FLOPs of 3 epochs" in saved
    assert "in 10 steps what a random coreset reaches in 15" in saved  # 14 of 30 / 10 FLOPs a step


def test_the_verdict_warns_when_choosing_costs_more_than_training() -> None:
    assert "choosing costs" not in told({"epochs": 9.0})
    assert "WARNING: choosing costs 2.8 times what training does" in told({"first": Work(100, 1, 80.0)})
    assert "costs what random costs" in told(
        {"first": Work(0, 0, 0.0), "later": Work(0, 0, 0.0)}, measures=False
    )


def test_the_verdict_warns_of_time_outside_the_model() -> None:
    phases = predict(work(), Rates(0.01), TWICE, measures=True)
    assert "graph and selection take" in told({}, phases)


# ---------------------------------------------------------------------------------------- whole commands


def test_a_plan_is_written_and_the_run_holds_itself_against_it(data: Path, tmp_path: Path) -> None:
    of = config(data, tmp_path / "run", refresh={"audit_every": 2})
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(of.model_dump(exclude_none=True)), encoding="utf-8")
    done = CliRunner().invoke(app, ["plan", str(path), "--json"])
    assert done.exit_code == 0, done.output
    assert [file.name for file in (tmp_path / "run").rglob("*.*")] == ["plan.json"]
    found = json.loads((tmp_path / "run" / "_coretune" / "plan.json").read_text())
    assert json.loads(done.stdout) == found
    assert found["total"]["seconds"] > 0
    assert found["verdict"]
    assert next(size for name, size in found["memory"].items() if name.startswith("process")) > 1e7
    assert found["disk"]["weights"] > 1e4
    trainer = run.train(of)
    assert trainer.ledger.predicted == {"phases": found["phases"], "total": found["total"]}
    line = run.against_plan(trainer)
    assert line.startswith("predicted: ")
    assert " s (" in line
    assert " FLOPs (" in line


def test_a_plan_of_another_config_is_not_held_against_a_run(data: Path, tmp_path: Path) -> None:
    one, other = config(data, tmp_path), config(data, tmp_path, budget="50%")
    (tmp_path / "_coretune").mkdir()
    (tmp_path / "_coretune" / "plan.json").write_text(
        json.dumps({"about": about_run(one), "phases": {}, "total": {"seconds": 1.0}})
    )
    assert plan.prediction(tmp_path, lambda: about_run(one)) == {"phases": {}, "total": {"seconds": 1.0}}
    assert plan.prediction(tmp_path, lambda: about_run(other)) is None
    assert plan.prediction(tmp_path / "nowhere", lambda: about_run(one)) is None
    pool = data / "pool.jsonl"
    before = pool.read_text()
    try:
        pool.write_text(before + before.splitlines()[0].replace("row-", "new-") + "\n")
        assert plan.prediction(tmp_path, lambda: about_run(one)) is None
    finally:
        pool.write_text(before)


@pytest.mark.parametrize("coreset", [{"method": "random"}, {"method": "loss", "refresh_every": 3}])
def test_every_schedule_can_be_planned(data: Path, tmp_path: Path, coreset: dict[str, Any]) -> None:
    found = probe.make_plan(config(data, tmp_path, **coreset))
    assert np.isfinite(found.total.seconds)
    assert found.phases["training"].seconds > 0
    assert plan.lines(found)
    assert len(table_of(found.phases)) >= 3
    assert found.notes[-1].startswith("based on 6 steps of 4 rows, 48 rows of the pool, 12 rows evaluated")


def test_a_probe_of_packs_takes_no_more_rows_a_step_than_it_is_to(data: Path, tmp_path: Path) -> None:
    of = config(data, tmp_path, {"packing": True, "max_length": 128})
    trainer = run.build_trainer(of)
    density = trainer.schedule.density
    assert density > 1
    for rows, packs in ((4 * density, 4), (4 * density - 1, 3), (2 * density, 2), (1, 1)):
        small = small_config(trainer, of, tmp_path, Size(48, rows))
        assert small.training["per_device_train_batch_size"] == packs
    filters = {name: given for each in small.coreset["filters"] for name, given in each.items()}
    assert filters["noise"]["pairs"] == 12  # a quarter of the rows


def test_the_workload_is_of_the_whole_pool(data: Path, tmp_path: Path) -> None:
    of = config(data, tmp_path)
    found = workload(run.build_trainer(of), of)
    assert (found.pool_rows, found.steps, found.budget_rows, found.held_out.rows) == (48, 8, 12, 12)
    assert found.pool.tokens == int(corpus().length.sum())


def test_the_weights_are_read_once(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an adapter too: the probe trains the one that was made for the count."""
    read: list[str] = []
    stock = sft_trainer.create_model_from_path

    def reading(path: str, *args: Any, **kwargs: Any) -> Any:
        read.append(path)
        return stock(path, *args, **kwargs)

    monkeypatch.setattr(sft_trainer, "create_model_from_path", reading)
    of = config(data, tmp_path).model_copy(update={"peft": {"r": 2, "target_modules": "all-linear"}})
    found = probe.make_plan(of)
    assert read == [str(model_folder())]
    assert found.phases["training"].seconds > 0


def test_mistakes_are_one_line(data: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["plan", str(tmp_path / "nothing.yaml")])
    assert done.exit_code == 1
    assert "is no file; give the path of a YAML file" in done.stderr

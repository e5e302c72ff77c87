"""The page: what it says, and what it does in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from recorded_run import make_run
from report_pages import EVIL, HISTORY, INHERITED, compare_file, evil_rows, odd_page
from typer.testing import CliRunner

from coretune.cli import app
from coretune.ledger import Ledger
from coretune.recording import by_source
from coretune.recording.run_files import RunFiles
from coretune.report import details, facts, write_report
from coretune.report.page import render
from coretune.training import watch

# ---------------------------------------------------------------------------------------------- figures


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFiles:
    return RunFiles.of(make_run(tmp_path_factory.mktemp("run")))


def test_the_mix_is_counted(run: RunFiles) -> None:
    found = facts.gather(run, HISTORY)
    source = dict(zip(run.ids, run.pool["source"].to_pylist(), strict=True))
    for number, counts in zip(run.rounds, found["sources"]["coreset"], strict=True):
        names = [source[name] for name in run.chosen(number)]
        assert counts == [names.count(name) for name in found["sources"]["names"]]
    assert sum(found["sources"]["pool"]) == 60
    for shares in (found["lengths"]["pool"], *found["lengths"]["coreset"]):
        assert sum(shares) == pytest.approx(1, abs=0.01)


def test_overlap_copies_and_coverage_are_those_of_the_sets(run: RunFiles) -> None:
    found = facts.gather(run)
    sets = [set(run.chosen(number)) for number in run.rounds]
    for a, one in enumerate(sets):
        for b, other in enumerate(sets):
            assert found["overlap"][a][b] == pytest.approx(len(one & other) / len(other), abs=1e-4)
    group = run.pool["copies"].to_pylist()
    assert found["copies"]["pool"] == np.mean([group.count(name) > 1 for name in group])
    for number, share in zip(run.rounds, found["coverage"]["share"], strict=True):
        lines = [
            line for line in run.selection(number).to_pylist() if not line["chosen"] and not line["excluded"]
        ]
        assert share == pytest.approx(
            np.mean([line["representative"] is not None for line in lines]), abs=1e-3
        )


def test_what_filters_took_out_is_counted_and_shown_with_examples(run: RunFiles) -> None:
    found = facts.gather(run)
    for taken, number in zip(found["filtered"], run.rounds, strict=True):
        out = run.selection(number)["filtered"].to_pylist()
        assert taken == {"duplicates": 0, "noise": out.count("noise")}
    duplicates, noise = found["filters"]
    assert (duplicates["name"], duplicates["rows"]) == ("duplicates", [])
    assert noise["says"].startswith("flagged as noisy")
    scores = [row["score"] for row in noise["rows"]]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    page = render(found)
    assert all(row["id"] in page for row in noise["rows"])
    assert "filtered_noise" not in str(found["said"])  # said by the filters' own part of the page


def test_sources_beyond_the_largest_are_one_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_source, "SOURCES", 3)
    found = facts.gather(RunFiles.of(make_run(tmp_path)))["sources"]
    assert len(found["names"]) == 4
    assert found["names"][-1] == "other sources"
    assert sum(found["pool"]) == 60


def test_a_large_pool_is_sampled_and_the_page_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(details, "ROWS", 20)
    run = RunFiles.of(make_run(tmp_path))
    found = facts.gather(run)
    assert len(found["rows"]["id"]) == 20
    ever = set().union(*(run.chosen(number) for number in run.rounds))
    assert sum(name in ever for name in found["rows"]["id"]) == 10
    assert (
        f"10 of the {len(ever)} rows that were ever chosen and 10 of the {60 - len(ever)} others"
        in render(found)
    )
    assert found["rows"] == facts.gather(run)["rows"]


def test_many_refreshes_are_shown_evenly_and_the_page_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(details, "REFRESHES", 5)
    run = RunFiles.of(make_run(tmp_path, n=20, rounds=tuple(range(1, 13))))
    found = facts.gather(run)
    shown = [entry["round"] for entry in found["refreshes"]]
    assert len(shown) == details.REFRESHES
    assert (shown[0], shown[-1]) == (1, 12)
    assert set(np.diff(shown)) <= {2, 3}
    assert "5 of 12 selections are shown" in found["notes"]["refreshes"]


def test_the_headline_adds_up(run: RunFiles) -> None:
    cards = {card["label"]: card for card in facts.gather(run, HISTORY)["headline"]}
    assert cards["Coreset"]["value"] == "15 rows"
    assert cards["Held-out loss"]["value"] == "1.700"
    assert cards["Time"] == {"label": "Time", "value": "6 s", "note": "45% of it measuring and choosing"}
    assert cards["Compute"]["value"] == "8.0·10⁹ FLOPs"
    assert cards["Compute"]["note"] == "choosing cost 33% of what training did"


def test_cost_in_steps_when_the_steps_are_known(tmp_path: Path) -> None:
    run = RunFiles.of(make_run(tmp_path, config={"training": {"max_steps": 90}}))
    assert "of it for choosing, as much as 30 of the 90 steps" in render(facts.gather(run))


@pytest.mark.parametrize(
    ("seconds", "shown"), [(None, "<td>6.10e+09 FLOPs</td>"), (3.2, "<td>3.2 s, 6.10e+09 FLOPs</td>")]
)
def test_what_was_predicted_stands_beside_what_it_cost(
    tmp_path: Path, seconds: float | None, shown: str
) -> None:
    said = {
        "phases": {
            "training": {"seconds": seconds, "flops": 6.1e9},
            "selection": {"seconds": seconds, "flops": 0.0},
        }
    }
    page = render(facts.gather(RunFiles.of(make_run(tmp_path, predicted=said))))
    assert "<th>predicted</th>" in page
    assert shown in page


def test_the_audit_shows_what_was_compared_and_nothing_else(tmp_path: Path) -> None:
    run = RunFiles.of(make_run(tmp_path))
    first, second, *_ = run.ledger["rounds"]
    for entry in run.ledger["rounds"]:
        entry["approximation"] = {}
    first["approximation"] = {"near_copies": 0.5}
    assert facts.gather(run)["approximation"] == []
    second["approximation"] = {"rows_online": 3, "score": 0.9}
    (shown,) = facts.gather(run)["approximation"]
    assert shown == {"round": second["round"], "step": run.step_of(second["round"]), "score": 0.9}


# ------------------------------------------------------------------------------------------- the page


def test_text_stays_text(tmp_path: Path) -> None:
    compare_file(make_run(tmp_path, rows=evil_rows()))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    own = page[page.index('id="facts"') :]
    assert "hacked" in own
    assert "<script>document.title" not in page
    assert "<img" not in own
    assert "<b>grace" not in page
    data = re.search(r'<script id="facts" type="application/json">(.*?)</script>', page, re.S)
    assert data is not None
    assert json.loads(data[1])["rows"]["prompt"][5] == EVIL


def test_nothing_is_fetched_and_the_page_forbids_it(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path)).read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    assert not re.findall(r"""<(?:script|link|img|iframe)[^>]+(?:src|href)=["'](?!data:)""", page)


def test_the_command_writes_the_page_or_says_in_one_line_why_not(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    done = CliRunner().invoke(app, ["report", str(tmp_path / "run")])
    assert done.stdout == f"report: {tmp_path / 'run' / '_coretune' / 'report.html'}\n"
    told = CliRunner().invoke(app, ["report", str(tmp_path / "run"), "--json"])
    assert json.loads(told.stdout) == {"report": str(tmp_path / "run" / "_coretune" / "report.html")}
    failed = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert failed.exit_code == 1
    assert "holds no _coretune/selection.parquet" in failed.stderr


def test_while_a_run_goes_on_pages_take_a_bounded_share_of_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now, written = [1000.0], []
    monkeypatch.setattr(watch.time, "monotonic", lambda: now[0])

    def write(folder: str, history: Any) -> None:
        written.append(now[0])
        now[0] += 2.0

    monkeypatch.setattr(watch, "write_report", write)
    ledger = Ledger(lambda: now[0])
    writer = watch.ReportWriter(Path("run"), lambda: ledger)
    state = SimpleNamespace(is_world_process_zero=True, log_history=[])
    writer.on_log(None, state, None, logs={"loss": 1.0})
    assert not written
    for _ in range(1000):
        writer.on_log(None, state, None, logs={"coreset/round": 1.0})
        now[0] += 1.0
    assert written[0] == 1000.0
    assert 0.8 * watch.SHARE < ledger.costs["other"].seconds / (now[0] - 1000) <= watch.SHARE * 1.1
    writer.on_log(None, SimpleNamespace(is_world_process_zero=False), None, logs={"coreset/round": 1.0})


@pytest.mark.skipif(shutil.which("node") is None, reason="no node here")
def test_names_that_every_object_has_are_shown_as_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(details, "ROWS", 30)  # so that some rows that represent others are not in the sample
    page = odd_page(tmp_path)
    stubs = Path(__file__).with_name("page_stubs.js")
    done = subprocess.run(["node", str(stubs), str(page)], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert {"map", "sources", "overlap", "approximation"} <= set(found["drawn"])
    assert sorted(found["drawn"]["sources"]["text"]) == sorted(INHERITED)
    assert found["drawn"]["sources"]["ticks"] == found["drawn"]["sources"]["text"]
    assert set(found["drawn"]["map"]["notes"]) <= set(INHERITED)  # of two on one place, the larger
    assert "native code" not in done.stdout

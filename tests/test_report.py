"""The page: what it says, and what it does in a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from browser import Browser, find
from recorded_run import FakeRows, fake_rows, make_run
from typer.testing import CliRunner

from coretune.cli import app
from coretune.ledger import Ledger
from coretune.recording import by_source
from coretune.recording.run_files import CONFIG, LEDGER, RunFiles
from coretune.report import details, facts, write_report
from coretune.report.page import render
from coretune.training import watch

EVIL = "</script><script>document.title = 'hacked'</script><img src=x onerror=alert(1)> &amp; {{ 7 * 7 }}"
HISTORY = [{"loss": 2.0, "step": 10}, {"loss": 1.5, "step": 20}, {"eval_loss": 1.7, "step": 20, "epoch": 2}]


def evil_rows(n: int = 60) -> FakeRows:
    rows = fake_rows(n)
    texts = [
        (EVIL if row == 5 else prompt, EVIL if row == 7 else a) for row, (prompt, a) in enumerate(rows.texts)
    ]
    source = np.array([EVIL if row % 2 else "good" for row in range(n)], dtype=object)
    return FakeRows(texts, source)


def compare_file(folder: Path) -> None:
    curves = [{"arm": "grace", "flops": [1e9, 2e9], "loss": [2.0, 1.0], "error": [0.1, 0.1]}]
    table = {"title": "At equal steps", "header": ["arm", "loss"], "rows": [["<b>grace</b>", "1.0 ± 0.1"]]}
    found = {"title": "two arms", "tables": [table], "curves": curves}
    (folder / "compare.json").write_text(json.dumps(found))


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


# ------------------------------------------------------------------------------- names of anybody's choice

INHERITED = ("constructor", "toString", "__proto__", "hasOwnProperty", "valueOf")


class OddRows(FakeRows):
    """Rows and sources named as what every JavaScript object has."""

    @property
    def ids(self) -> list[str]:
        return [*INHERITED, *(f"row-{row}" for row in range(len(INHERITED), len(self.texts)))]


def odd_page(folder: Path, n: int = 60) -> Path:
    rows = fake_rows(n)
    return write_report(
        make_run(folder, rows=OddRows(rows.texts, np.array([INHERITED[i % 5] for i in range(n)], object)))
    )


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


# ----------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = find()
    if executable is None:
        assert not os.environ.get("CI"), "no Chromium: .ci/run installs the distribution's"
        pytest.skip("no Chromium here: apt-get install chromium")
    with Browser(executable) as opened:
        yield opened


def opened(browser: Browser, path: Path, **size: Any) -> None:
    browser.messages.clear()
    browser.requests.clear()
    browser.open(path, **size)
    deadline = time.monotonic() + 30
    while browser.evaluate("document.documentElement.dataset.drawn ?? null") is None:
        assert time.monotonic() < deadline, "not all plots were drawn"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("page"), rows=evil_rows())
    compare_file(folder)
    return write_report(folder, HISTORY)


def test_the_page_draws_all_plots_without_an_error_or_a_request(browser: Browser, page: Path) -> None:
    opened(browser, page)
    assert browser.messages == []
    assert [url for url in browser.requests if not url.startswith("data:")] == [page.resolve().as_uri()]
    plots = "[...document.querySelectorAll('.plot')]"
    ids = browser.evaluate(f"{plots}.map(node => node.id)")
    assert {"map", "sources", "lengths", "copies", "overlap", "filtered", "coverage", "near"} <= set(ids)
    assert {"approximation", "loss", "curves", "component-importance"} <= set(ids)
    empty = f"{plots}.filter(n => !n.querySelector('.trace, .points, .heatmaplayer image')).map(n => n.id)"
    assert browser.evaluate(empty) == []
    wide = f"{plots}.filter(n => n.querySelector('.main-svg').clientWidth > n.clientWidth + 1).map(n => n.id)"
    assert browser.evaluate(wide) == []
    assert browser.evaluate("document.title") == f"{page.parents[1].name} · coretune"


def test_the_slider_moves_the_whole_page(browser: Browser, page: Path) -> None:
    opened(browser, page)
    now = "document.getElementById('now').textContent"
    assert "Selection 3 of 3, step 50" in browser.evaluate(now)
    rows = "[...document.querySelectorAll('.line.in .id')].map(node => node.textContent)"
    coreset = "document.getElementById('map').data[2].customdata.map(i => R.rows.id[i]).sort()"
    run = RunFiles.of(page.parents[1])
    for place, number in ((2, 5), (0, 1)):
        moved = f"slider.value = {place}; slider.dispatchEvent(new Event('input'))"
        browser.evaluate(moved)
        assert f"Selection {place + 1} of 3, step {10 * number}" in browser.evaluate(now)
        assert browser.evaluate(coreset) == sorted(run.chosen(number))
        assert browser.evaluate(rows) == run.chosen(number)
        held = browser.evaluate("document.getElementById('sources').data[1].x.reduce((a, b) => a + b)")
        assert held == pytest.approx(1)
    assert browser.messages == []


def test_search_and_filters_narrow_the_table(browser: Browser, page: Path) -> None:
    opened(browser, page)
    run = RunFiles.of(page.parents[1])
    ids = "[...document.querySelectorAll('.line .id')].map(node => node.textContent)"

    def set_to(control: str, value: str) -> list[str]:
        script = f"c = document.getElementById('{control}'); c.value = {json.dumps(value)};"
        browser.evaluate("var c; " + script + "c.dispatchEvent(new Event('input'))")
        found: list[str] = browser.evaluate(ids)
        return found

    assert len(browser.evaluate(ids)) == 25
    assert set_to("search", "THINGS: 12") == ["row-12"]
    assert sorted(set_to("search", "hacked")) != []
    assert set_to("search", "no such text") == []
    set_to("search", "")
    assert sorted(set_to("filter", "chosen")) == sorted(run.chosen(5))
    ever = set().union(*(run.chosen(number) for number in run.rounds))
    assert not ever & set(set_to("filter", "never"))
    set_to("filter", "")
    browser.evaluate("document.getElementById('more').click()")
    assert len(browser.evaluate(ids)) == 60
    assert set_to("order", "importance")
    assert browser.messages == []


def test_pointing_at_a_row_shows_its_text_as_text(browser: Browser, page: Path) -> None:
    opened(browser, page)
    browser.evaluate("document.getElementById('map').scrollIntoView()")
    at_point = "m.{0}axis._offset + m.{0}axis.d2p(R.rows.{0}[5])"
    inside = [
        browser.evaluate(f"m = document.getElementById('map')._fullLayout; {at_point.format(a)}")
        for a in "xy"
    ]
    corner = browser.evaluate("b = document.getElementById('map').getBoundingClientRect(); [b.left, b.top]")
    place = [a + b for a, b in zip(inside, corner, strict=True)]
    browser("Input.dispatchMouseEvent", type="mouseMoved", x=place[0] - 3, y=place[1] - 3)
    browser("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])
    deadline = time.monotonic() + 10
    told = "document.getElementById('row').textContent"
    while "row-5" not in browser.evaluate(told) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "row-5" in browser.evaluate(told)
    assert EVIL in browser.evaluate(told)
    assert browser.evaluate("document.querySelectorAll('img').length") == 0
    assert browser.messages == []


@pytest.mark.parametrize(("width", "mobile"), [(390, True), (800, False)])
def test_the_page_fits_a_phone_and_a_narrow_window(
    browser: Browser, page: Path, width: int, mobile: bool
) -> None:
    opened(browser, page, width=width, height=844, mobile=mobile)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.messages == []


def test_the_figures_of_a_method_are_those_of_the_selection_shown(browser: Browser, tmp_path: Path) -> None:
    said = {"guarantee": "<b>exact</b>", "represented": 60000, "curve": [[0.5, 2.0], [0.25, 1.5], [1.0, 3.0]]}
    make_run(tmp_path, said=said)
    opened(browser, write_report(tmp_path))
    told = "document.getElementById('said').innerText.replace(/\\s+/g, ' ')"
    assert "<b>exact</b>" in browser.evaluate(told)
    assert "represented 60,000" in browser.evaluate(told)
    assert "E 3.500" in browser.evaluate(told)
    browser.evaluate("show(0)")
    assert "E 1.500" in browser.evaluate(told)
    assert browser.evaluate("document.getElementById('curve').data[0].x") == [0.25, 0.5, 1.0]
    assert browser.evaluate("document.getElementById('curve').data[1].x") == [0.25]
    assert browser.messages == []


def test_a_run_without_map_components_or_ledger_has_a_page_too(browser: Browser, tmp_path: Path) -> None:
    make_run(tmp_path, graph=False, rounds=(1,), rows=fake_rows(30, sources=False))
    for name in (LEDGER, CONFIG):
        (tmp_path / name).unlink()
    opened(browser, write_report(tmp_path))
    assert browser.messages == []
    assert "No map: the run holds no vectors" in browser.evaluate("document.body.textContent")


def test_sources_with_names_that_every_object_has_are_drawn(browser: Browser, tmp_path: Path) -> None:
    opened(browser, odd_page(tmp_path))
    assert browser.messages == []
    ticks = "[...document.querySelectorAll('#sources .ytick text')].map(node => node.textContent)"
    assert sorted(browser.evaluate(ticks)) == sorted(INHERITED)


def test_a_hundred_thousand_rows_are_light_and_quick(browser: Browser, tmp_path: Path) -> None:
    """Seconds are of processor time: the machine may be busy with other things."""
    path = write_report(make_run(tmp_path, 100_000, (1, 3)))
    assert path.stat().st_size < 12e6
    browser("Performance.enable", timeDomain="threadTicks")
    opened(browser, path)
    spent = {m["name"]: m["value"] for m in browser("Performance.getMetrics")["metrics"]}
    assert spent["TaskDuration"] < 3.0
    assert browser.messages == []

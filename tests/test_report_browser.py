"""The report in a browser."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, find
from recorded_run import fake_rows, make_run
from report_pages import EVIL, HISTORY, INHERITED, compare_file, evil_rows, odd_page

from coretune.recording.run_files import CONFIG, LEDGER, RunFiles
from coretune.report import write_report

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
    lines = "(r = document.createRange(), r.selectNodeContents(n), r.getClientRects().length)"
    names = f"var r; [...document.querySelectorAll('td.word')].map(n => [n.textContent, {lines}])"
    assert browser.evaluate(names) == [["duplicates", 1], ["noise", 1]]  # whole words on one line
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

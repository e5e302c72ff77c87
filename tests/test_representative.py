"""The chosen row that represents a row: by the method, along the graph, or by its signal; how it is shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import browser as browsers
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded_run import EMBEDDING, decode, fake_pool, fake_rows

from coretune.reading.diff import Side, diff
from coretune.reading.explain import explain, lines
from coretune.recording import representative, run_record
from coretune.recording.run_files import RunFiles
from coretune.report import details, write_report
from coretune.rounds.state import State
from coretune.types import Array, Coreset, Pool

CHOSEN = np.array([7, 2, 12])


def coreset(reasons: dict[str, Array]) -> Coreset:
    return Coreset(CHOSEN, np.ones(3), np.array([3.0, 2.0, 1.0]), reasons)


def recorded(folder: Path, reasons: dict[str, Array], signal: Array | None = None) -> RunFiles:
    """A run of one selection of 16 rows, by a method that builds no graph."""
    rows = fake_rows(16)
    pool = fake_pool(rows, graph=False)
    if signal is not None:
        pool = replace(pool, features={"trajectory": signal})
    state = State(1, 1, 1, pool, coreset(reasons))
    run_record.record(folder, state, rows, decode, embedding=EMBEDDING, others=100, seed=0)
    return RunFiles.of(folder)


def brief_like(n: int = 16) -> dict[str, Array]:
    """Row i stands with pick i mod 3; row 3 is not usable."""
    represented_by = CHOSEN[np.arange(n) % 3].astype(float)
    represented_by[CHOSEN], represented_by[3] = CHOSEN, -1
    represents = np.zeros(n)
    represents[CHOSEN] = [(represented_by == row).sum() for row in CHOSEN]
    return {"represents": represents, "distance_kn": np.arange(n) / 10, "represented_by": represented_by}


def test_a_method_that_says_whom_a_row_stands_with_is_believed() -> None:
    pool = fake_pool(fake_rows(16))  # with a graph, which would say otherwise
    said = brief_like()
    nearest, closeness = representative.represented(pool, coreset(said))
    assert nearest.tolist() == said["represented_by"].tolist()
    assert np.flatnonzero(~np.isnan(closeness)).tolist() == sorted([*CHOSEN, 3])


@settings(deadline=None, max_examples=30)
@given(n=st.integers(2, 30), seed=st.integers(0, 99), block=st.sampled_from([3, 2**24]))
def test_without_a_graph_the_nearest_by_the_signal_is_found(n: int, seed: int, block: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n, 3)).astype(np.float32)
    vectors[rng.integers(n)] = 0
    usable = rng.random(n) < 0.9
    chosen = rng.choice(n, rng.integers(1, n + 1), replace=False)
    pool = Pool({"trajectory": vectors}, np.ones(n, np.int64), np.zeros(n, np.int32), usable)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(representative, "BLOCK", block)
        nearest, closeness = representative.represented(pool, Coreset(chosen, np.ones(0), np.ones(0)))
    length = np.maximum(np.linalg.norm(vectors, axis=1), 1e-20)
    for row in range(n):
        cosines = vectors[chosen] @ vectors[row] / length[chosen] / length[row]
        if row in chosen:
            assert (nearest[row], closeness[row]) == (row, 1)
        elif not usable[row] or not vectors[row].any():
            assert (nearest[row], closeness[row]) == (-1, 0)
        else:
            assert closeness[row] == pytest.approx(cosines.max(), abs=1e-5)
            assert cosines[chosen.tolist().index(nearest[row])] == pytest.approx(cosines.max(), abs=1e-5)


def test_a_search_that_would_take_too_long_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = replace(fake_pool(fake_rows(16), graph=False), features={"trajectory": np.ones((16, 4))})
    monkeypatch.setattr(representative, "PRODUCTS", 16 * 4 * 3 - 1)
    nearest, _ = representative.represented(pool, coreset({}))
    assert np.flatnonzero(nearest >= 0).tolist() == sorted(CHOSEN)


def test_explain_and_diff_show_what_represents_a_row_and_its_text(tmp_path: Path) -> None:
    run = recorded(tmp_path, brief_like())
    found = explain(run, "row-4")
    one = found.refreshes[0]
    assert one.verdict == "not chosen; row-2 represents it"
    assert one.representative is not None
    assert one.representative.id == "row-2"
    assert set(one.components) == {"distance_kn"}  # nothing that only chosen rows have, and no row's number
    text = run.pool["prompt"][2].as_py()
    assert any(line.startswith(f"  represented by row-2: {text}") for line in lines(found))
    chosen = explain(run, "row-2").refreshes[0]
    assert chosen.verdict.startswith("chosen, number 2 of 3")
    assert chosen.components["represents"].meaning == "rows that it represents, itself among them"
    assert chosen.components["represents"].above in (0, 1 / 3, 2 / 3)  # among the chosen ones
    assert chosen.representative is None
    later = State(
        2, 2, 2, fake_pool(fake_rows(16), graph=False), Coreset(np.array([4]), np.ones(1), np.ones(1))
    )
    run_record.record(tmp_path, later, fake_rows(16), decode, embedding=EMBEDDING, others=100, seed=0)
    again = RunFiles.of(tmp_path)
    response = run.pool["response"][2].as_py()
    expected = f"not chosen; row-2 ({text} → {response}) represents it"
    assert diff(Side(again, 1), Side(again, 2)).entered[0].why == expected


def test_explain_of_a_pursuit_names_the_nearest_chosen_trajectory(tmp_path: Path) -> None:
    signal = np.random.default_rng(0).standard_normal((16, 5)).astype(np.float32)
    zeros = np.zeros(16)
    told = {"correlation": zeros + 0.5, "pursuit_weight": zeros, "iteration": zeros, "deflation": zeros}
    one = explain(recorded(tmp_path, told, signal), "row-5").refreshes[0]
    unit = signal / np.linalg.norm(signal, axis=1, keepdims=True)
    best = CHOSEN[(unit[CHOSEN] @ unit[5]).argmax()]
    assert one.verdict.startswith(f"not chosen; row-{best} is the nearest chosen row, cosine")
    assert set(one.components) == {"correlation"}


def test_the_page_has_the_text_of_stand_ins_that_it_has_no_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = recorded(tmp_path, brief_like())
    assert details.details(run).representatives == {}
    monkeypatch.setattr(details, "ROWS", 4)
    found = details.details(run)
    others = {f"row-{row}" for row in CHOSEN} - set(found.rows["id"])
    assert set(found.representatives) == others
    for name, text in found.representatives.items():
        assert text.startswith(run.pool["prompt"][run.row_of[name]].as_py())


def test_the_table_shows_what_represents_a_row(tmp_path: Path) -> None:
    if (program := browsers.find()) is None:
        pytest.skip("no Chromium in the PATH: the page is not opened")
    run = recorded(tmp_path, brief_like())
    with browsers.Browser(program) as browser:
        browser.open(write_report(run.path))
        told: Any = browser.evaluate(
            "Object.fromEntries([...document.querySelectorAll('.line')].map(line => "
            "[line.querySelector('.id').textContent, line.querySelector('.stands')?.textContent ?? null]))"
        )
        assert browser.messages == []
    prompts = run.pool["prompt"].to_pylist()
    assert told["row-4"].startswith(f"row-2: {prompts[2]} → ")
    assert told["row-2"] is None
    assert told["row-3"] is None

"""Why a row was chosen or not, from the run directory alone."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded_run import (
    EMBEDDING,
    FakeRows,
    decode,
    fake_coreset,
    fake_pool,
    fake_rows,
    make_run,
    recorded_lines,
)
from typer.testing import CliRunner

from coretune.cli import app
from coretune.neighbors.graph import symmetric_csr
from coretune.reading.explain import explain, lines
from coretune.recording import audit, run_record
from coretune.recording.representative import representatives
from coretune.recording.run_files import CONFIG, LEDGER, POOL, SELECTION, RunFiles, excerpt


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFiles:
    return RunFiles.of(make_run(tmp_path_factory.mktemp("run")))


# ------------------------------------------------------------------------------------- what a run keeps


@settings(deadline=None, max_examples=30)
@given(n=st.integers(6, 40), seed=st.integers(0, 99), data=st.data())
def test_a_rows_representative_is_the_nearest_chosen_row_of_its_neighbours(
    n: int, seed: int, data: st.DataObject
) -> None:
    pool = fake_pool(fake_rows(n, seed), seed)
    chosen = np.array(data.draw(st.lists(st.integers(0, n - 1), unique=True, max_size=n)), np.int64)
    starts, others, cosine = symmetric_csr(pool.graph)
    nearest, closeness = representatives(pool.graph, chosen, n)
    for row in range(n):
        edges = zip(others[starts[row] : starts[row + 1]], cosine[starts[row] : starts[row + 1]], strict=True)
        known = sorted((-value, other) for other, value in edges if other in chosen)
        if row in chosen:
            assert (nearest[row], closeness[row]) == (row, 1.0)
        elif known:
            assert (nearest[row], closeness[row]) == (known[0][1], -known[0][0])
        else:
            assert (nearest[row], closeness[row]) == (-1, 0.0)


def test_without_a_graph_only_the_chosen_are_represented() -> None:
    nearest, closeness = representatives(None, np.array([4, 1]), 6)
    assert nearest.tolist() == [-1, 1, -1, -1, 4, -1]
    assert closeness.tolist() == [0, 1, 0, 0, 1, 0]


def test_the_map_is_the_plane_that_shows_most() -> None:
    """Against the singular vectors of all rows; and no other plane through the mean shows more."""
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((300, 6)) * [5, 3, 1, 1, 0.5, 0.1]).astype(np.float32)
    places, share = run_record.plane(rows, seed=0)
    spread = rows - rows.mean(axis=0)
    _, lengths, directions = np.linalg.svd(spread)
    assert share == pytest.approx((lengths[:2] ** 2).sum() / (lengths**2).sum(), rel=1e-4)
    np.testing.assert_allclose(np.abs(places), np.abs(spread @ directions[:2].T), atol=1e-3)
    assert np.array_equal(places, run_record.plane(rows, seed=0)[0])


@pytest.mark.parametrize("shape", [(3, 1), (5, 2)])
def test_what_has_no_plane_lies_in_one_point(shape: tuple[int, int]) -> None:
    places, share = run_record.plane(np.ones(shape, np.float32), seed=0)
    assert (places == 0).all()
    assert share == 1


def test_the_map_is_of_what_vectors_there_are() -> None:
    """An embedding before gradients, and gradients before nothing."""
    rows = fake_rows(12)
    pool = fake_pool(rows)
    gradient = np.random.default_rng(0).standard_normal((12, 5)).astype(np.float32)
    for features, mapped in (
        ({"gradient": gradient, EMBEDDING: pool.features[EMBEDDING]}, EMBEDDING),
        ({"gradient": gradient, "loss": gradient[:, 0]}, "gradient"),
        ({"loss": gradient[:, 0], "wide": np.zeros((12, run_record.MAP_WIDTH + 1), np.float32)}, None),
    ):
        seen = run_record.Pool(features, pool.cost, pool.measured_at, pool.usable)
        table = run_record.describe_pool(seen, rows, decode, EMBEDDING, 0)
        facts = json.loads(table.schema.metadata[b"coretune"])
        assert ("variance_shown" in facts) == (mapped is not None) == (table["x"].null_count == 0)
        assert mapped in (None, facts["embedding"])


def test_long_texts_are_kept_by_beginning_and_end() -> None:
    prompt = "a" * 100 + "b" * 300 + "c" * 100
    rows = FakeRows([(prompt, "x" * 10), ("short", "y" * 160), ("p", "z" * 161)], None)
    table = run_record.describe_pool(fake_pool(rows, graph=False), rows, decode, EMBEDDING, 0)
    assert table["prompt"].to_pylist()[:2] == ["a" * 60 + " … " + "c" * 100, "short"]
    assert table["response"].to_pylist() == ["x" * 10, "y" * 160, "z" * 60 + " … " + "z" * 100]
    assert table["source"].null_count == table["x"].null_count == table["copies"].null_count == 3


def test_the_pool_is_written_once_and_every_selection_is_added(tmp_path: Path) -> None:
    make_run(tmp_path, rounds=(1,))
    before = (tmp_path / POOL).stat().st_mtime_ns
    rows = fake_rows(60)
    pool = fake_pool(rows)
    state = run_record.State(4, 4, 2, pool, fake_coreset(pool, 5, 4))
    run_record.record(tmp_path, state, rows, decode, embedding=EMBEDDING, others=9, seed=0)
    assert (tmp_path / POOL).stat().st_mtime_ns == before
    assert RunFiles.of(tmp_path).rounds == [1, 4]
    table = pq.read_table(tmp_path / POOL)
    assert table["id"].to_pylist() == rows.ids
    assert table["tokens"].to_pylist() == rows.length.tolist()
    copies = table["copies"].to_pylist()
    assert copies[10] == copies[9] == 9
    assert copies[4] == 4


# --------------------------------------------------------------------------------------------- explain


def test_every_refresh_says_what_the_record_says(run: RunFiles) -> None:
    for row in (0, 3, 7, 10, 11):
        found = explain(run, f"row-{row}")
        lines = recorded_lines(run.path, f"row-{row}")
        for refresh, line in zip(found.refreshes, lines, strict=True):
            assert (refresh.round, refresh.chosen, refresh.rank, refresh.gain) == (
                line["round"],
                line["chosen"],
                line["rank"],
                line["gain"],
            )
            assert refresh.step == 10 * line["round"]
            components = {name: line[name] for name in line if name not in audit.FIXED.names}
            known = {name: value for name, value in components.items() if value is not None}
            assert {name: part.value for name, part in refresh.components.items()} == known
            assert [neighbor.id for neighbor in refresh.neighbors] == [f"row-{i}" for i in line["neighbors"]]
            for neighbor in refresh.neighbors:
                assert neighbor.chosen == (neighbor.id in run.chosen(refresh.round))


def test_a_component_is_placed_among_all_rows(run: RunFiles) -> None:
    values = run.selection(1)["importance"].to_numpy()
    found = explain(run, "row-8").refreshes[0].components["importance"]
    assert found.above == pytest.approx((values < values[8]).mean())


def test_a_score_that_is_not_known_is_said_to_be_so_and_is_null_in_json(tmp_path: Path) -> None:
    """Of a row measured when noise detection was off; it has no part in the others' shares either."""
    folder = make_run(tmp_path, rounds=(1,))
    rows = fake_rows(60)
    pool = fake_pool(rows)
    coreset = fake_coreset(pool, 5, 4)
    score = np.arange(60, dtype=np.float32)
    score[:20] = np.nan
    state = run_record.State(4, 4, 2, pool, replace(coreset, reasons={"noise": score}))
    run_record.record(folder, state, rows, decode, embedding=EMBEDDING, others=9, seed=0)
    done = CliRunner().invoke(app, ["explain", str(folder), "row-7"])
    assert re.search(r"^  noise +unknown$", done.stdout.split("refresh 4")[1], re.MULTILINE)
    assert "nan" not in done.stdout.split("refresh 4")[1]
    told = json.loads(
        CliRunner().invoke(app, ["explain", str(folder), "row-7", "--json"]).stdout,
        parse_constant=pytest.fail,
    )
    found = told["refreshes"][-1]["components"]["noise"]
    assert (found["value"], found["above"]) == (None, None)
    assert explain(RunFiles.of(folder), "row-30").refreshes[-1].components["noise"].above == 0.25


def test_the_verdict_says_why(run: RunFiles) -> None:
    text = "\n".join(lines(explain(run, "row-3")))
    assert text.count("may not be chosen: a signal was not finite") == 3
    first = explain(run, run.chosen(1)[0]).refreshes[0]
    assert first.verdict.startswith("chosen, number 1 of 15, worth 0.")
    assert first.representative is None
    chosen = [set(run.chosen(number)) for number in run.rounds]
    for name in run.ids:
        for refresh, coreset in zip(explain(run, name).refreshes, chosen, strict=True):
            taken = int(name[4:]) % 7 == 0 and name not in coreset and name != "row-3"
            assert refresh.verdict.startswith("filtered out by noise (score ") == taken
            assert ("flagged as noisy" in refresh.verdict) == taken
            told = "is the nearest chosen row" in refresh.verdict
            assert name == "row-3" or told == (refresh.representative is not None)


def test_measured_or_propagated(run: RunFiles) -> None:
    said = [refresh.measured for refresh in explain(run, "row-0").refreshes]
    assert said[0] == "measured at this refresh"
    assert said[1].startswith("last measured at refresh 1; its values are propagated")
    assert explain(run, "row-2").refreshes[0].measured == "never measured"


def test_neighbours_are_shown_with_their_text_and_again_only_when_they_change(run: RunFiles) -> None:
    text = "\n".join(lines(explain(run, "row-12")))
    neighbor = explain(run, "row-12").refreshes[0].neighbors[0]
    assert f"chosen     {neighbor.id}: " in text or f"not chosen {neighbor.id}: " in text
    assert "these things:" in neighbor.text
    assert text.count("neighbours, the nearest first") == 1
    assert text.count("neighbours as before") == 2


def test_near_copies_are_named(run: RunFiles) -> None:
    assert explain(run, "row-10").copies == ["row-9"]
    assert explain(run, "row-4").copies == []


def test_a_row_that_a_large_pool_left_out_is_said_to_be_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "WHOLE_POOL", 10)
    run = RunFiles.of(make_run(tmp_path, others=5))
    recorded = set(run.selection(1)["id"].to_pylist())
    left_out = next(name for name in run.ids if name not in recorded)
    refresh = explain(run, left_out).refreshes[0]
    assert not refresh.recorded
    assert not refresh.chosen
    assert "not among the rows of a large pool that are recorded" in refresh.verdict
    assert refresh.measured == "not recorded"


def test_a_method_that_measures_nothing(tmp_path: Path) -> None:
    run = RunFiles.of(make_run(tmp_path, graph=False, rows=fake_rows(30, sources=False)))
    found = explain(run, "row-5")
    assert found.source is None
    assert all(not refresh.neighbors and not refresh.components for refresh in found.refreshes)
    assert "\n".join(lines(found))


# ------------------------------------------------------------------------------------------- the command


def test_the_command_prints_text_or_json(run: RunFiles) -> None:
    done = CliRunner().invoke(app, ["explain", str(run.path), "row-4"])
    assert done.exit_code == 0, done.output
    assert "refresh 3, step 30: " in done.stdout
    told = json.loads(CliRunner().invoke(app, ["explain", str(run.path), "row-4", "--json"]).stdout)
    assert told == explain(run, "row-4").to_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain", "RUN", "row-99"], "no row 'row-99' in the pool of"),
        (
            ["explain", "nowhere", "row-1"],
            "nowhere holds no _coretune/selection.parquet: give",
        ),
        (["diff", "RUN", "--rounds", "1", "4"], "has no refresh 4; it has 1, 3, 5"),
    ],
)
def test_mistakes_are_one_line(run: RunFiles, arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(app, [str(run.path) if word == "RUN" else word for word in arguments])
    assert done.exit_code == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_excerpt_is_one_line_of_the_length_asked_for() -> None:
    assert excerpt(["a\n b\tc", None], 0, 10) == "a b c"
    assert excerpt(["a\n b\tc", None], 1, 10) == ""
    assert excerpt(["x" * 30], 0, 10) == "x" * 9 + "…"


@pytest.mark.parametrize(
    ("name", "command"),
    [
        (SELECTION, ["explain", "RUN", "row-1"]),
        (POOL, ["diff", "RUN"]),
        (LEDGER, ["report", "RUN"]),
        (CONFIG, ["explain", "RUN", "row-1"]),
    ],
)
def test_a_file_that_was_cut_is_named_in_one_line(tmp_path: Path, name: str, command: list[str]) -> None:
    path = make_run(tmp_path) / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] + b"{[")
    done = CliRunner().invoke(app, [str(tmp_path) if word == "RUN" else word for word in command])
    assert done.exit_code == 1
    assert f"coretune: {path} cannot be read, it is damaged: " in done.stderr
    assert done.stderr.count("\n") == 1

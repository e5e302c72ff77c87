"""Loops outside the model tell how far they are: to a listener, a bar, plain lines, or nobody."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest

from coretune import progress as room
from coretune.policies.update import update
from coretune.progress import Lines, loops_shown, progress
from coretune.progress_reports import Reporter, reporter, reporting_to
from coretune.rounds.refresh_settings import AnchorRefresh
from coretune.select import dense
from coretune.select.facility_location import FacilityLocation
from coretune.select.greedy import lazy_greedy
from coretune.select.gtp import Gtp
from coretune.select.kcenter import KCenter
from coretune.select.pairs import PAIR_BYTES
from coretune.types import Budget, Pool


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@contextmanager
def clock(monkeypatch: pytest.MonkeyPatch, seconds: list[float]) -> Iterator[None]:
    """time.monotonic goes through these."""
    times = iter(seconds)
    monkeypatch.setattr(room.time, "monotonic", lambda: next(times))
    yield
    assert next(times, None) is None


def test_nobody_listens_unless_asked() -> None:
    assert reporter("graph") is None
    heard: list[tuple[str, int, int]] = []
    with reporting_to(lambda *said: heard.append(said)):
        tell = reporter("graph")
        assert tell is not None
        tell(3, 10)
    assert heard == [("graph", 3, 10)]
    assert reporter("graph") is None


def test_the_listener_goes_also_when_the_block_fails() -> None:
    with pytest.raises(ValueError, match="broken"), loops_shown():
        raise ValueError("broken")
    assert reporter("graph") is None


def test_plain_lines_have_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with clock(monkeypatch, [0.0, 4.0, 10.0, 11.0, 20.0]), loops_shown():
        tell = reporter("graph")
        assert tell is not None
        for done in (100, 1000, 1100, 4000):  # too early, said, too soon after it, said
            tell(done, 6000)
    assert capsys.readouterr().err.splitlines() == [
        "graph: 1,000 of 6,000 steps, 100 a second, 50 s left",
        "graph: 4,000 of 6,000 steps, 200 a second, 10 s left",
    ]


def test_another_loop_and_the_same_one_again_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, int]] = []
    updates: list[int] = []

    class Spy(Lines):
        def __init__(self, total: int, desc: str, unit: str) -> None:
            made.append((desc, total))

        def update(self, n: int = 1) -> None:
            updates.append(n)

    monkeypatch.setattr(room, "progress", lambda total, desc, unit, **_: Spy(total, desc, unit))
    with loops_shown():
        graph, choosing = reporter("graph"), reporter("choosing")
        assert graph is not None
        assert choosing is not None
        graph(4, 10)
        graph(10, 10)
        choosing(5, 8)
        choosing(2, 8)  # the second run of a token budget
    assert made == [("graph", 10), ("choosing", 8), ("choosing", 8)]
    assert updates == [4, 6, 5, 2]


def test_a_loop_that_was_interrupted_goes_on_at_its_own_speed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """50 in ten seconds, then 30 in ten: not the 80 in ten that one bar after the other might tell."""
    with clock(monkeypatch, [0.0, 10.0, 20.0, 60.0, 100.0, 110.0]), loops_shown():
        choosing, passes = reporter("choosing"), reporter("all pairs")
        assert choosing is not None
        assert passes is not None
        choosing(50, 200)
        passes(4, 10)
        choosing(80, 200)
    assert capsys.readouterr().err.splitlines() == [
        "choosing: 50 of 200 steps, 5 a second, 30 s left",
        "all pairs: 4 of 10 steps, 10.0 s each, 60 s left",
        "choosing: 80 of 200 steps, 3 a second, 40 s left",
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_silence_is_whole(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    heard = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", heard)
    with loops_shown(False), progress(10, "measuring", shown=False) as bar:
        bar.update(5)
        assert reporter("graph") is None
    assert heard.getvalue() == ""


def test_on_a_terminal_a_loop_that_is_soon_over_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Terminal()
    monkeypatch.setattr(sys, "stderr", heard)
    with loops_shown():
        tell = reporter("graph")
        assert tell is not None
        tell(1, 2)
        tell(2, 2)
    assert "graph" not in heard.getvalue()
    monkeypatch.setattr(room, "SOON", 0.0)
    with loops_shown():
        tell = reporter("graph")
        assert tell is not None
        tell(1, 2)
    assert "graph:   0%" in heard.getvalue()


def test_a_loop_reports_now_and_then_and_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[int] = []
    with clock(monkeypatch, [0.0, 0.1, 0.3, 0.4, 0.5]):
        tell = Reporter(lambda done, total: heard.append(done), 10)
        for more in (2, 3, 1, 4):
            tell(more)
    assert heard == [5, 10]


def test_graph_and_choosing_tell_how_far_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((60, 4)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    monkeypatch.setattr(Reporter, "EVERY", -1.0)
    heard: list[tuple[str, int, int]] = []
    with reporting_to(lambda *said: heard.append(said)):
        graph = update(
            AnchorRefresh(k=4),
            Pool({}, np.ones(60, np.int64), np.full(60, -1), np.ones(60, bool)),
            np.arange(60),
            {"prompt_embedding": rows, "loss": rows[:, 0] ** 2},
            0,
        )
        FacilityLocation().select(graph, Budget(7, "rows"), rng)
    choosing = [done for what, done, total in heard if (what, total) == ("choosing", 7)]
    assert choosing == [1, 2, 3, 4, 5, 6, 7]
    built = [(done, total) for what, done, total in heard if what == "graph"]
    assert built
    assert built[-1][0] == built[-1][1]


def test_passes_over_all_pairs_tell_before_there_is_a_pick(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    pool = Pool({"prompt_embedding": rows}, np.ones(60, np.int64), np.zeros(60), np.ones(60, bool))
    monkeypatch.setattr(Reporter, "EVERY", -1.0)
    monkeypatch.setattr(dense, "TOGETHER", 16)
    heard: list[tuple[str, int, int]] = []
    with reporting_to(lambda *said: heard.append(said)):
        method = FacilityLocation(similarity="dense", embedding="prompt_embedding")
        method.choose(pool, Budget(7, "rows"), greedy=partial(lazy_greedy, memory=600 * PAIR_BYTES))
    assert heard[:4] == [("all pairs", done, 4) for done in (1, 2, 3, 4)]
    assert ("pairs that are left", 60, 60) in heard
    assert heard[-1] == ("choosing", 7, 7)


def test_farthest_first_and_pursuit_tell_how_far_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pursuit may end before its last pass."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((60, 4)).astype(np.float32)
    pool = Pool(
        {"prompt_embedding": rows, "trajectory": rows}, np.ones(60, np.int64), np.zeros(60), np.ones(60, bool)
    )
    monkeypatch.setattr(Reporter, "EVERY", -1.0)
    for method, total in ((KCenter(embedding="prompt_embedding"), 7), (Gtp(), 20)):
        heard: list[tuple[str, int, int]] = []
        with reporting_to(lambda *said, heard=heard: heard.append(said)):
            method.select(pool, Budget(7, "rows"), rng)
        done = [done for what, done, of in heard if (what, of) == ("choosing", total)]
        assert done == list(range(1, len(done) + 1))
        assert len(done) == 7 if total == 7 else 0 < len(done) <= 20

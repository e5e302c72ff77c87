"""What a run says of a selection: every number, and nothing that is none."""

from __future__ import annotations

import numpy as np

from coretune.ledger import Round
from coretune.recording.selection_log import figures, is_selection, line
from coretune.rounds.dynamic import empty_pool
from coretune.rounds.state import State
from coretune.types import Coreset


def test_numbers_a_method_says_of_its_selection_are_logged_and_its_texts_and_curves_are_not() -> None:
    pool = empty_pool(np.array([5, 7, 11]))
    state = State(2, 2, 1, pool, Coreset(np.array([2, 0]), np.ones(2), np.zeros(2)))
    said = {"alpha": 0.25, "curve": [[0.25, 1.0]], "lower_level": "held", "e_KN": 3}
    logs = figures(Round(2, 3, 2, 0.5, None, {"spearman": None}, said), state)
    assert logs["coreset/alpha"] == 0.25
    assert logs["coreset/e_KN"] == 3.0
    assert logs["coreset/tokens"] == 16.0
    assert not {"coreset/curve", "coreset/lower_level", "coreset/overlap"} & set(logs)
    assert not any("spearman" in name for name in logs)
    assert is_selection(logs)
    assert "coreset of 2 of 3 rows, 16 tokens" in line(logs, 40)


def test_the_line_says_by_what_rows_were_contradicted() -> None:
    pool = empty_pool(np.array([5, 7, 11]))
    state = State(2, 2, 1, pool, Coreset(np.array([2, 0]), np.ones(2), np.zeros(2)))
    said = {"contradicted": 1, "matched_loss": 0.25, "mismatched_loss": 4.5}
    logs = figures(Round(2, 3, 2, 0.5, None, {}, said), state)
    assert "contradicted: 1 (a response costs 0.25 nats, after another row's prompt 4.50)" in line(logs, 40)
    blind = figures(Round(2, 3, 2, 0.5, None, {}, {"matched_loss": 2.5, "mismatched_loss": 2.25}), state)
    told = "; nobody can be suspected (a response costs 2.50 nats, after another row's prompt 2.25)"
    assert line(blind, 40).endswith(told)
    drawn = {"drawn": 1, "suspects": 0, "matched_loss": 1.5, "mismatched_loss": 2.5}
    nobody = line(figures(Round(2, 3, 2, 0.5, None, {}, drawn), state), 40)
    assert "; drawn at random, nobody asked after seems wrong (a response costs 1.50 nats" in nobody
    unasked = figures(Round(2, 3, 2, 0.5, None, {}, {}), state)
    assert "suspected" not in line(unasked, 40)

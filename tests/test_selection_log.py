"""What a run says of a selection: every number, and nothing that is none."""

from __future__ import annotations

import numpy as np

from coretune.ledger import Round
from coretune.recording.selection_log import figures, is_selection, line
from coretune.rounds.state import State
from coretune.rounds.transitions import empty_pool
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


def test_the_line_says_what_filters_took_out_and_whether_noise_detection_is_on() -> None:
    pool = empty_pool(np.array([5, 7, 11]))
    state = State(2, 2, 1, pool, Coreset(np.array([2, 0]), np.ones(2), np.zeros(2)))

    def said(**figures_: float) -> str:
        return line(figures(Round(2, 3, 2, 0.5, None, {}, figures_), state), 40)

    costs = {"noise_auc": 0.61, "noise_share": 0.3, "matched_loss": 2.5, "mismatched_loss": 3.25}
    on = said(filtered_duplicates=1200, filtered_noise=7, noise_on=1, **costs)
    assert on.endswith("; filtered out: duplicates 1,200, noise 7")
    losses = "median loss 2.50 nats, after another prompt 3.25)"
    off = f"noise detection is off (right and wrong responses are separated with an AUC of 0.61; {losses}"
    assert said(filtered_noise=0, noise_on=0, **costs).endswith(f"; filtered out: noise 0; {off}")
    assert said(drawn=1, noise_on=0, **costs).endswith(f"; drawn at random: {off}")
    many = said(noise_on=0, **{**costs, "noise_share": 0.67})
    assert "an AUC of 0.61; 67% of the rows seem wrong, more than 50%; median loss" in many
    del costs["noise_auc"]
    assert said(noise_on=0, **costs).endswith(f"; noise detection is off ({losses}")
    drawn = f"; drawn at random: none of the pairs' responses seems wrong ({losses}"
    assert said(drawn=1, seem_wrong=0, noise_on=1, **costs).endswith(drawn)
    assert "noise" not in said()

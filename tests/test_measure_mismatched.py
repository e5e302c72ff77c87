from __future__ import annotations

import numpy as np
import pytest

from coretune.measure.mismatched import Mismatched
from coretune.measure.settings import MeasureSettings
from coretune.measure.signals import measurer
from tests.measure_oracle import BOS, PAD, RaggedRows, oracle, random_rows, rows_of_turns, tiny_model


def of(rows: RaggedRows, count: int, seed: int = 0) -> Mismatched:
    return Mismatched.of(rows, np.array([len(ids) for ids in rows.token_rows]), count, seed)


def response(rows: RaggedRows, i: int) -> list[int]:
    return rows.token_rows[i][rows.prompt_length[i] :].tolist()


def test_each_pair_is_a_prompt_and_the_response_of_another_row():
    rows = random_rows(40, seed=3)
    pairs = of(rows, 30)
    longest = max(len(ids) for ids in rows.token_rows)
    assert len(pairs) == 30
    both = pairs.tokens(np.arange(30)), pairs.labels(np.arange(30))
    for ids, wanted, prompt, other in zip(*both, pairs.prompts, pairs.responses, strict=True):
        start = rows.prompt_length[prompt]
        whole = rows.token_rows[prompt][:start].tolist() + response(rows, other)
        assert ids.tolist() == whole[:longest]
        assert wanted.tolist() == ([-100] * start + response(rows, other))[:longest]
        assert response(rows, prompt) != response(rows, other)
    np.testing.assert_array_equal(pairs.prompt_length, rows.prompt_length[pairs.prompts])


def test_the_seed_decides_the_pairs():
    rows = random_rows(40, seed=3)
    same, other = of(rows, 30), of(rows, 30, seed=1)
    np.testing.assert_array_equal(of(rows, 30).prompts, same.prompts)
    assert (other.prompts != same.prompts).any()


@pytest.mark.parametrize(("answers", "found"), [([7, 8], True), ([7, 7], False)])
def test_no_pair_has_the_response_that_its_prompt_has(answers: list[int], found: bool):
    """In a pool of labels half of the pairs drawn are right; in a pool of one answer there is none."""
    rows = RaggedRows([[5, 6 + i, answers[i % 2]] for i in range(20)], [2] * 20)
    pairs = of(rows, 16)
    assert (len(pairs) == 16) is found
    assert len(pairs) in (0, 16)


@pytest.mark.parametrize("prompt", [[], [1], [1, 5, 6]])
def test_where_all_prompts_are_the_same_there_is_no_pair(prompt: list[int]):
    """As of texts, or of messages of which every token counts: a response would be held against itself."""
    rows = RaggedRows([[*prompt, 7 + i, 9] for i in range(20)], [len(prompt)] * 20)
    assert len(of(rows, 16)) == 0


@pytest.mark.parametrize("drawn", [random_rows, rows_of_turns])
def test_its_loss_is_that_of_the_joined_row(drawn):
    rows, model = drawn(12, seed=5), tiny_model("llama")
    pairs = of(rows, 6)
    everyone = np.arange(6)
    joined = RaggedRows(pairs.tokens(everyone), pairs.prompt_length, pairs.labels(everyone))
    measure = measurer(model, pairs, ["loss"], MeasureSettings(), pad_token_id=PAD, bos_token_id=BOS)
    expected = [float(row["loss"]) for row in oracle(model, joined, 2)]
    np.testing.assert_allclose(measure(np.arange(6))["loss"], expected, rtol=1e-4)

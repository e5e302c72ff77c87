"""Packing loses no row, keeps to its budget and pads little; a batch holds every token in its place."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from coretune.measure.batches import PART, collate, pack
from coretune.storing.store import BLOCK


@given(lengths=st.lists(st.integers(0, 60), max_size=80), batch_tokens=st.integers(1, 200))
@settings(deadline=None, max_examples=100)
def test_every_row_is_packed_once_within_the_budget(lengths, batch_tokens):
    lengths = np.array(lengths, dtype=np.int64)
    batches = pack(lengths, batch_tokens)
    assert sorted(np.concatenate([*batches, np.zeros(0, int)]).tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= batch_tokens
    flat = [length for batch in batches for length in lengths[batch]]
    assert flat == sorted(flat, reverse=True)


def test_like_lengths_meet_so_padding_is_small():
    lengths = np.random.default_rng(0).integers(20, 400, 2000)
    padded = sum(len(batch) * lengths[batch].max() for batch in pack(lengths, 4096))
    assert padded < 1.03 * lengths.sum()


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=9), batch_tokens=st.integers(60, 200))
@settings(deadline=None, max_examples=60)
def test_no_other_cut_of_the_sorted_rows_costs_less(lengths, batch_tokens):
    """Tokens with padding, and a part of the budget for each batch."""
    ordered = sorted(lengths, reverse=True)

    def cost(batches):
        return sum(len(batch) * batch[0] + PART * batch_tokens for batch in batches)

    least = float("inf")
    for cuts in range(2 ** (len(ordered) - 1)):
        ends = [i + 1 for i in range(len(ordered) - 1) if cuts >> i & 1]
        batches = [ordered[a:b] for a, b in zip([0, *ends], [*ends, len(ordered)], strict=True)]
        if all(len(batch) * batch[0] <= batch_tokens for batch in batches):
            least = min(least, cost(batches))
    lengths = np.array(lengths)
    assert cost([lengths[batch] for batch in pack(lengths, batch_tokens)]) <= least + 1e-9


def test_a_block_of_short_rows_is_padded_little_too():
    """Lengths as short instructions have them under a chat template: median 71, 5 % of them above 122."""
    lengths = np.random.default_rng(0).lognormal(np.log(71), 0.33, BLOCK).astype(np.int64)
    padded = sum(len(batch) * lengths[batch].max() for batch in pack(lengths, 4096))
    assert 1 - lengths.sum() / padded < 0.05


@given(
    rows=st.lists(st.lists(st.integers(1, 9), max_size=9), min_size=1, max_size=6), seed=st.integers(0, 99)
)
@settings(deadline=None, max_examples=60)
def test_a_batch_holds_each_rows_tokens_and_marks_its_response(rows, seed):
    rng = np.random.default_rng(seed)
    labels = [np.where(rng.random(len(row)) < 0.5, row, -100) for row in rows]
    where = rng.permutation(len(rows))
    batch = collate([np.array(row, dtype=np.int32) for row in rows], labels, where, pad_token_id=77)
    mask = batch.response_mask()
    for r, i in enumerate(where):
        length = len(rows[i])
        assert batch.input_ids[r, :length].tolist() == rows[i]
        assert (batch.input_ids[r, length:] == 77).all()
        counted = [t for t in range(1, length) if labels[i][t] != -100]
        assert mask[r].nonzero()[:, 0].tolist() == counted
        first = [*counted, length][0]
        before = list(range(length if first == 1 else first))  # of a row without a prompt all of it
        assert batch.prompt_mask()[r].nonzero()[:, 0].tolist() == before

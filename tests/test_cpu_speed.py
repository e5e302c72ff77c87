"""What speeds training up on a CPU changes neither loss nor gradient, beside the slow stock head."""

from __future__ import annotations

import pytest
import torch
from trl.trainer.utils import _ChunkedLogProbFunction

from coretune.playground.cpu_speed import IGNORED, LabelledPositions, by_length


def test_the_head_gives_trls_values_and_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 8, generator=generator, requires_grad=True)
    weight = torch.randn(11, 8, generator=generator, requires_grad=True)
    labels = torch.randint(11, (7,), generator=generator)
    fields = ("log_probs", "entropy", "is_top1")
    found = []
    for head in (_ChunkedLogProbFunction, LabelledPositions):
        outputs = head.apply(hidden, weight, None, labels, 1.0, 4, None, 1.0, fields)
        gradients = torch.autograd.grad(outputs[0].sum(), (hidden, weight))
        found.append((outputs[0], outputs[1], outputs[4].bool(), *gradients))
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4)
    log_probs = LabelledPositions.apply(hidden, weight, None, torch.tensor([0, 1, 2]), 1.0, 4, None, 1.0, ())[
        0
    ]
    assert log_probs is not None
    log_probs.sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_a_soft_cap_is_refused() -> None:
    with pytest.raises(ValueError, match="soft caps"):
        LabelledPositions.apply(
            torch.ones(1, 2), torch.ones(3, 2), None, torch.tensor([0]), 1.0, 4, 30.0, 1.0, ()
        )


def batch(lengths: list[int], first: int) -> dict[str, torch.Tensor]:
    longest = max(lengths)
    ids, mask = torch.zeros(len(lengths), longest, dtype=torch.long), torch.zeros(len(lengths), longest)
    labels = torch.full_like(ids, IGNORED)
    for row, length in enumerate(lengths):
        ids[row, :length] = labels[row, :length] = first + row
        mask[row, :length] = 1
    return {
        "input_ids": ids,
        "attention_mask": mask.long(),
        "labels": labels,
        "example_id": first + torch.arange(len(lengths)),
    }


def test_rows_are_the_same_in_batches_of_like_length() -> None:
    before = [batch([5, 1, 4], 10), batch([2, 6], 20)]
    after = by_length(before)
    assert [len(b["input_ids"]) for b in after] == [3, 2]
    assert [b["input_ids"].shape[1] for b in after] == [4, 6]  # no padding beyond the longest row
    assert after[0]["example_id"].tolist() == [11, 20, 12]
    assert after[1]["example_id"].tolist() == [10, 21]
    for found in after:
        for ids, mask, labels, name in zip(*(found[key] for key in found), strict=True):
            real = mask.bool()
            assert (ids[real] == name).all()
            assert (labels[real] == name).all()
            assert (labels[~real] == IGNORED).all()

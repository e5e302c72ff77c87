"""Ragged rows into right-padded batches of a bounded number of tokens, and back to the rows' order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from coretune.types import IGNORED, Array, Rows

PART = 1 / 32  # of a batch's tokens: what one more batch costs beside its tokens [choice: casts and launches]


class TokenRows(Protocol):
    """Tokenised examples, frozen: what a measurement needs of a corpus and nothing more.

    prompt_length  (n,) int   tokens of each row before the first that the loss counts; all where none counts
    """

    @property
    def prompt_length(self) -> Array: ...

    def tokens(self, rows: Rows) -> Sequence[Array]:
        """One int array of token ids for each of `rows`, in that order; lengths differ."""
        ...

    def labels(self, rows: Rows) -> Sequence[Array]:
        """One int array of targets for each of `rows`, as long as its tokens; IGNORED where the loss does not
        count. A response may have holes: of several turns those of the user do not count."""
        ...


@dataclass(frozen=True)
class Batch:
    """Rows of like length, padded on the right.

    where      (B,) int64            position of each row in the request, to write results back
    input_ids  (B, T) int64          padded with the pad token
    labels     (B, T) int64          targets; IGNORED where the loss does not count, at the first token, which
                                     nothing predicts, and over padding
    length     (B,) int64            tokens that are not padding

    On the right, no attention mask is needed: a causal model lets no real token see what follows it.
    """

    where: Array
    input_ids: torch.Tensor
    labels: torch.Tensor
    length: torch.Tensor

    @property
    def size(self) -> int:
        return int(self.input_ids.shape[0])

    def to(self, device: torch.device) -> Batch:
        tensors = (tensor.to(device) for tensor in (self.input_ids, self.labels, self.length))
        return Batch(self.where, *tensors)

    def response_mask(self) -> torch.Tensor:
        """(B, T) bool, True where the loss counts a token."""
        return self.labels != IGNORED

    def prompt_mask(self) -> torch.Tensor:
        """(B, T) bool, True where a token stands before the first that counts.

        All tokens of a row that counts from its first or second token on [choice]: it has no prompt, and the
        first token, mostly BOS, would say the same of every such row.
        """
        position = torch.arange(self.input_ids.shape[1], device=self.input_ids.device)
        before = self.response_mask().cumsum(1) == 0
        none = ~before[:, 1:2].any(1, keepdim=True)
        return (before | none) & (position < self.length[:, None])


def pack(lengths: Array, batch_tokens: int) -> list[Array]:
    """Positions of `lengths` (m,) in batches whose padded size stays within `batch_tokens`.

    Sorted by length, longest first, so that memory peaks in the first batch, where an out-of-memory error
    costs least; cut where padding and PART of `batch_tokens` for each batch together are least, by dynamic
    programming. A row longer than `batch_tokens` is a batch of its own.
    """
    order = np.argsort(-lengths, kind="stable")
    longest = np.maximum(lengths[order], 1)
    n, each = len(order), PART * batch_tokens
    least = np.full(n + 1, np.inf)  # of batches that hold the first i rows
    least[0] = 0.0
    begins = np.zeros(n + 1, dtype=np.int64)  # of the last of these batches
    for begin in range(n):
        most = min(n - begin, max(1, int(batch_tokens // longest[begin])))
        ends = np.arange(begin + 1, begin + most + 1)
        tokens = least[begin] + each + longest[begin] * np.arange(1, most + 1)
        better = ends[tokens < least[ends]]
        least[better] = tokens[better - begin - 1]
        begins[better] = begin
    batches: list[Array] = []
    end = n
    while end:
        batches.append(order[begins[end] : end])
        end = int(begins[end])
    return batches[::-1]


def collate(tokens: Sequence[Array], labels: Sequence[Array], where: Array, pad_token_id: int) -> Batch:
    """The rows `where` of `tokens` as one padded batch; `labels` are aligned with `tokens`."""
    length = np.array([len(tokens[i]) for i in where], dtype=np.int64)
    input_ids = np.full((len(where), max(1, int(length.max()))), pad_token_id, dtype=np.int64)
    targets = np.full_like(input_ids, IGNORED)
    for row, i in enumerate(where):
        input_ids[row, : length[row]] = tokens[i]
        targets[row, 1 : length[row]] = labels[i][1:]
    return Batch(where, torch.from_numpy(input_ids), torch.from_numpy(targets), torch.from_numpy(length))


def filler(pad_token_id: int) -> Batch:
    """A batch that describes no row: one sequence to pass through a model that other processes wait for."""
    ids = torch.full((1, 2), pad_token_id)
    return Batch(np.zeros(0, np.int64), ids, torch.tensor([[IGNORED, pad_token_id]]), torch.tensor([2]))

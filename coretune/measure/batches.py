"""Ragged rows into right-padded batches of a bounded number of tokens, and back to the rows' order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from coretune.types import Array, Rows


class TokenRows(Protocol):
    """Tokenised examples, frozen: what a measurement needs of a corpus and nothing more.

    prompt_length  (n,) int   leading tokens of each row that are prompt; everything after is response
    """

    @property
    def prompt_length(self) -> Array: ...

    def tokens(self, rows: Rows) -> Sequence[Array]:
        """One int array of token ids for each of `rows`, in that order; lengths differ."""
        ...


@dataclass(frozen=True)
class Batch:
    """Rows of like length, padded on the right.

    where      (B,) int64            position of each row in the request, to write results back
    input_ids  (B, T) int64          padded with the pad token
    start      (B,) int64            first response token; at least 1, for the first token is never a target
    length     (B,) int64            tokens that are not padding

    On the right, no attention mask is needed: a causal model lets no real token see what follows it.
    """

    where: Array
    input_ids: torch.Tensor
    start: torch.Tensor
    length: torch.Tensor

    @property
    def size(self) -> int:
        return int(self.input_ids.shape[0])

    def to(self, device: torch.device) -> Batch:
        return Batch(self.where, self.input_ids.to(device), self.start.to(device), self.length.to(device))

    def response_mask(self) -> torch.Tensor:
        """(B, T) bool, True where a token belongs to the response."""
        position = torch.arange(self.input_ids.shape[1], device=self.input_ids.device)
        return (position >= self.start[:, None]) & (position < self.length[:, None])

    def prompt_mask(self) -> torch.Tensor:
        """(B, T) bool, True where a token stands before the response."""
        return torch.arange(self.input_ids.shape[1], device=self.input_ids.device) < self.start[:, None]

    def keep(self, rows: torch.Tensor) -> Batch:
        """The batch with only the rows where `rows` (B,) bool is True."""
        return Batch(
            self.where[rows.cpu().numpy()], self.input_ids[rows], self.start[rows], self.length[rows]
        )


def pack(lengths: Array, batch_tokens: int) -> list[Array]:
    """Positions of `lengths` (m,) in batches whose padded size stays within `batch_tokens`.

    Sorted by length, longest first, so that padding is small and memory peaks in the first batch, where an
    out-of-memory error costs least. A row longer than `batch_tokens` is a batch of its own.
    """
    order = np.argsort(-lengths, kind="stable")
    batches: list[Array] = []
    begin = 0
    while begin < len(order):
        size = max(1, batch_tokens // max(1, int(lengths[order[begin]])))
        batches.append(order[begin : begin + size])
        begin += size
    return batches


def collate(tokens: Sequence[Array], prompt_length: Array, where: Array, pad_token_id: int) -> Batch:
    """The rows `where` of `tokens` as one padded batch; `prompt_length` is aligned with `tokens`."""
    length = np.array([len(tokens[i]) for i in where], dtype=np.int64)
    input_ids = np.full((len(where), max(1, int(length.max()))), pad_token_id, dtype=np.int64)
    for row, i in enumerate(where):
        input_ids[row, : length[row]] = tokens[i]
    start = np.maximum(prompt_length[where].astype(np.int64), 1)
    return Batch(where, torch.from_numpy(input_ids), torch.from_numpy(start), torch.from_numpy(length))


def filler(pad_token_id: int) -> Batch:
    """A batch that describes no row: one sequence to pass through a model that other processes wait for."""
    ids = torch.full((1, 2), pad_token_id)
    return Batch(np.zeros(0, np.int64), ids, torch.tensor([1]), torch.tensor([2]))

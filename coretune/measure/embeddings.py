"""Unit embeddings of rows from last hidden states, and rows that are not finite told apart."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from coretune.measure.batches import Batch


def response_embedding(hidden: Tensor, batch: Batch) -> Tensor:
    """(B, d) float32 unit: mean of the last hidden states over the response tokens."""
    weight = batch.response_mask().float()
    weight = weight / weight.sum(1, keepdim=True)
    # Not hidden * weight: a padded position that is not finite would spoil the row (0 · NaN).
    mean = torch.where(weight[..., None] > 0, hidden.float(), 0.0).mul_(weight[..., None]).sum(1)
    return functional.normalize(mean, dim=1)


def prompt_embedding(hidden: Tensor, batch: Batch) -> Tensor:
    """(B, d) float32 unit: the last hidden state at the last prompt token; NaN where the row ends before."""
    last = (batch.start - 1).clamp_max(hidden.shape[1] - 1)
    state = hidden[torch.arange(batch.size, device=hidden.device), last].float()
    return where_good(batch.start <= batch.length, functional.normalize(state, dim=1))


def finite_rows(signal: Tensor) -> Tensor:
    """(B,) bool: every entry of the row is finite."""
    return signal.isfinite().flatten(1).all(1) if signal.dim() > 1 else signal.isfinite()


def where_good(good: Tensor, signal: Tensor) -> Tensor:
    """`signal`, NaN in the rows that are not good."""
    return torch.where(good.view(-1, *[1] * (signal.dim() - 1)), signal, torch.nan)

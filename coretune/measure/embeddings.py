"""Unit embeddings of rows from last hidden states, and which rows are not finite."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from coretune.measure.batches import Batch


def response_embedding(hidden: Tensor, batch: Batch) -> Tensor:
    """(B, d) float32 unit: mean of the last hidden states over the tokens that the loss counts."""
    return _unit_mean(hidden, batch.response_mask())


def prompt_embedding(hidden: Tensor, batch: Batch) -> Tensor:
    """(B, d) float32 unit: mean of the last hidden states over the prompt; NaN for rows of no token.

    [choice] Not the state at the last of them: it says with which token the response begins rather than what
    is asked for, and the more so the longer the model is trained (docs/results.md has figures).
    """
    return _unit_mean(hidden, batch.prompt_mask())


def weighted_embedding(hidden: Tensor, batch: Batch) -> Tensor:
    """(B, d) float32 unit: mean of the last hidden states of prompt and response, of weights w_t ∝ t.

    [RDS+, Ivison et al. 2025, arXiv:2503.01807] Later states have read more of the row.
    """
    position = torch.arange(1, hidden.shape[1] + 1, device=hidden.device)
    return _unit_mean(hidden, position * (position <= batch.length[:, None]))


def _unit_mean(hidden: Tensor, weight: Tensor) -> Tensor:
    """(B, d) float32 unit: mean of hidden (B, T, d) with these weights (B, T), or over these positions."""
    weight = weight.float()
    weight = weight / weight.sum(1, keepdim=True)
    # Not hidden * weight: a padded position that is not finite would spoil the row (0 · NaN).
    mean = torch.where(weight[..., None] > 0, hidden.float(), 0.0).mul_(weight[..., None]).sum(1)
    return functional.normalize(mean, dim=1)


def finite_rows(signal: Tensor) -> Tensor:
    """(B,) bool: every entry of the row is finite."""
    return signal.isfinite().flatten(1).all(1) if signal.dim() > 1 else signal.isfinite()


def where_good(good: Tensor, signal: Tensor) -> Tensor:
    """`signal`, NaN in the rows that are not good."""
    return torch.where(good.view(-1, *[1] * (signal.dim() - 1)), signal, torch.nan)

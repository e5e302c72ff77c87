"""The output head in chunks: response losses, and their gradient at the last hidden states.

The logits of (tokens × vocabulary) never exist at once, and only positions that predict a response token go
through the head. No autograd graph spans the head: ∂ℓ/∂logits = p − y is written down, chunk by chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from coretune.measure.batches import Batch
from coretune.measure.hooks import GRADIENT_SCALE
from coretune.measure.logits import LogitRule
from coretune.measure.project import MatrixProjection

# Entries of a chunk of logits in float32: 64 MiB.
CHUNK_ENTRIES = 1 << 24


@dataclass(frozen=True)
class HeadResult:
    """What the head says of a batch.

    loss             (B,) float32            mean over each row's response tokens; NaN where there are none
    hidden_gradient  (B, T, d) | None        GRADIENT_SCALE · ∂ Σ_i loss_i / ∂ hidden, in the dtype of hidden
    feature          (B, dim) float32 | None projection of the head's own gradient (1/n) Σ_t (p_t − y_t) h_tᵀ,
                     with p_t − y_t times the slope of the logits where those are scaled or capped
    """

    loss: Tensor
    hidden_gradient: Tensor | None
    feature: Tensor | None


def response_loss(
    head: Any,
    hidden: Tensor,
    batch: Batch,
    rule: LogitRule,
    *,
    gradient: bool = False,
    projection: MatrixProjection | None = None,
) -> HeadResult:
    """Token-mean loss of each row's response, and what else is asked for.

    hidden (B, T, d), detached; `gradient` and `projection` ask for the other two fields of the result.
    """
    response = batch.response_mask()
    predicting = response.roll(-1, 1)  # position t predicts token t + 1; token 0 is never in a response
    row = predicting.nonzero()[:, 0]
    target = batch.labels[response]
    share = 1.0 / response.sum(1).float()  # (B,), inf for an empty response, which no token refers to
    state = hidden[predicting]  # (R, d)
    nats = torch.empty(len(row), device=hidden.device)
    state_gradient = torch.empty_like(state)
    left: list[Tensor] = []
    step = max(1, CHUNK_ENTRIES // head.out_features)
    for begin in range(0, len(row), step):
        part = slice(begin, begin + step)
        chunk = state[part].detach().requires_grad_(gradient)
        with torch.set_grad_enabled(gradient):
            logits = rule(head(chunk))
        weight = share[row[part]]
        slope = 1.0 if projection is None else rule.slope(logits.detach().float())
        nats[part], error = _softmax_error(logits.detach().float(), target[part], weight * GRADIENT_SCALE)
        if gradient:
            (state_gradient[part],) = torch.autograd.grad(logits, chunk, error.to(logits.dtype))
        if projection is not None:
            with torch.autocast(error.device.type, enabled=False):
                left.append(projection.cut_left(error * slope) / GRADIENT_SCALE)
    # Summed along a row's own places, not by atomic additions, so that a GPU gives the same loss every time.
    loss = torch.where(share.isfinite(), scatter(nats[:, None], predicting)[..., 0].sum(1) * share, torch.nan)
    return HeadResult(
        loss,
        scatter(state_gradient, predicting) if gradient else None,
        None if projection is None else _feature(left, state, predicting, projection),
    )


def _softmax_error(logits: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (C,) and weight · (p − y) (C, vocabulary) of float32 logits, which the latter overwrites."""
    error = logits.sub_(logits.amax(1, keepdim=True))
    at_target = error.gather(1, target[:, None])[:, 0]
    total = error.exp_().sum(1)
    error *= (weight / total)[:, None]
    error[torch.arange(len(error), device=error.device), target] -= weight
    return total.log() - at_target, error


def scatter(values: Tensor, where: Tensor) -> Tensor:
    """(R, d) values back to their places in (B, T, d), zero elsewhere."""
    whole = values.new_zeros(*where.shape, values.shape[1])
    whole[where] = values
    return whole


def _feature(left: list[Tensor], state: Tensor, predicting: Tensor, projection: MatrixProjection) -> Tensor:
    """Projected head gradients (B, dim) from chunks of P_o(p − y)/n (C, a') and all states (R, d)."""
    feature = torch.zeros(len(predicting), projection.sketch.dim, device=state.device)
    if left:
        with torch.autocast(state.device.type, enabled=False):
            projection.add_to(
                feature, scatter(torch.cat(left), predicting), scatter(state.float(), predicting)
            )
    return feature

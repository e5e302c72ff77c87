"""The output head in chunks: response losses, and their gradient at the last hidden states.

The logits of (tokens × vocabulary) never exist at once, and only positions that predict a response token go
through the head. No autograd graph spans the head: ∂ℓ/∂logits = p − y is written down, chunk by chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from coretune.measure.batches import Batch
from coretune.measure.project import MatrixProjection

# Entries of a chunk of logits in float32: 64 MiB.
CHUNK_ENTRIES = 1 << 24


@dataclass(frozen=True)
class HeadResult:
    """What the head says of a batch.

    loss             (B,) float32            mean over each row's response tokens; NaN where there are none
    hidden_gradient  (B, T, d) | None        ∂ Σ_i loss_i / ∂ hidden, in the dtype of the hidden states
    feature          (B, dim) float32 | None projection of the head's own gradient (1/n) Σ_t (p_t − y_t) h_tᵀ
    """

    loss: Tensor
    hidden_gradient: Tensor | None
    feature: Tensor | None


def response_loss(
    head: nn.Module,
    hidden: Tensor,
    batch: Batch,
    vocabulary: int,
    *,
    gradient: bool = False,
    projection: MatrixProjection | None = None,
) -> HeadResult:
    """Token-mean loss of each row's response, and what else is asked for; hidden is (B, T, d), detached."""
    response = batch.response_mask()
    predicting = response.roll(-1, 1)  # position t predicts token t + 1; token 0 is never in a response
    row = predicting.nonzero()[:, 0]
    target = batch.input_ids[response]
    state = hidden[predicting]  # (R, d)
    share = 1.0 / response.sum(1).float()  # (B,), inf for an empty response, which no token refers to
    loss = torch.zeros(batch.size, device=hidden.device)
    state_gradient = torch.empty_like(state) if gradient else None
    left: list[Tensor] | None = [] if projection is not None else None
    step = max(1, CHUNK_ENTRIES // vocabulary)
    for begin in range(0, len(row), step):
        part = slice(begin, begin + step)
        chunk = state[part].detach().requires_grad_(gradient)
        with torch.set_grad_enabled(gradient):
            logits = head(chunk)
        error = (
            logits.detach().float()
        )  # becomes p − y below, in place where the model is not in float32 already
        at_target = error.gather(1, target[part, None])[:, 0]
        normaliser = error.logsumexp(1)
        loss.index_add_(0, row[part], (normaliser - at_target) * share[row[part]])
        if state_gradient is None and left is None:
            continue
        error = (error - normaliser[:, None]).exp_()
        error[torch.arange(len(error), device=error.device), target[part]] -= 1.0
        error *= share[row[part], None]
        if state_gradient is not None:
            (state_gradient[part],) = torch.autograd.grad(logits, chunk, error.to(logits.dtype))
        if left is not None:
            assert projection is not None
            with torch.autocast(error.device.type, enabled=False):
                left.append(error if projection.left is None else error @ projection.left)
    loss[share.isinf()] = torch.nan
    hidden_gradient = None
    if state_gradient is not None:
        hidden_gradient = torch.zeros_like(hidden)
        hidden_gradient[predicting] = state_gradient
    feature = None
    if left is not None:
        feature = _feature(torch.cat(left), state, predicting, projection)
    return HeadResult(loss, hidden_gradient, feature)


def _feature(left: Tensor, state: Tensor, predicting: Tensor, projection: MatrixProjection | None) -> Tensor:
    """Projected head gradients (B, dim) from left (R, a') = P_o(p − y)/n and state (R, d)."""
    assert projection is not None
    padded_left = left.new_zeros(*predicting.shape, left.shape[1])
    padded_left[predicting] = left
    padded_state = left.new_zeros(*predicting.shape, state.shape[1])
    padded_state[predicting] = state.float()
    feature = left.new_zeros(len(predicting), projection.sketch.dim)
    with torch.autocast(left.device.type, enabled=False):
        projection.add_projected(feature, padded_left, padded_state)
    return feature

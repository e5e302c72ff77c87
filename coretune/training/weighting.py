"""The weighted loss: Σ_i w_i Σ_t ℓ_it / (number of response tokens); weights of one change nothing.
w_i is the row's own weight (column `weight`), with `weighted` times that in the coreset.

[choice] The weights' mean is 1 over the coreset, not over each batch, so that a row counts alike whatever it
is batched with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from coretune.rounds.state import State
from coretune.rounds.transitions import row_weights
from coretune.types import IGNORED, Array

CHUNK = 1024  # tokens whose logits are held in fp32 at once, beside what autograd keeps


def loss_weights(now: State, own: Array | None, weighted: bool) -> Array:
    """(n,) float64: what the loss of each row of the pool is multiplied by.

    own       (n,) weights that the rows came with; None: none
    weighted  the weights of the coreset count too
    """
    weights = row_weights(now) if weighted else np.ones(now.pool.n)
    return weights if own is None else weights * own


def weighing(model: Any, weights: Tensor) -> Callable[..., Any]:
    """`model` with the log-probabilities of each example's tokens multiplied by its weight.

    weights  (b,)  of the batch's examples; log_probs of TRL's fused head are (b, tokens), or (1, tokens) of
             joined examples, and 0 where not counted
    """

    def weighted(**inputs: Any) -> Any:
        outputs = model(**inputs)
        each = weights[:, None] if "attention_mask" in inputs else _joined(weights, inputs["position_ids"])
        return replace(outputs, log_probs=outputs.log_probs * each)

    return weighted


def _joined(weights: Tensor, positions: Tensor) -> Tensor:
    """(1, t - 1) weight of each token that is predicted in (1, t) joined examples; positions begin at 0."""
    example = (positions == 0).cumsum(dim=1) - 1  # padding behind the last one begins examples of its own
    return weights[example[:, 1:].clamp(max=len(weights) - 1)]


def weighted_loss(logits: Tensor, labels: Tensor, weights: Tensor, items: Tensor | int | None) -> Tensor:
    """The loss of a batch from its logits, in fp32 as the stock loss of transformers' causal models.

    logits   (b, t, vocabulary)
    labels   (b, t)  not shifted; IGNORED where the loss does not count
    weights  (b,)
    items    what the sum is divided by: tokens of the whole accumulated batch; None = those of this one

    ValueError when there is not one weight a row, as after a collator that joins rows.
    """
    if len(logits) != len(weights):
        raise ValueError(
            f"a batch of {len(weights)} examples has become {len(logits)} rows, and which weight is whose is "
            "lost: use a collator that keeps one row an example, or set weighted: false"
        )
    targets = labels[:, 1:]
    counted = (targets != IGNORED).nonzero()
    total = logits.new_zeros((), dtype=torch.float32)
    for row, token in (piece.unbind(1) for piece in counted.split(CHUNK)):
        loss = functional.cross_entropy(logits[row, token].float(), targets[row, token], reduction="none")
        total = total + (loss * weights[row]).sum()
    if not len(counted):
        total = total + 0 * logits.sum()  # a gradient of zero, which backward can still be asked for
    return total / torch.as_tensor(len(counted) if items is None else items).clamp(min=1)

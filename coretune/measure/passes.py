"""One batch through the model: forward to the last hidden states, backward to the chosen parameters.

The model is left as it was found: modes, gradients, what requires a gradient, and the random state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from coretune.measure.batches import Batch
from coretune.measure.forms import Form
from coretune.measure.head import HeadResult, response_loss
from coretune.measure.head_weight import tell_head
from coretune.measure.hooks import Chosen, Reader, listening
from coretune.measure.parameters import Choice
from coretune.measure.project import MatrixProjection


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode and frozen; afterwards, after an exception too, it is as it was."""
    training = [(module, module.training) for module in model.modules()]
    frozen = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    # A half-precision copy of a weight that an outer autocast has cached carries the weight's own graph.
    torch.clear_autocast_cache()
    try:
        model.eval()
        for parameter, _ in frozen:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, requires_grad in frozen:
            parameter.requires_grad_(requires_grad)
        for module, mode in training:
            module.training = mode
        torch.clear_autocast_cache()


def autocasting(device: torch.device, dtype: str | None) -> AbstractContextManager[Any]:
    """Autocast to the dtype of that name; None leaves the caller's context."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=getattr(torch, dtype))


def forward(model: Any, batch: Batch) -> Tensor:
    """Last hidden states (B, T, d), after the final norm."""
    hidden: Tensor = model.get_decoder()(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    return hidden


def forward_only(
    model: Any, batch: Batch, *, head: bool, projection: MatrixProjection | None
) -> tuple[Tensor, HeadResult | None]:
    """Last hidden states and, if asked for, what the head says of them; nothing is kept for a backward."""
    with torch.no_grad():
        hidden = forward(model, batch)
        if not head:
            return hidden, None
        return hidden, response_loss(model.get_output_embeddings(), hidden, batch, projection=projection)


def forward_backward(
    model: Any,
    batch: Batch,
    choice: Choice,
    readers: Sequence[Reader],
    *,
    projection: MatrixProjection | None = None,
) -> tuple[Tensor, HeadResult]:
    """As `forward_only`, and the readers are told the gradients of each row's token-mean loss.

    Losses are summed over rows, so that no row's gradient is scaled by the size of the batch.
    """
    tied: dict[str, Form] = {}
    hooked = [*choice.layers, *([choice.tied] if choice.tied is not None else [])]
    with (
        torch.no_grad(),  # until the first layer that counts
        listening(choice.layers, batch.size, readers) as heard,
        listening(hooked[len(choice.layers) :], batch.size, [tied.__setitem__]) as heard_tied,
    ):
        hidden = forward(model, batch)
        _refuse_silent(hooked, heard.forward | heard_tied.forward, "took no part in the forward pass")
        head = model.get_output_embeddings()
        result = response_loss(head, hidden.detach(), batch, gradient=True, projection=projection)
        if hidden.requires_grad:  # it does not where nothing but the head counts
            torch.autograd.backward(hidden, result.hidden_gradient)
        _refuse_silent(hooked, heard.backward | heard_tied.backward, "got no gradient in the backward pass")
    if choice.head is not None:
        tell_head(choice.head, hidden.detach(), batch, tied, readers)
    return hidden.detach(), result


def _refuse_silent(chosen: Sequence[Chosen], heard: set[str], what: str) -> None:
    """ValueError names a layer that counts but was not heard of: its gradient would be taken for zero."""
    silent = [item.name for item in chosen if item.name not in heard]
    if silent:
        raise ValueError(
            f"layer {silent[0]!r} {what}; where it is an inactive or merged adapter, activate or remove it"
        )


def check_head(model: Any, batch: Batch) -> None:
    """ValueError unless the model's logits are its head's: a cap or a scale behind it would be missed."""
    with torch.no_grad():
        expected = model(input_ids=batch.input_ids, use_cache=False).logits.float()
        found = model.get_output_embeddings()(forward(model, batch)).float()
    gap = float("inf")
    if expected.shape == found.shape:  # virtual tokens of prompt tuning make more of them
        gap = float((expected - found).abs().max() / expected.abs().max().clamp_min(1e-30))
    if gap > 1e-2:
        raise ValueError(
            f"{type(model).__name__} changes its logits behind the output head (by {gap:.2g} of their size), "
            "as soft caps and logit scales do; this is not supported"
        )

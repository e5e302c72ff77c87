"""One batch through the model: forward to the last hidden states, backward to the chosen parameters.

The model is left as it was found: modes, gradients, what requires a gradient, and the random state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from coretune.measure.batches import Batch
from coretune.measure.forms import Form
from coretune.measure.head import HeadResult, response_loss
from coretune.measure.head_weight import read_head
from coretune.measure.hooks import Chosen, Reader, capturing
from coretune.measure.logits import LogitRule
from coretune.measure.parameters import Choice, decoder_of
from coretune.measure.project import MatrixProjection
from coretune.measure.split import note_dtypes, take_apart

Used = TypeVar("Used")
LARGE = 100.0  # of a logit: caps in use are of 15 to 50


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode and frozen; afterwards, after an exception too, it is as it was."""
    take_apart(model)  # else weights that are whole from training on would be measured, and frozen, as such
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
        take_apart(model)  # else the next training step takes the frozen whole weights, and has no gradient
        torch.clear_autocast_cache()
    note_dtypes(model)  # not after an exception, which other processes may not have


def autocasting(device: torch.device, dtype: str | None) -> AbstractContextManager[Any]:
    """Autocast to the dtype of that name; None leaves the caller's context."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=getattr(torch, dtype))


def no_positions(hidden: Tensor) -> Tensor:
    """Of hidden states (rows, positions, width) none: for signals that need no position."""
    return hidden[:, :0]


def forward(
    model: Any,
    batch: Batch,
    use: Callable[[Tensor, Any], Used],
    given: Callable[[Tensor], Tensor] = no_positions,
) -> tuple[Tensor, Used]:
    """Last hidden states (B, T, d), after the final norm, and use(hidden states, the model's output).

    Through the model's own forward pass, not through its decoder alone, and `use` before that ends: where
    weights are sharded (FSDP), those outside the blocks (embeddings, final norm, head) are together only that
    long, and again when a gradient comes back to what the model returned.

    given  what the model's own call of its head is given of the hidden states: no positions, since what is
           needed of the head is `use`'s business
    """
    states: list[Tensor] = []
    used: list[Used] = []
    decoder = decoder_of(model)
    skip = model.get_output_embeddings().register_forward_pre_hook(lambda layer, inputs: (given(inputs[0]),))

    def decoded(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        states.append(output.last_hidden_state)

    def leave(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> Tensor:
        skip.remove()
        if not states:
            raise ValueError(
                f"{type(model).__name__} makes its logits without {type(decoder).__name__}, its decoder: "
                "this is not supported; take a method that measures nothing, as random"
            )
        used.append(use(states[0], output))
        return states[0]

    # First of the hooks: FSDP2 takes its weights apart again in one of its own, FSDP1 around the module.
    outermost = model.module if type(model).__name__ == "FullyShardedDataParallel" else model
    handles = [
        skip,
        decoder.register_forward_hook(decoded),
        outermost.register_forward_hook(leave, prepend=True),
    ]
    try:
        hidden: Tensor = model(input_ids=batch.input_ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return hidden, used[0]


def forward_only(
    model: Any, batch: Batch, *, head: bool, projection: MatrixProjection | None
) -> tuple[Tensor, HeadResult | None]:
    """Last hidden states and, if asked for, what the head says of them; nothing is kept for a backward."""
    output_head, rule = model.get_output_embeddings(), LogitRule.of(model)

    def use(hidden: Tensor, output: Any) -> HeadResult | None:
        return response_loss(output_head, hidden, batch, rule, projection=projection) if head else None

    with torch.no_grad():
        return forward(model, batch, use)


def forward_backward(
    model: Any,
    batch: Batch,
    choice: Choice,
    readers: Sequence[Reader],
    *,
    projection: MatrixProjection | None = None,
) -> tuple[Tensor, HeadResult]:
    """As `forward_only`, and the readers get the gradients of each row's token-mean loss.

    Losses are summed over rows, so that no row's gradient is scaled by the size of the batch.
    """
    tied: dict[str, Form] = {}
    hooked = choice.hooked
    head, rule = model.get_output_embeddings(), LogitRule.of(model)
    with (
        torch.no_grad(),  # until the first layer that counts
        capturing(choice.layers, batch.size, readers) as got,
        capturing(hooked[len(choice.layers) :], batch.size, [tied.__setitem__]) as got_tied,
    ):

        def use(hidden: Tensor, output: Any) -> HeadResult:
            refuse_silent(hooked, got.forward | got_tied.forward, "took no part in the forward pass")
            return response_loss(head, hidden.detach(), batch, rule, gradient=True, projection=projection)

        hidden, result = forward(model, batch, use)
        if hidden.requires_grad:  # it does not where nothing but the head counts
            torch.autograd.backward(hidden, result.hidden_gradient)
        refuse_silent(hooked, got.backward | got_tied.backward, "got no gradient in the backward pass")
    if choice.head is not None:
        read_head(choice.head, hidden.detach(), batch, tied, readers, rule)
    return hidden.detach(), result


def refuse_silent(chosen: Sequence[Chosen], got: set[str], what: str) -> None:
    """ValueError names a layer that counts but was not reached: its gradient would be taken for zero."""
    silent = [item.name for item in chosen if item.name not in got]
    if silent:
        raise ValueError(
            f"layer {silent[0]!r} {what}: an inactive or merged adapter has to be activated or removed, and "
            "one on fused experts or their router cannot be read: give LoRA the attention's layers"
        )


def check_head(model: Any, batch: Batch) -> None:
    """ValueError unless the model's logits are what `LogitRule` makes of its head's values.

    Also of logits of about LARGE, for a cap that is missed shows only there.
    """
    largest = _gap(model, batch, 1.0)
    _gap(model, batch, LARGE / max(largest, 1e-30))


def _gap(model: Any, batch: Batch, size: float) -> float:
    """The largest value of the head, of hidden states times `size`; ValueError as above."""
    head, rule = model.get_output_embeddings(), LogitRule.of(model)

    def both(hidden: Tensor, output: Any) -> tuple[Tensor, Tensor]:
        return output.logits.float(), head(hidden * size)

    with torch.no_grad():
        _, (expected, values) = forward(model, batch, both, lambda hidden: hidden * size)
    found, gap = rule(values.float()), float("inf")
    if expected.shape == found.shape:  # virtual tokens of prompt tuning make more of them
        gap = float((expected - found).abs().max() / expected.abs().max().clamp_min(1e-30))
    if gap > 1e-2:
        raise ValueError(
            f"{type(model).__name__} changes its logits behind the output head (by {gap:.2g} of their size) "
            f"otherwise than by {rule}, which is read from its config; this is not supported: take a method "
            "that measures nothing, as random"
        )
    return float(values.abs().max())

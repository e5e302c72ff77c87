"""Signals of the rows that training passes through anyway, taken while the step runs.

    training step   forward ─► hidden states, log-probabilities      ─┐
                    backward ─► (x, g) of each layer that counts     ─┴─► the rows' signals, kept until taken

No second forward, no second backward: what a measurement would ask of the model is read off the step. It is
the step that is described, not the model at rest: dropout is on, a row is seen at the weights it met (`step`
says when), and those have moved since. Without dropout a row's values are those of `signals.measurer` at
these weights, in the same precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from coretune.measure.batches import Batch
from coretune.measure.embeddings import finite_rows, prompt_embedding, response_embedding
from coretune.measure.forms import Form
from coretune.measure.head_weight import read_head
from coretune.measure.hooks import Chosen, Reader
from coretune.measure.logits import LogitRule
from coretune.measure.meter import SignalMeter
from coretune.measure.parameters import Choice, decoder_of
from coretune.measure.passes import refuse_silent
from coretune.measure.readers import Projected, SquareNorm
from coretune.measure.settings import SEEDED, MeasureSettings
from coretune.measure.step_signals import StepSignals
from coretune.types import IGNORED, Array, Rows

#: What a training step shows.
ONLINE_SIGNALS = ("loss", "response_embedding", "prompt_embedding", "gradient_norm", "gradient")


class OnlineReader:
    """Reads the signals `names` off training steps.

    model     as the trainer calls it inside its wrappers: a causal language model with TRL's fused head
              (TRL 1.16 or later), or a PEFT model around one
    settings  as for the measurement whose place this takes: the same parameters, the same projections, which
              are kept for as long as this is

    Gradient accumulation, autocast, loss scaling, loss weights and gradient checkpointing are undone or seen
    through: a row's gradient is that of its own token-mean loss. A row of weight 0 has none, and one with a
    signal that is not finite, or without response, is not kept: the next measurement sees to it.
    ValueError: a signal that a training step does not show; what `parameters.choose` refuses.
    """

    def __init__(self, model: Any, names: Sequence[str], settings: MeasureSettings) -> None:
        unknown = sorted(set(names) - set(ONLINE_SIGNALS))
        if unknown:
            raise ValueError(
                f"{unknown[0]} cannot be read off a training step, only {', '.join(ONLINE_SIGNALS)} can: "
                "set refresh.online_signals to false"
            )
        if settings.basis not in SEEDED:
            raise ValueError(
                f"basis is {settings.basis}, which is fitted to measured gradients: set "
                f"refresh.online_signals to false or basis to one of {', '.join(SEEDED)}"
            )
        if settings.preconditioner != "none":
            raise ValueError(
                f"preconditioner is {settings.preconditioner}, and a training step shows gradients as they "
                "are: set refresh.online_signals to false or preconditioner to none"
            )
        self.model, self.names, self.settings = model, frozenset(names), settings
        self.meter = SignalMeter(model, settings, self.names, pad_token_id=0)
        self._kept: dict[int, tuple[int, dict[str, Array]]] = {}

    @contextmanager
    def watching(self, rows: Tensor, labels: Tensor, attention: Tensor, step: int) -> Iterator[None]:
        """Around one forward and backward of the trainer, of one micro-batch; weights move outside of it.

        rows       (B,) int64    the examples' positions in the pool
        labels     (B, T) int64  -100 where the loss does not count
        attention  (B, T)        1 where a token is no padding, which is on the right
        step       optimiser steps made so far

        ValueError: padding on the left; a model that ran twice, hides the log-probabilities of tokens, or
        whose loss counts a row's tokens unlike; a layer that counts but got no gradient.
        """
        device, choice = self.meter.device, self.meter.choice
        seen = _Step(_batch(labels.to(device), attention.to(device)))
        readers = self._readers(len(rows), device)
        tied: dict[str, Form] = {}
        with _listening(self.model, choice, seen, list(readers.values()), tied):
            yield
        if seen.told is None:
            raise ValueError(
                "no gradient came to the log-probabilities in this training step: online signals need one"
            )
        refuse_silent(choice.hooked, seen.heard, "got no gradient in the training step")
        if choice.head is not None:
            rule = LogitRule.of(self.model)
            read_head(choice.head, seen.hidden, seen.batch, tied, list(readers.values()), rule)
        self._keep(rows, seen, readers, step)

    def take(self) -> StepSignals:
        """All rows kept so far, which are forgotten; without rows there are no signals either."""
        rows = np.array(sorted(self._kept), dtype=np.int64)
        kept = [self._kept[row] for row in rows.tolist()]
        names = sorted(self.names) if kept else []
        signals = {name: np.stack([signals[name] for _, signals in kept]) for name in names}
        self._kept = {}
        return StepSignals(rows, np.array([step for step, _ in kept], dtype=np.int64), signals)

    def put(self, seen: StepSignals) -> None:
        """Keep what was taken, as if it had just been seen."""
        for i, row in enumerate(seen.rows.tolist()):
            self._kept[row] = int(seen.step[i]), {name: value[i] for name, value in seen.signals.items()}

    def loss_of(self, rows: Rows, since: int) -> Array:
        """(m,) losses as these rows were last seen from that step on; NaN of those that were not."""
        kept = (self._kept.get(int(row), (-1, {})) for row in rows)
        return np.array(
            [s["loss"] if step >= since and "loss" in s else np.nan for step, s in kept], np.float64
        )

    # ---------------------------------------------------------------------------------------- one micro-batch

    def _readers(self, size: int, device: torch.device) -> dict[str, SquareNorm | Projected]:
        readers: dict[str, SquareNorm | Projected] = {}
        if "gradient_norm" in self.names:
            readers["gradient_norm"] = SquareNorm(size, device)
        if "gradient" in self.names:
            readers["gradient"] = Projected(
                size, self.settings.projection_dim, self.meter.projections, device
            )
        return readers

    def _keep(self, rows: Tensor, seen: _Step, readers: dict[str, SquareNorm | Projected], step: int) -> None:
        value = {name: reader.value for name, reader in readers.items()}
        if "gradient_norm" in value:
            value["gradient_norm"] = value["gradient_norm"].clamp_min(0.0).sqrt()
        if "loss" in self.names:
            value["loss"] = seen.loss
        if "response_embedding" in self.names:
            value["response_embedding"] = response_embedding(seen.hidden, seen.batch)
        if "prompt_embedding" in self.names:
            value["prompt_embedding"] = prompt_embedding(seen.hidden, seen.batch)
        good = seen.keepable()
        for signal in value.values():
            good = good & finite_rows(signal)
        arrays = {name: signal.float().cpu().numpy() for name, signal in value.items()}
        for i in good.nonzero()[:, 0].tolist():
            self._kept[int(rows[i])] = step, {name: array[i] for name, array in arrays.items()}


def _batch(labels: Tensor, attention: Tensor) -> Batch:
    """The micro-batch as a measurement has it; ValueError for padding on the left."""
    if not bool(attention[:, 0].all()):
        raise ValueError("a row is padded on the left; online signals need right padding: set padding_side")
    targets = functional.pad(labels[:, 1:], (1, 0), value=IGNORED)  # nothing predicts the first token
    return Batch(np.arange(len(labels)), labels, targets, attention.sum(1))


@dataclass
class _Step:
    """What hooks note of one forward and backward.

    batch    without the token ids of the prompts, which nothing here reads: input_ids are the labels
    hidden   (B, T, d)    last hidden states, detached
    loss     (B,) float32 token-mean loss
    told     (B,) float32 what brings a row's part of the step's gradient to that of its token-mean loss
    heard    names of the layers whose gradients the readers got
    """

    batch: Batch
    heard: set[str] = field(default_factory=set)
    told: Tensor | None = None

    def keepable(self) -> Tensor:
        """(B,) bool: the row has a response, and it counted in the step's loss."""
        assert self.told is not None
        return self.batch.response_mask().any(1) & self.told.isfinite()

    def note_hidden(self, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.hidden = output.last_hidden_state.detach()

    def note_output(self, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not isinstance(output, Mapping) or "log_probs" not in output:
            raise ValueError(
                f"{type(layer).__name__} gives no log-probabilities of tokens in training, so there are "
                "no online signals; they need TRL's SFTTrainer, 1.16 or later: set "
                "refresh.online_signals to false"
            )
        log_probs, mask = output["log_probs"], output["label_mask"]
        tokens = mask.sum(1).float()
        self.loss = -log_probs.detach().float().sum(1) / tokens

        def note_scale(gradient: Tensor) -> None:
            """The step's loss is Σ_i c_i Σ_t ℓ_it, so −c_i comes back to every token of row i, whatever
            weighted, averaged, accumulated or scaled it."""
            scale = -torch.where(mask, gradient.float(), 0.0).sum(1) / tokens
            if bool(
                torch.where(
                    mask, (gradient + scale[:, None]).abs() > 1e-3 * scale[:, None].abs(), False
                ).any()
            ):
                raise ValueError(
                    "the loss does not count a row's tokens alike, as dft does not, so the gradient of its "
                    "mean is not in it: set refresh.online_signals to false"
                )
            self.told = 1.0 / (scale * tokens)

        if self.told is not None:
            raise ValueError("the model ran twice in one training step; set refresh.online_signals to false")
        log_probs.register_hook(note_scale)


class _Tap(torch.autograd.Function):
    """A layer's output, passed on; on the way back `tell` gets the layer's input and what arrives.

    The input is saved as autograd saves its own: gradient checkpointing frees it and works it out again, in
    its first pass `tell` is not called, and a change in place is an error.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, x: Tensor, tell: Callable[[Tensor, Tensor], None]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.tell = tell
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        ctx.tell(x, gradients[0])
        return gradients[0], None, None


@contextmanager
def _listening(
    model: Any, choice: Choice, seen: _Step, readers: Sequence[Reader], tied: dict[str, Form]
) -> Iterator[None]:
    """While inside, a training step's passes are noted in `seen`, and the readers get its gradients."""

    def tap(item: Chosen, told: Sequence[Reader]) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        def tell(x: Tensor, g: Tensor) -> None:
            if item.name in seen.heard:
                raise ValueError(
                    f"layer {item.name!r} is used twice in one forward pass; this is not supported"
                )
            seen.heard.add(item.name)
            assert seen.told is not None
            with torch.no_grad(), torch.autocast(g.device.type, enabled=False):
                own = g.flatten(1, -2).float() * seen.told[:, None, None]
                places = x.flatten(1) if isinstance(item.layer, nn.Embedding) else x.flatten(1, -2)
                forms = item.rule(item.layer, places, own)
                for local, name in item.parameters.items():
                    for read in told:
                        read(name, forms[local])

        def hook(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            if not output.requires_grad:  # the first pass of a reentrant checkpoint
                return output
            x, rows = inputs[0].detach(), seen.batch.size
            if x.shape[0] not in (1, rows):
                raise ValueError(
                    f"layer {item.name!r} sees an input of shape {tuple(x.shape)}, not one row an example "
                    f"(batch of {rows}); layers that mix examples, such as experts, are not supported"
                )
            if len(output) < rows:  # position embeddings, read once for all rows
                x, output = x.expand(rows, *x.shape[1:]), output.expand(rows, *output.shape[1:])
            return _Tap.apply(output, x, tell)

        return hook

    handles = [item.layer.register_forward_hook(tap(item, readers)) for item in choice.layers]
    if choice.tied is not None:
        handles.append(choice.tied.layer.register_forward_hook(tap(choice.tied, [tied.__setitem__])))
    handles.append(decoder_of(model).register_forward_hook(seen.note_hidden))
    handles.append(model.register_forward_hook(seen.note_output))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

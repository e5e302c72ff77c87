"""What steps and measurements of one model on one pool cost: the ledger's formulas, fed from both."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from coretune.ledger import GRADIENT_SIGNALS, ModelShape, forward_flops, measurement_flops, training_flops
from coretune.measure.parameters import choose, decoder_blocks, decoder_of, full_shape
from coretune.measure.settings import MeasureSettings
from coretune.rounds.sampler import PoolRows
from coretune.types import EMPTY_PROMPT_LOSS, TARGET_LOSS, TARGET_SIMILARITY, TRAJECTORY, Array, Rows

ATTENTION = re.compile(r"att(n|ention)", re.IGNORECASE)


@dataclass(frozen=True)
class ModelCost:
    """FLOPs, read off a model before its first step.

    counted             whether the formulas hold for the architecture; else the FLOPs here are an estimate,
                        for plans of seconds alone, and the ledger says that they are unknown
    adapter_parameters  trainable parameters beside frozen ones (LoRA); None = full fine-tuning
    signals             what is measured
    blocks              of the last blocks that many take part in a gradient
    chosen_parameters   entries of the parameters whose gradients are taken
    references          FLOPs of the rows that others are compared with, measured anew at every measurement
    trajectory          whether trajectories are measured: a gradient pass of its own over every snapshot
    empty_prompt        tokens that all prompts end with (`signals.common_ending`)
    pursued             FLOPs of the targets that trajectories are pursued for, at one snapshot
    tuned               how often `target_loss` passes over the rows: once a target
    """

    shape: ModelShape
    rows: PoolRows
    adapter_parameters: int | None
    checkpointing: bool
    signals: frozenset[str]
    blocks: int
    chosen_parameters: int
    references: float = 0.0
    trajectory: bool = False
    pursued: float = 0.0
    counted: bool = True
    empty_prompt: int = 1
    tuned: int = 0

    @classmethod
    def of(
        cls,
        model: Any,
        rows: PoolRows,
        signals: Collection[str],
        settings: MeasureSettings,
        target: PoolRows | None,
        checkpointing: bool,
        pursued: Sequence[PoolRows] = (),
        targets: int = 0,
    ) -> ModelCost:
        """target: the examples of all `targets`, which are so many.

        ValueError for a model or a signal that cannot be counted, as `choose` and `measurement_flops`.
        """
        counted = has_formulas(model)
        shape = model_shape(model) if counted else estimated_shape(model)
        size = {name: parameter.numel() for name, parameter in model.named_parameters()}
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        chosen = 0
        if (GRADIENT_SIGNALS | {TRAJECTORY}) & set(signals):
            choice = choose(model, settings.last_blocks, settings.parameters)
            chosen = sum(size[name] for name in choice.names)
        cost = cls(
            shape=shape,
            rows=rows,
            adapter_parameters=None if trainable == sum(size.values()) else trainable,
            checkpointing=checkpointing,
            signals=frozenset(signals) - {TRAJECTORY, TARGET_LOSS},
            blocks=min(settings.last_blocks or shape.layers, shape.layers),
            chosen_parameters=chosen,
            trajectory=TRAJECTORY in signals,
            counted=counted,
            tuned=targets if TARGET_LOSS in signals else 0,
        )
        return cost._with_references(target, pursued if TRAJECTORY in signals else ())

    def training(self, rows: Rows) -> float:
        """One training pass over `rows`."""
        return self.training_of(self.rows.length[rows])

    def training_of(self, lengths: Array) -> float:
        """One training pass over rows of so many tokens each, of whatever pool."""
        return training_flops(
            self.shape,
            lengths,
            adapter_parameters=self.adapter_parameters,
            checkpointing=self.checkpointing,
        )

    def measurement(self, rows: Rows, snapshots: int = 1) -> float:
        """One measurement of `rows` at so many checkpoints; 1: the model under training alone."""
        responses = self.rows.response_length[rows]
        flops = self.references + self._flops(self.rows.length[rows], responses, self.signals)
        if self.trajectory:
            flops += snapshots * (self.pursued + self._flops(self.rows.length[rows], responses, {"gradient"}))
        return flops + self.tuned * self._flops(self.rows.length[rows], responses, {"loss"})

    def pairs(self, count: int) -> float:
        """The losses of so many average responses after two prompts and, if it is a signal, an empty one."""
        length = self.rows.length
        response = self.rows.response_length
        empty = self.signals & {EMPTY_PROMPT_LOSS}
        whole = 2 * self._flops(length, response, {"loss"}) + self._flops(length, response, empty)
        return whole * count / len(length)

    def evaluation(self, lengths: Array) -> float:
        """One forward pass over sequences of these lengths, every token through the head."""
        return forward_flops(self.shape, lengths)

    def _flops(self, lengths: Array, responses: Array, signals: Collection[str]) -> float:
        return measurement_flops(
            self.shape,
            lengths,
            responses,
            signals,
            blocks=self.blocks,
            chosen_parameters=self.chosen_parameters,
            empty_prompt=self.empty_prompt,
        )

    def _with_references(self, target: PoolRows | None, pursued: Sequence[PoolRows]) -> ModelCost:
        """A reference is one gradient pass over the target; of similarities two passes without the head: what
        rows are compared with, and the target's examples with each other."""
        references = 0.0
        if "target_cosine" in self.signals and target is not None:
            references += self._gradients(target)
        if TARGET_SIMILARITY in self.signals and target is not None:
            references += 2 * self._flops(target.length, target.response_length, {TARGET_SIMILARITY})
        return replace(
            self,
            references=references,
            pursued=sum(map(self._gradients, pursued)),
        )

    def _gradients(self, rows: PoolRows) -> float:
        """One gradient pass over all of them."""
        return self._flops(rows.length, rows.response_length, {"gradient"})


def has_formulas(model: Any) -> bool:
    """Whether the model is a stack of blocks that all have attention, of as many heads as its config says.

    State-space models, RWKV, and hybrids with them or with linear attention (which all have an A_log) compute
    something else than the formulas count.
    """
    try:
        heads = model.config.get_text_config().num_attention_heads
        _, blocks = decoder_blocks(decoder_of(model))
    except (AttributeError, ValueError):
        return False
    attentive = all(any(ATTENTION.search(name) for name, _ in block.named_modules()) for block in blocks)
    recurrent = any(name.endswith("A_log") for name, _ in blocks.named_parameters())
    return isinstance(heads, int) and attentive and not recurrent


def estimated_shape(model: Any) -> ModelShape:
    """As if every weight but the embedding met every token once, which is about right for matrices."""
    known, head = model.config.get_text_config().to_dict(), model.get_output_embeddings()
    outside = {id(p) for layer in (head, model.get_input_embeddings()) for p in layer.parameters()}
    inner = sum(p.numel() for p in model.parameters() if id(p) not in outside)
    vocabulary, width = full_shape(head, "weight")
    return ModelShape(inner, vocabulary * width, int(known.get("num_hidden_layers") or 1), 0)


def model_shape(model: Any) -> ModelShape:
    """What the FLOP formulas need, read off the model: blocks, head, attention width."""
    config = model.config.get_text_config()
    _, blocks = decoder_blocks(decoder_of(model))
    # Written in the config only by architectures whose heads may be wider than their share.
    head_dim = config.to_dict().get("head_dim") or config.hidden_size // config.num_attention_heads
    # By the layers' own sizes: 4-bit weights are packed, and split ones are apart.
    shapes = [
        full_shape(layer, local)
        for name, layer in blocks.named_modules()
        for local, _ in layer.named_parameters(recurse=False)
        if "lora_" not in name
    ]
    weights = sum(math.prod(shape) for shape in shapes if len(shape) == 2)
    return ModelShape(
        block_parameters=weights,
        head_parameters=config.vocab_size * config.hidden_size,
        layers=len(blocks),
        attention_width=config.num_attention_heads * head_dim,
    )

"""Which parameters count for the gradient signals.

A LoRA model: the adapter's weights, A and B. Otherwise: the weights of the attention output projections.
[choice, after STAFF, Zhang et al. 2025, and LESS, Xia et al. 2024] Both in the last blocks only, unless all
are asked for: backward passes through no more than those blocks. Or every trainable parameter. Only what is
trained counts: where neither of the two is, all that is trained in those blocks.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from coretune.measure.hooks import Chosen, rule_for
from coretune.measure.split import is_split

# Put into names by FSDP1, by activation checkpointing and by torch.compile.
WRAPPERS = ("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod")

ADAPTER = re.compile(r"(^|\.)lora_[AB](\.|$)")
MAGNITUDE = "lora_magnitude_vector"  # of DoRA
# As Llama and its kin call it; GPT-2; OPT and GPT-Neo; GPT-NeoX, Phi, Falcon and Bloom. Mamba's mixers are in
# the place of attention.
ATTENTION_OUTPUT = re.compile(r"(^|\.)(\w*att(n|ention)\w*\.(o_proj|c_proj|out_proj|dense)|mixer\.out_proj)$")


def decoder_of(model: Any) -> Any:
    """What gives the hidden states that the head is given; transformers (5.23) takes a few models whole for
    it, as Llama 4's."""
    found = model.get_decoder()
    return found.model if hasattr(found, "lm_head") and hasattr(found, "model") else found


def decoder_blocks(decoder: nn.Module) -> tuple[str, nn.ModuleList]:
    """The list of transformer blocks and its name in the decoder; ValueError when there is not one such."""
    lists = [(name, module) for name, module in decoder.named_modules() if isinstance(module, nn.ModuleList)]
    outermost = [
        (name, module)
        for name, module in lists
        if not any(name.startswith(other + ".") for other, _ in lists) and len(module)
    ]
    if len(outermost) != 1:
        raise ValueError(
            f"cannot tell the transformer blocks of {type(decoder).__name__}: it has the module lists "
            f"{[name for name, _ in outermost]}, exactly one is expected"
        )
    return outermost[0]


@dataclass(frozen=True)
class Choice:
    """What counts.

    layers   seen by hooks, all but the two below
    head     the output head, whose gradient is taken from p − y, without hooks; its rule is not used
    tied     the embedding that shares the head's weight: their two gradients are one
    """

    layers: list[Chosen]
    head: Chosen | None = None
    tied: Chosen | None = None

    @property
    def hooked(self) -> list[Chosen]:
        """The layers that get hooks."""
        return [*self.layers, *([self.tied] if self.tied is not None else [])]

    @property
    def names(self) -> list[str]:
        """Of the parameters in the model, each once."""
        items = [*self.layers, *([self.head] if self.head is not None else [])]
        return [name for item in items for name in item.parameters.values()]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the parameters, by name in the model."""
        items = [*self.layers, *([self.head] if self.head is not None else [])]
        return {
            name: full_shape(item.layer, local) for item in items for local, name in item.parameters.items()
        }


def full_shape(layer: Any, local: str) -> tuple[int, ...]:
    """A parameter's shape; of a linear layer's or an embedding's weight also where it is taken apart."""
    if local == "weight" and isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    if local == "weight" and isinstance(layer, nn.Embedding):
        return layer.num_embeddings, layer.embedding_dim
    return tuple(getattr(layer, local).shape)


def plain_name(name: str) -> str:
    """A name in the model as it is called where nothing is wrapped around the layers."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def choose(model: Any, last_blocks: int | None, kind: str) -> Choice:
    """The layers and parameters that count.

    ValueError: more blocks asked for than there are; no such parameter; a layer without a rule, by its name
    and that of the adapter's kind.
    """
    _, blocks = decoder_blocks(decoder_of(model))
    if last_blocks is not None and last_blocks > len(blocks):
        raise ValueError(
            f"last_blocks is {last_blocks} but the model has {len(blocks)} blocks; ask for fewer or None"
        )
    last = list(blocks)[0 if last_blocks is None else len(blocks) - last_blocks :]
    if kind == "trainable":
        _refuse_magnitudes(model)
        return _trainable(model, None if last_blocks is None else last)
    chosen = _adapter_or_attention(model, blocks, last)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if trained and not chosen:
        return _other_parameters(model, last)
    if not chosen:
        raise ValueError(
            "the last blocks have neither LoRA weights nor an attention output projection (o_proj, c_proj, "
            "out_proj or dense); gradient signals are not available for this model"
        )
    return Choice(chosen)


def _adapter_or_attention(model: Any, blocks: nn.ModuleList, last: Sequence[nn.Module]) -> list[Chosen]:
    """LoRA's A and B, or else the attention output projections; where some weights are trained, of those."""
    names = {module: name for name, module in model.named_modules()}
    adapted = any(ADAPTER.search(name) for name, _ in blocks.named_parameters())
    pattern = ADAPTER if adapted else ATTENTION_OUTPUT
    some = any(parameter.requires_grad for parameter in model.parameters())
    chosen = []
    for name, layer in (pair for block in last for pair in block.named_modules()):
        weight = dict(layer.named_parameters(recurse=False)).get("weight")
        if pattern.search(name) and weight is not None and (weight.requires_grad or not some):
            full = plain_name(names[layer])
            beside = f"{names[layer].rsplit('.lora_', 1)[0]}.{MAGNITUDE}"
            dora = any(other.startswith(beside) for other in names.values())
            chosen.append(Chosen(full, layer, rule_for(full, layer), {"weight": f"{full}.weight"}, dora))
    return chosen


def _other_parameters(model: Any, last: Sequence[nn.Module]) -> Choice:
    """What else of the last blocks is trained, as by an adapter of another kind than LoRA."""
    try:
        return _trainable(model, last)
    except ValueError as error:
        raise unreadable(
            model,
            "the last blocks have neither LoRA weights nor attention output projections that are trained, "
            f"and what is trained cannot be read by example: {error}",
        ) from None


def unreadable(model: Any, why: str) -> ValueError:
    """With the kind of the adapter, where there is one, and what to do."""
    adapter = f"{model.active_peft_config.peft_type.value}: " if is_peft(model) else ""
    return ValueError(
        f"{adapter}{why}. Train plain LoRA or all weights, or take a method without gradient signals, as "
        "grace by its defaults"
    )


def is_peft(model: nn.Module) -> bool:
    """Whether it is a PEFT model; known by its class, for this room does without peft."""
    return any(kind.__name__ == "PeftModel" for kind in type(model).__mro__)


def _trainable(model: Any, blocks: Sequence[nn.Module] | None) -> Choice:
    """Every parameter that requires a gradient, in those blocks or, with None, in the whole model."""
    names = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
    inside = None if blocks is None else {module for block in blocks for module in block.modules()}
    chosen: dict[nn.Module, Chosen] = {}
    for name, layer in model.named_modules():
        if inside is None or layer in inside:
            own = {local: p for local, p in layer.named_parameters(recurse=False) if p in names}
            if own:
                parameters = {local: plain_name(names[p]) for local, p in own.items()}
                chosen[layer] = Chosen(plain_name(name), layer, rule_for(name, layer), parameters)
    if not chosen:
        where = "anywhere" if blocks is None else "in the last blocks"
        raise ValueError(
            f"no parameter requires a gradient {where}; unfreeze some, or set last_blocks to null"
        )
    head = chosen.pop(model.get_output_embeddings(), None)
    if head is not None and is_split(model):
        raise ValueError(
            "the output head's own gradient needs its weight whole, and it is split over processes (FSDP, "
            "ZeRO-3): set last_blocks, or parameters to adapter_or_attention"
        )
    tied = None
    if head is not None and model.get_input_embeddings() in chosen:
        embedding = chosen[model.get_input_embeddings()]
        if embedding.parameters["weight"] == head.parameters["weight"]:
            tied = chosen.pop(model.get_input_embeddings())
    choice = Choice(list(chosen.values()), head, tied)
    shared = sorted(name for name, count in Counter(choice.names).items() if count > 1)
    if shared:
        raise ValueError(f"parameter {shared[0]!r} is shared between layers; this is not supported")
    return choice


def _refuse_magnitudes(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if MAGNITUDE in name and parameter.requires_grad:
            raise ValueError(
                f"DoRA's magnitudes ({name!r}) have no gradients by example: set parameters to "
                "adapter_or_attention, which reads its A and B"
            )

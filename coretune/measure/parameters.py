"""Which parameters count for the gradient signals.

A LoRA model: the adapter's weights, A and B. Otherwise: the weights of the attention output projections.
[choice, after STAFF, Zhang et al. 2025, and LESS, Xia et al. 2024] Both in the last blocks only, unless all
are asked for: backward passes through no more than those blocks.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from coretune.measure.hooks import Chosen, rule_for

ADAPTER = re.compile(r"(^|\.)lora_[AB](\.|$)")
# As Llama and its kin call it; GPT-2; OPT and GPT-Neo; GPT-NeoX, Phi, Falcon and Bloom.
ATTENTION_OUTPUT = re.compile(r"(^|\.)\w*att(n|ention)\w*\.(o_proj|c_proj|out_proj|dense)$")


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


def choose(model: Any, last_blocks: int | None) -> list[Chosen]:
    """The layers and parameters that count, in the order of the forward pass's blocks.

    ValueError: more blocks asked for than there are; no such parameter; a layer without a rule (named).
    """
    _, blocks = decoder_blocks(model.get_decoder())
    if last_blocks is not None and last_blocks > len(blocks):
        raise ValueError(
            f"last_blocks is {last_blocks} but the model has {len(blocks)} blocks; ask for fewer or None"
        )
    first = 0 if last_blocks is None else len(blocks) - last_blocks
    names = {module: name for name, module in model.named_modules()}
    adapted = any(ADAPTER.search(name) for name, _ in blocks.named_parameters())
    pattern = ADAPTER if adapted else ATTENTION_OUTPUT
    chosen = []
    for block in list(blocks)[first:]:
        for name, layer in block.named_modules():
            if pattern.search(name) and "weight" in dict(layer.named_parameters(recurse=False)):
                full = names[layer]
                chosen.append(Chosen(full, layer, rule_for(full, layer), {"weight": f"{full}.weight"}))
    _refuse_magnitudes(blocks)
    if not chosen:
        raise ValueError(
            "the last blocks have neither LoRA weights nor an attention output projection (o_proj, c_proj, "
            "out_proj or dense); gradient signals are not available for this model"
        )
    return chosen


def _refuse_magnitudes(blocks: nn.ModuleList) -> None:
    """DoRA reads the weights of A and B without calling them, so hooks would see too little."""
    for name, _ in blocks.named_parameters():
        if "lora_magnitude_vector" in name:
            raise ValueError(
                f"DoRA is not supported for gradient signals: the model has {name!r}; use plain LoRA"
            )

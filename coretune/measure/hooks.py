"""Per-example gradients from a layer's inputs x_s and output gradients g_s: one rule a layer type.

A rule turns what hooks see of a layer into the gradient of each of its parameters, in one of the three forms
of `forms.py`. Weight gradients are never formed by autograd: the parameters are frozen while hooks listen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from coretune.measure.forms import Form, Lookup, Outer, Vector

#: (layer, inputs x (B, T, in), output gradients g (B, T, out)) -> {parameter's name in the layer: gradients}
Rule = Callable[[Any, Tensor, Tensor], dict[str, Form]]


def linear(layer: nn.Linear, x: Tensor, g: Tensor) -> dict[str, Form]:
    """y = W x + b: ∂/∂W = Σ_s g_s x_sᵀ, ∂/∂b = Σ_s g_s."""
    return {"weight": Outer(g, x.float()), "bias": Vector(g.sum(1))}


def conv1d(layer: nn.Module, x: Tensor, g: Tensor) -> dict[str, Form]:
    """GPT-2's layer, a linear one whose weight is stored (in, out): ∂/∂W = Σ_s x_s g_sᵀ."""
    return {"weight": Outer(x.float(), g), "bias": Vector(g.sum(1))}


def embedding(layer: nn.Embedding, x: Tensor, g: Tensor) -> dict[str, Form]:
    """y = W[x]: ∂/∂W = Σ_s e_{x_s} g_sᵀ; the padding index learns nothing."""
    if layer.padding_idx is not None:
        g = g * (x != layer.padding_idx)[..., None]
    return {"weight": Lookup(x, g, layer.num_embeddings)}


def scaled_embedding(layer: Any, x: Tensor, g: Tensor) -> dict[str, Form]:
    """Gemma's: y = c W[x]."""
    return embedding(layer, x, g * layer.embed_scale)


def layer_norm(layer: nn.LayerNorm, x: Tensor, g: Tensor) -> dict[str, Form]:
    """y = w ⊙ x̂ + b: ∂/∂w = Σ_s g_s ⊙ x̂_s, ∂/∂b = Σ_s g_s."""
    normal = functional.layer_norm(x.float(), layer.normalized_shape, eps=layer.eps)
    return {"weight": Vector((g * normal).sum(1)), "bias": Vector(g.sum(1))}


def _root_mean_square(x: Tensor, g: Tensor, eps: float) -> dict[str, Form]:
    """y = w ⊙ x̂ with x̂ = x / √(mean(x²) + ε): ∂/∂w = Σ_s g_s ⊙ x̂_s."""
    x = x.float()
    return {"weight": Vector((g * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps))).sum(1))}


def rms_norm(layer: Any, x: Tensor, g: Tensor) -> dict[str, Form]:
    """The norm of Llama and its relatives in transformers."""
    return _root_mean_square(x, g, layer.variance_epsilon)


def gemma_rms_norm(layer: Any, x: Tensor, g: Tensor) -> dict[str, Form]:
    """Gemma's: y = (1 + w) ⊙ x̂, with the same gradient."""
    return _root_mean_square(x, g, layer.eps)


def cohere_layer_norm(layer: Any, x: Tensor, g: Tensor) -> dict[str, Form]:
    """Cohere's: y = w ⊙ x̂, x̂ centred, without a bias."""
    x = x.float()
    return _root_mean_square(x - x.mean(-1, keepdim=True), g, layer.variance_epsilon)


#: By class name, for some of these classes are transformers' own. A subclass with a name of its own is
#: another layer: it may compute something else.
RULES: dict[str, Rule] = {
    "Linear": linear,
    "Conv1D": conv1d,
    "Embedding": embedding,
    "LayerNorm": layer_norm,
    "Cohere2LayerNorm": cohere_layer_norm,
    "CohereLayerNorm": cohere_layer_norm,
    "FalconLinear": linear,
    "Gemma2RMSNorm": gemma_rms_norm,
    "Gemma2TextScaledWordEmbedding": scaled_embedding,
    "Gemma3TextScaledWordEmbedding": scaled_embedding,
    "GemmaRMSNorm": gemma_rms_norm,
    "GemmaTextScaledWordEmbedding": scaled_embedding,
    "Gemma3RMSNorm": gemma_rms_norm,
    "GraniteRMSNorm": rms_norm,
    "LigerLayerNorm": layer_norm,  # Liger renames the classes of the norms it speeds up, and sets their ε
    "LigerRMSNorm": rms_norm,
    "LlamaRMSNorm": rms_norm,
    "MistralRMSNorm": rms_norm,
    "Olmo2RMSNorm": rms_norm,
    "Phi3RMSNorm": rms_norm,
    "Qwen2RMSNorm": rms_norm,
    "Qwen3RMSNorm": rms_norm,
    "SmolLM3RMSNorm": rms_norm,
}


def rule_for(name: str, layer: nn.Module) -> Rule:
    """The rule of a layer; ValueError names the layer that has none."""
    kind = type(layer).__name__
    if kind not in RULES:
        raise ValueError(
            f"no per-example gradient for layer {name!r} of type {kind}; known types are {sorted(RULES)}"
        )
    return RULES[kind]


@dataclass(frozen=True)
class Chosen:
    """A layer some of whose parameters count.

    name         in the model
    parameters   name in the layer ("weight", "bias") -> name in the model
    dora         whether the layer is called with a matrix, too, before it is called with the rows: DoRA makes
                 the product of A and B so, and takes its norms for constants
    """

    name: str
    layer: nn.Module
    rule: Rule
    parameters: dict[str, str]
    dora: bool = False


#: The backward pass carries gradients times this, for those of a token mean are small for float16. A power of
#: two, so that it changes no digit in the other dtypes.
GRADIENT_SCALE = 1024.0

#: What a reader gets of each chosen parameter of a batch: (name in the model, its per-example gradients).
Reader = Callable[[str, Form], None]


@dataclass(frozen=True)
class Captured:
    """Names of the layers that ran, and of those whose gradients the readers got."""

    forward: set[str] = field(default_factory=set)
    backward: set[str] = field(default_factory=set)


@contextmanager
def capturing(chosen: Sequence[Chosen], batch_size: int, readers: Sequence[Reader]) -> Iterator[Captured]:
    """While inside, a backward pass gives every reader the gradients of the chosen parameters.

    To be entered with gradients off and the parameters frozen: the graph begins at the output of the first
    chosen layer, which turns them on, and backward stops there, even where the inputs were made to require
    gradients, as PEFT does for gradient checkpointing.
    """
    captured = Captured()

    def listen(item: Chosen) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        def forward_hook(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            if item.dora and inputs[0].dim() == 2:
                return output
            if item.name in captured.forward:
                raise ValueError(
                    f"layer {item.name!r} is used twice in one forward pass; this is not supported"
                )
            captured.forward.add(item.name)
            x, feature_dims = inputs[0].detach(), 0 if isinstance(layer, nn.Embedding) else 1
            if x.dim() < 2 + feature_dims or x.shape[0] not in (1, batch_size):
                raise ValueError(
                    f"layer {item.name!r} sees an input of shape {tuple(x.shape)}, not one row an example "
                    f"(batch of {batch_size}); layers that mix examples, such as experts, are not supported"
                )
            # Position embeddings are read once for all rows; their gradient would arrive as one sum.
            if len(output) < batch_size:
                x, output = x.expand(batch_size, *x.shape[1:]), output.expand(batch_size, *output.shape[1:])
            torch.set_grad_enabled(True)
            if not output.requires_grad:
                output.requires_grad_()
            version = x._version
            output.register_hook(lambda g: tell(layer, x, version, g))
            return output

        def tell(layer: nn.Module, x: Tensor, version: int, g: Tensor) -> None:
            if x._version != version:
                raise ValueError(
                    f"the input of layer {item.name!r} was changed in place; this is not supported"
                )
            captured.backward.add(item.name)
            with torch.no_grad(), torch.autocast(g.device.type, enabled=False):
                # A norm of each attention head sees (B, T, heads, width): more places that share a parameter.
                places = x.flatten(1) if isinstance(layer, nn.Embedding) else x.flatten(1, -2)
                forms = item.rule(layer, places, g.flatten(1, -2).float() / GRADIENT_SCALE)
                for local, name in item.parameters.items():
                    for read in readers:
                        read(name, forms[local])

        return forward_hook

    handles = [item.layer.register_forward_hook(listen(item)) for item in chosen]
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()

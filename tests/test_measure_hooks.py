"""Each rule against autograd, one example at a time: norms, inner products and sums of its gradients."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.cohere.modeling_cohere import CohereLayerNorm
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.pytorch_utils import Conv1D

from coretune.measure.hooks import GRADIENT_SCALE, RULES, Chosen, capturing, rule_for

LAYERS = {
    "linear": lambda a, b: torch.nn.Linear(a, b),
    "conv1d": lambda a, b: Conv1D(b, a),
    "embedding": lambda a, b: torch.nn.Embedding(a, b, padding_idx=0),
    "layer_norm": lambda a, b: torch.nn.LayerNorm(a),
    "rms_norm": lambda a, b: LlamaRMSNorm(a),
    "gemma_rms_norm": lambda a, b: GemmaRMSNorm(a),
    "scaled_embedding": lambda a, b: Gemma3TextScaledWordEmbedding(a, b, 0, embed_scale=3.0),
    "cohere_layer_norm": lambda a, b: CohereLayerNorm(a),
}


class Collected(dict):
    """A reader that keeps every form."""

    def __call__(self, name, form):
        self[name] = form


def whole(form, shape, entries):
    """The parts of a form put together, each entry from exactly one, none larger than it may be."""
    found = torch.full(shape, torch.nan)
    with patch("coretune.measure.forms.DENSE_ENTRIES", entries):
        for rows, stretch, gradients in form.dense():
            assert found[rows, stretch].isnan().all()
            assert gradients.numel() <= max(entries, shape[-1])
            found[rows, stretch] = gradients
    return found


def loss_of_rows(output: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(B,) something that depends on every output in its own way."""
    return (weight * torch.tanh(output)).flatten(1).sum(1)


@given(
    kind=st.sampled_from(sorted(LAYERS)),
    rows=st.integers(1, 16),
    tokens=st.integers(1, 12),
    width=st.tuples(st.integers(2, 20), st.integers(2, 20)),
    heads=st.sampled_from([(), (3,)]),
    seed=st.integers(0, 9999),
    entries=st.sampled_from([1, 7, 60, 900, 1 << 26]),
)
@settings(deadline=None, max_examples=50)
def test_every_rule_equals_autograd_row_by_row(kind, rows, tokens, width, heads, seed, entries):
    torch.manual_seed(seed)
    layer = LAYERS[kind](*width)
    for parameter in layer.parameters():
        parameter.data.normal_()
    if kind.endswith("embedding"):
        x = torch.randint(0, width[0], (rows, tokens, *heads))
    else:
        x = torch.randn(rows, tokens, *heads, width[0])
    weight = torch.randn(layer(x).shape)
    names = [name for name, _ in layer.named_parameters()]
    each = [
        torch.autograd.grad(
            loss_of_rows(layer(x[i : i + 1]), weight[i : i + 1]).sum(), list(layer.parameters())
        )
        for i in range(rows)
    ]
    layer.requires_grad_(False)
    found = Collected()
    item = Chosen("layer", layer, rule_for("layer", layer), {name: name for name in names})
    with capturing([item], rows, [found]):
        (GRADIENT_SCALE * loss_of_rows(layer(x), weight).sum()).backward()
    for name, expected in zip(names, zip(*each, strict=True), strict=True):
        gradients, form = torch.stack(expected), found[name]
        close = {"rtol": 1e-4, "atol": 1e-4}
        torch.testing.assert_close(form.square_norm(), gradients.flatten(1).square().sum(1), **close)
        torch.testing.assert_close(whole(form, gradients.shape, entries), gradients, **close)


def test_every_rule_is_in_the_test_above_or_is_one_that_is():
    tested = {RULES[type(make(2, 2)).__name__] for make in LAYERS.values()}
    assert tested == set(RULES.values())


def test_a_layer_used_twice_in_one_pass_is_refused_by_name():
    layer = torch.nn.Linear(3, 3).requires_grad_(False)
    item = Chosen("shared", layer, rule_for("shared", layer), {"weight": "w"})
    with capturing([item], 2, []), pytest.raises(ValueError, match="'shared' is used twice"):
        layer(layer(torch.randn(2, 4, 3)))


@pytest.mark.parametrize("shape", [(8, 3), (5, 4, 3), (5, 4, 2, 3)])
def test_a_layer_that_mixes_rows_is_refused_by_name(shape):
    layer = torch.nn.Linear(3, 3).requires_grad_(False)
    item = Chosen("expert", layer, rule_for("expert", layer), {"weight": "w"})
    with capturing([item], 2, []), pytest.raises(ValueError, match="'expert' sees an input of shape"):
        layer(torch.randn(shape))


def test_an_input_that_is_changed_in_place_is_refused_by_name():
    layer = torch.nn.Linear(3, 3).requires_grad_(False)
    item = Chosen("layer", layer, rule_for("layer", layer), {"weight": "w"})
    x = torch.randn(2, 4, 3)
    with torch.no_grad(), capturing([item], 2, []):
        output = layer(x)
        x += 1.0
        with pytest.raises(ValueError, match="'layer' was changed in place"):
            output.sum().backward()


def test_hooks_are_gone_afterwards():
    layer = torch.nn.Linear(3, 3).requires_grad_(False)
    item = Chosen("layer", layer, rule_for("layer", layer), {"weight": "w"})
    with pytest.raises(RuntimeError), capturing([item], 2, []):
        raise RuntimeError
    assert not layer._forward_hooks

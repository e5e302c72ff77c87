"""Every signal equals the batch-1 autograd loop, whatever the model, the batch and the row's neighbours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from measure_oracle import (
    BOS,
    PAD,
    RaggedRows,
    assert_close,
    flat_gradients,
    oracle,
    random_rows,
    stacked,
    tiny_model,
)

from coretune.measure.meter import Meter
from coretune.measure.project import MatrixProjection
from coretune.measure.signals import SIGNALS, MeasureSettings, measurer

FAMILIES = ("llama", "llama-lora", "gpt2", "qwen2")
CHOICES = (("adapter_or_attention", 1), ("adapter_or_attention", None), ("trainable", 2), ("trainable", None))


def measure(model, rows, names, target=None, asked=None, **setting):
    asked = np.arange(len(rows.prompt_length)) if asked is None else asked
    chosen = MeasureSettings(**{"projection_dim": 24, "factor_dim": 8, **setting})
    return measurer(model, rows, names, chosen, pad_token_id=PAD, bos_token_id=BOS, target=target)(asked)


def projected(model, found, choice):
    """The projection of the oracle's gradients, entry by entry: y = Σ_layers sketch(P_oᵀ G P_i)."""
    settings = MeasureSettings(projection_dim=24, factor_dim=8, **choice)
    projections = Meter(model, settings, frozenset({"gradient"}), PAD).projections
    features = np.zeros((len(found), 24))
    for i, row in enumerate(found):
        for name, gradient in row["gradients"].items():
            sketch = projections[name]
            if isinstance(sketch, MatrixProjection):
                gradient = gradient if sketch.left is None else sketch.left.T @ gradient
                gradient = gradient if sketch.right is None else gradient @ sketch.right
                sketch = sketch.sketch
            np.add.at(features[i], sketch.bucket.numpy(), (gradient.flatten() * sketch.sign).numpy())
    return features


@pytest.mark.parametrize(("parameters", "last_blocks"), CHOICES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_signals_equal_the_batch_1_loop(family, attention, parameters, last_blocks):
    model, rows, target = tiny_model(family, attention), random_rows(7, seed=1), random_rows(3, seed=2)
    choice = {"last_blocks": last_blocks, "parameters": parameters}
    found = measure(model, rows, SIGNALS, target, batch_tokens=60, **choice)
    expected, trusted = oracle(model, rows, **choice), oracle(model, target, **choice)
    for name in ("loss", "response_embedding", "prompt_embedding", "unconditional_loss"):
        assert_close(found[name], stacked(expected, name))
    gradients, mean = flat_gradients(expected), flat_gradients(trusted).mean(0)
    assert_close(found["gradient_norm"], np.linalg.norm(gradients, axis=1))
    scale = np.linalg.norm(gradients, axis=1) * np.linalg.norm(mean)
    np.testing.assert_allclose(found["alignment"] / scale, gradients @ mean / scale, atol=1e-4)
    features, trusted_features = projected(model, expected, choice), projected(model, trusted, choice)
    assert_close(found["gradient"], features)
    units = [f / np.linalg.norm(f, axis=1, keepdims=True) for f in (features, trusted_features)]
    np.testing.assert_allclose(found["target_cosine"], (units[0] @ units[1].T).mean(1), atol=1e-4)


@given(seed=st.integers(0, 999), n=st.integers(1, 16), batch_tokens=st.integers(1, 400))
@settings(deadline=None, max_examples=8)
def test_batch_composition_does_not_matter(seed, n, batch_tokens):
    model, rows = tiny_model("llama", seed=3), random_rows(n, seed)
    order = np.random.default_rng(seed).permutation(n)
    one = measure(model, rows, SIGNALS, rows, asked=order, batch_tokens=1, reference_rows=4)
    many = measure(model, rows, SIGNALS, rows, asked=order, batch_tokens=batch_tokens, reference_rows=4)
    for name in SIGNALS:
        assert_close(many[name], one[name], 2e-4)
    assert_close(one["loss"], stacked(oracle(model, rows, 1), "loss")[order])


def test_head_gradient_is_the_projection_of_the_heads_own_gradient():
    model, rows = tiny_model("llama"), random_rows(5, seed=4)
    wide = measure(model, rows, ["head_gradient"], projection_dim=40_000, factor_dim=1_000)["head_gradient"]
    model.eval()
    gradients = []
    for tokens, prompt in zip(rows.token_rows, rows.prompt_length, strict=True):
        ids = torch.from_numpy(tokens).long()[None]
        labels = ids.clone()
        labels[0, : max(prompt, 1)] = -100
        (gradient,) = torch.autograd.grad(model(input_ids=ids, labels=labels).loss, [model.lm_head.weight])
        gradients.append(gradient.flatten().numpy())
    gradients = np.stack(gradients)
    # With both sides whole, 848 entries in 40,000 buckets hardly collide: inner products are nearly exact.
    np.testing.assert_allclose(wide @ wide.T, gradients @ gradients.T, rtol=0.02, atol=0.02)


def test_reference_without_target_is_the_mean_over_a_seeded_sample_of_the_pool():
    model, rows = tiny_model("llama"), random_rows(9, seed=6)
    found = measure(model, rows, ["alignment"], asked=np.array([3, 0]), reference_rows=4, seed=7)["alignment"]
    gradients = flat_gradients(oracle(model, rows, 2))
    sample = np.random.default_rng(7).choice(9, 4, replace=False)
    assert_close(found, gradients[[3, 0]] @ gradients[sample].mean(0))


def test_long_rows_take_the_ghost_or_the_direct_norm_alike():
    rows = RaggedRows([list(range(2, 50)), [5, 6, 7], [9, 3]], [3, 1, 1])  # 48 tokens: direct; 3 and 2: ghost
    model = tiny_model("llama")
    found = measure(model, rows, ["gradient_norm"], batch_tokens=1)["gradient_norm"]
    assert_close(found, np.linalg.norm(flat_gradients(oracle(model, rows, 2)), axis=1))


def test_a_row_that_is_not_finite_spoils_itself_alone():
    model, rows = tiny_model("llama"), random_rows(7, seed=8)
    rows.token_rows = [np.where(row == 52, 7, row) for row in rows.token_rows]
    rows.token_rows[2][-1] = 52
    keep = np.delete(np.arange(7), 2)
    healthy = RaggedRows([rows.token_rows[i] for i in keep], rows.prompt_length[keep])
    with torch.no_grad():
        model.model.embed_tokens.weight[52] = torch.nan
    found = measure(model, rows, SIGNALS, target=rows)
    for name, expected in measure(model, healthy, SIGNALS, target=healthy).items():
        assert np.isnan(found[name][2]).all(), name
        # The reference sample of alignment is the target here, and it leaves the broken row out.
        assert_close(found[name][keep], expected, 2e-4)


def test_a_row_without_response_is_nan_and_so_is_an_empty_one():
    rows = RaggedRows([[5, 6, 7], [5, 6], [4], []], [1, 2, 0, 0])
    found = measure(tiny_model("llama"), rows, SIGNALS, random_rows(2, 1))
    for name in SIGNALS:
        alive = [True, name == "prompt_embedding", name == "prompt_embedding", False]
        assert np.isfinite(found[name]).reshape(4, -1).all(1).tolist() == alive, name
        assert np.isnan(found[name][3]).all()


def test_no_rows_give_empty_arrays_of_the_right_width():
    found = measure(
        tiny_model("llama"), random_rows(2, 0), SIGNALS, random_rows(2, 1), asked=np.zeros(0, int)
    )
    shapes = {name: array.shape for name, array in found.items()}
    assert shapes["loss"] == (0,)
    assert shapes["response_embedding"] == (0, 16)
    assert shapes["gradient"] == shapes["head_gradient"] == (0, 24)


def test_progress_counts_every_row_once():
    done = []
    rows = random_rows(11, seed=9)
    meter = measurer(
        tiny_model("llama"),
        rows,
        ["loss"],
        MeasureSettings(batch_tokens=50),
        pad_token_id=PAD,
        bos_token_id=BOS,
        progress=done.append,
    )
    meter(np.arange(11))
    assert sum(done) == 11
    assert len(done) > 1


@pytest.mark.parametrize("parameters", ["adapter_or_attention", "trainable"])
def test_every_signal_comes_as_float32_under_autocast(parameters):
    """Whatever the model computes in, values come in fp32; TRL trains in bf16 by default."""
    model, rows, target = tiny_model("llama"), random_rows(7, seed=1), random_rows(3, seed=2)
    exact = measure(model, rows, SIGNALS, target, parameters=parameters)
    found = measure(model, rows, SIGNALS, target, parameters=parameters, autocast="bfloat16")
    assert {value.dtype for value in found.values()} == {np.dtype(np.float32)}
    np.testing.assert_allclose(found["target_cosine"], exact["target_cosine"], atol=0.05)

"""Every signal equals the batch-1 autograd loop, whatever the model, the batch and the row's neighbours."""

from __future__ import annotations

from unittest.mock import patch

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
    ordinary_moments,
    preconditioned,
    random_moments,
    random_rows,
    rows_of_turns,
    stacked,
    tiny_model,
)

from coretune.measure import passes
from coretune.measure.meter import SignalMeter
from coretune.measure.project import MatrixProjection
from coretune.measure.signals import SIGNALS, MeasureSettings, common_ending, measurer

FAMILIES = ("llama", "llama-lora", "gpt2", "qwen2")
CHOICES = (("adapter_or_attention", 1), ("adapter_or_attention", None), ("trainable", 2), ("trainable", None))


def measure(model, rows, names, target=None, asked=None, moments=None, **setting):
    asked = np.arange(len(rows.prompt_length)) if asked is None else asked
    chosen = MeasureSettings(**{"projection_dim": 24, "factor_dim": 8, **setting})
    own = {"pad_token_id": PAD, "bos_token_id": BOS, "target": target, "moments": moments}
    return measurer(model, rows, names, chosen, **own)(asked)


def projected(model, gradients, choice):
    """The projection of whole gradients, entry by entry: y = Σ_layers sketch(P_oᵀ G P_i)."""
    settings = MeasureSettings(projection_dim=24, factor_dim=8, **choice)
    projections = SignalMeter(model, settings, frozenset({"gradient"}), PAD).projections
    features = np.zeros((len(gradients), 24))
    for i, row in enumerate(gradients):
        for name, gradient in row.items():
            sketch = projections[name]
            if isinstance(sketch, MatrixProjection):
                gradient = gradient.double()
                gradient = gradient if sketch.left is None else sketch.left.T.double() @ gradient
                gradient = gradient if sketch.right is None else gradient @ sketch.right.double()
                sketch = sketch.sketch
            np.add.at(features[i], sketch.bucket.numpy(), (gradient.flatten() * sketch.sign).numpy())
    return features


@pytest.mark.parametrize(("parameters", "last_blocks"), CHOICES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_signals_equal_the_batch_1_loop(family, attention, parameters, last_blocks):
    rows, target = random_rows(7, seed=1), random_rows(3, seed=2)
    assert_equal_to_the_loop(tiny_model(family, attention), rows, target, parameters, last_blocks)


@pytest.mark.parametrize(("parameters", "last_blocks"), [CHOICES[0], CHOICES[-1]])
@pytest.mark.parametrize("family", ["llama-lora", "qwen2"])
def test_of_rows_of_several_turns_only_what_the_loss_counts_is_measured(family, parameters, last_blocks):
    rows, target = rows_of_turns(7, seed=1), rows_of_turns(3, seed=2)
    assert_equal_to_the_loop(tiny_model(family), rows, target, parameters, last_blocks)


def assert_equal_to_the_loop(model, rows, target, parameters, last_blocks):
    choice = {"last_blocks": last_blocks, "parameters": parameters}
    found = measure(model, rows, SIGNALS, target, batch_tokens=60, **choice)
    expected, trusted = oracle(model, rows, **choice), oracle(model, target, **choice)
    for name in ("loss", "response_embedding", "prompt_embedding", "unconditional_loss"):
        assert_close(found[name], stacked(expected, name))
    assert_close(found["gradient_norm"], np.linalg.norm(flat_gradients(expected), axis=1))
    features, trusted_features = (
        projected(model, [row["gradients"] for row in found_rows], choice)
        for found_rows in (expected, trusted)
    )
    assert_close(found["gradient"], features)
    alone = projected(model, [row["kn_gradients"] for row in expected], choice)
    assert_close(found["kn_gradient"], alone)
    size = np.abs(features).max(1) + np.abs(alone).max(1)
    assert (np.abs(found["if_gradient"] - (features - alone)).max(1) <= 1e-4 * size).all()
    units = [f / np.linalg.norm(f, axis=1, keepdims=True) for f in (features, trusted_features)]
    np.testing.assert_allclose(found["target_cosine"], units[0] @ units[1].T, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_similarities_are_cosines_of_position_weighted_means_of_one_row_at_a_time(family):
    model, rows, target = tiny_model(family).eval(), random_rows(7, seed=21), random_rows(3, seed=22)
    found = measure(model, rows, ["weighted_embedding", "target_similarity"], target, batch_tokens=50)

    def embedding(tokens):
        with torch.no_grad():
            out = model(input_ids=torch.from_numpy(tokens)[None], output_hidden_states=True)
        hidden = out.hidden_states[-1][0].double().numpy()
        mean = (np.arange(1, len(hidden) + 1)[:, None] * hidden).sum(0)
        return mean / np.linalg.norm(mean)

    ours, theirs = ([embedding(t) for t in some.tokens(np.arange(n))] for some, n in ((rows, 7), (target, 3)))
    np.testing.assert_allclose(found["weighted_embedding"], np.stack(ours), atol=1e-5)
    np.testing.assert_allclose(found["target_similarity"], np.stack(ours) @ np.stack(theirs).T, atol=1e-5)


@pytest.mark.parametrize("kind", ["none", "adam", "linear"])
@pytest.mark.parametrize(("parameters", "last_blocks"), CHOICES)
@pytest.mark.parametrize("family", FAMILIES)
def test_knowledge_and_instruction_gradients_equal_the_batch_1_loop(family, parameters, last_blocks, kind):
    """g_SFT = g_KN + g_IF, each the projection of what the preconditioner makes of autograd's gradients."""
    model, rows, target = tiny_model(family), random_rows(6, seed=11), random_rows(3, seed=12)
    moments = random_moments(model, seed=13)
    chosen = {"parameters": parameters, "last_blocks": last_blocks}
    choice = {**chosen, "preconditioner": kind}
    names = ["gradient", "kn_gradient", "if_gradient", "target_cosine", "gradient_norm"]
    found = measure(model, rows, names, target, moments=moments, batch_tokens=50, **choice)
    expected, trusted = oracle(model, rows, **chosen), oracle(model, target, **chosen)
    whole, alone = (
        projected(model, [preconditioned(kind, row[name], moments) for row in expected], choice)
        for name in ("gradients", "kn_gradients")
    )
    assert_close(found["gradient"], whole)
    assert_close(found["kn_gradient"], alone)
    size = np.abs(whole).max(1) + np.abs(alone).max(1)  # the two cancel where the prompt says nothing
    assert (np.abs(found["if_gradient"] - (whole - alone)).max(1) <= 1e-4 * size).all()
    assert_close(found["kn_gradient"] + found["if_gradient"], found["gradient"])
    # LESS: the target's own gradients go as they are.
    plain = projected(model, [row["gradients"] for row in trusted], choice)
    units = [f / np.linalg.norm(f, axis=1, keepdims=True) for f in (whole, plain)]
    np.testing.assert_allclose(found["target_cosine"], units[0] @ units[1].T, atol=1e-4)
    assert_close(found["gradient_norm"], np.linalg.norm(flat_gradients(expected), axis=1))


@given(seed=st.integers(0, 999), n=st.integers(1, 16), batch_tokens=st.integers(1, 400))
@settings(deadline=None, max_examples=6)
def test_losses_add_up_token_by_token(seed, n, batch_tokens):
    """L_SFT = L_KN + L_IF: the same target tokens in both passes, divided by the same number of them."""
    model, rows = tiny_model("llama", seed=5), random_rows(n, seed)
    found = measure(model, rows, ["loss", "unconditional_loss"], batch_tokens=batch_tokens)
    following = []
    for row in oracle(model, rows, 1):
        assert len(row["nats"]) == len(row["nats_alone"])
        following.append(float((row["nats"] - row["nats_alone"]).mean()))
    difference = found["loss"].astype(np.float64) - found["unconditional_loss"]
    np.testing.assert_allclose(difference, following, atol=2e-5)


@given(
    seed=st.integers(0, 999),
    n=st.integers(1, 16),
    batch_tokens=st.integers(1, 400),
    kind=st.sampled_from(["none", "adam", "linear"]),
    entries=st.sampled_from([1, 40, 300, 1 << 26]),
)
@settings(deadline=None, max_examples=10)
def test_batches_and_parts_do_not_show_in_preconditioned_gradients(seed, n, batch_tokens, kind, entries):
    model, rows = tiny_model("qwen2", seed=3), random_rows(n, seed, longest=12)
    names = ["gradient", "kn_gradient", "if_gradient"]
    setting = {"preconditioner": kind, "last_blocks": None, "parameters": "trainable"}
    setting["moments"] = random_moments(model, seed)
    one = measure(model, rows, names, batch_tokens=1, **setting)
    with (
        patch("coretune.measure.forms.DENSE_ENTRIES", entries),
        patch("coretune.measure.head_weight.DENSE_ENTRIES", entries),
    ):
        many = measure(model, rows, names, batch_tokens=batch_tokens, **setting)
    for name in names[:2]:
        assert_close(many[name], one[name], 2e-4)
    size = np.abs(one["gradient"]).max(1) + np.abs(one["kn_gradient"]).max(1)
    assert (np.abs(many["if_gradient"] - one["if_gradient"]).max(1) <= 2e-4 * size).all()


def test_every_pass_is_made_once(monkeypatch):
    """Two forward passes a batch and no more, whatever is asked for; one where one will do."""
    seen = []
    for kind in ("forward_only", "forward_backward"):
        plain = getattr(passes, kind)

        def counted(model, batch, *rest, plain=plain, kind=kind, **more):
            seen.append((kind, batch.size))
            return plain(model, batch, *rest, **more)

        monkeypatch.setattr(passes, kind, counted)
    model, rows = tiny_model("llama"), random_rows(4, seed=5)
    everything = ["loss", "unconditional_loss", "gradient", "kn_gradient", "if_gradient", "gradient_norm"]
    for names, expected in (
        (everything, ["forward_backward"] * 2),
        (["if_gradient"], ["forward_backward"] * 2),
        (["kn_gradient", "unconditional_loss"], ["forward_backward"]),
        (["loss", "kn_gradient"], ["forward_only", "forward_backward"]),
        (["gradient", "unconditional_loss"], ["forward_backward", "forward_only"]),
    ):
        seen.clear()
        found = measure(model, rows, names)
        assert seen == [(kind, 4) for kind in expected]
        assert list(found) == names


def test_moments_that_are_called_for_are_read_at_every_measurement():
    model, rows = tiny_model("llama"), random_rows(4, seed=5)
    given = [random_moments(model, seed=1), random_moments(model, seed=2)]
    setting = {"preconditioner": "adam"}
    expected = [measure(model, rows, ["gradient"], moments=m, **setting)["gradient"] for m in given]
    chosen = MeasureSettings(projection_dim=24, factor_dim=8, **setting)
    own = {"pad_token_id": PAD, "bos_token_id": BOS, "moments": lambda: given.pop(0)}
    live = measurer(model, rows, ["gradient"], chosen, **own)
    for feature in expected:
        np.testing.assert_array_equal(live(np.arange(4))["gradient"], feature)


def test_a_preconditioner_without_moments_is_refused_where_a_gradient_is_asked_for():
    model, rows = tiny_model("llama"), random_rows(4, seed=5)
    for names in (["gradient"], ["kn_gradient"], ["loss", "if_gradient"]):
        with pytest.raises(ValueError, match="preconditioner adam needs an optimizer's moments"):
            measure(model, rows, names, preconditioner="adam")
    plain = ["loss", "gradient_norm"]
    assert list(measure(model, rows, plain, preconditioner="adam")) == plain


@given(seed=st.integers(0, 999), n=st.integers(1, 16), batch_tokens=st.integers(1, 400))
@settings(deadline=None, max_examples=8)
def test_batch_composition_does_not_matter(seed, n, batch_tokens):
    model, rows = tiny_model("llama", seed=3), random_rows(n, seed)
    order = np.random.default_rng(seed).permutation(n)
    one = measure(model, rows, SIGNALS, rows, asked=order, batch_tokens=1)
    many = measure(model, rows, SIGNALS, rows, asked=order, batch_tokens=batch_tokens)
    for name in SIGNALS:
        if name == "target_cosine":  # an inner product may be nearly 0
            np.testing.assert_allclose(many[name], one[name], rtol=2e-4, atol=2e-4 * np.abs(one[name]).max())
        else:
            assert_close(many[name], one[name], 2e-4)
    assert_close(one["loss"], stacked(oracle(model, rows, 1), "loss")[order])


@pytest.mark.parametrize("drawn", [random_rows, rows_of_turns])
def test_head_gradient_is_the_projection_of_the_heads_own_gradient(drawn):
    model, rows = tiny_model("llama"), drawn(5, seed=4)
    wide = measure(model, rows, ["head_gradient"], projection_dim=40_000, factor_dim=1_000)["head_gradient"]
    model.eval()
    gradients = []
    for tokens, targets in zip(rows.token_rows, rows.label_rows, strict=True):
        ids, labels = torch.from_numpy(tokens).long()[None], torch.from_numpy(targets)[None]
        (gradient,) = torch.autograd.grad(model(input_ids=ids, labels=labels).loss, [model.lm_head.weight])
        gradients.append(gradient.flatten().numpy())
    gradients = np.stack(gradients)
    # With both sides whole, 848 entries in 40,000 buckets hardly collide: inner products are nearly exact.
    np.testing.assert_allclose(wide @ wide.T, gradients @ gradients.T, rtol=0.02, atol=0.02)


def test_long_rows_take_the_ghost_or_the_direct_norm_alike():
    rows = RaggedRows([list(range(2, 50)), [5, 6, 7], [9, 3]], [3, 1, 1])  # 48 tokens: direct; 3 and 2: ghost
    model = tiny_model("llama")
    found = measure(model, rows, ["gradient_norm"], batch_tokens=1)["gradient_norm"]
    assert_close(found, np.linalg.norm(flat_gradients(oracle(model, rows, 2)), axis=1))


def test_a_row_that_is_not_finite_spoils_itself_alone():
    model, rows = tiny_model("llama"), random_rows(7, seed=8)
    tokens = [np.where(row == 52, 7, row) for row in rows.token_rows]
    tokens[2][-1] = 52
    rows = RaggedRows(tokens, rows.prompt_length)
    keep = np.delete(np.arange(7), 2)
    healthy = RaggedRows([rows.token_rows[i] for i in keep], rows.prompt_length[keep])
    with torch.no_grad():
        model.model.embed_tokens.weight[52] = torch.nan
    found = measure(model, rows, SIGNALS, target=healthy)
    for name, expected in measure(model, healthy, SIGNALS, target=healthy).items():
        assert np.isnan(found[name][2]).all(), name
        assert_close(found[name][keep], expected, 2e-4)


def test_a_row_without_response_is_nan_and_so_is_an_empty_one():
    rows = RaggedRows([[5, 6, 7], [5, 6], [4], []], [1, 2, 0, 0])
    found = measure(tiny_model("llama"), rows, SIGNALS, random_rows(2, 1))
    for name in SIGNALS:
        # A prompt alone has embeddings of its own.
        prompt = name in ("prompt_embedding", "weighted_embedding", "target_similarity")
        alive = [True, prompt, prompt, False]
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


@pytest.mark.parametrize("kind", ["none", "adam", "linear"])
def test_low_precision_gradients_are_within_their_bound(kind):
    """bf16: within 5 % of the size of a row's own gradients, preconditioned or not."""
    model, rows = tiny_model("llama-lora"), random_rows(12, seed=3)
    names = ["gradient", "kn_gradient", "if_gradient"]
    setting = {"preconditioner": kind, "moments": ordinary_moments(model, rows), "projection_dim": 256}
    exact = measure(model, rows, names, **setting)
    size = np.linalg.norm(exact["gradient"], axis=1) + np.linalg.norm(exact["kn_gradient"], axis=1)
    for found in (
        measure(model, rows, names, autocast="bfloat16", **setting),
        measure(model.to(torch.bfloat16), rows, names, **setting),
    ):
        for name in names:
            assert found[name].dtype == np.float32
            gap = np.linalg.norm(found[name] - exact[name], axis=1) / size
            assert gap.max() <= 0.05, name


def test_a_loss_after_an_empty_prompt_is_that_of_the_response_after_what_all_prompts_end_with() -> None:
    """[7, 8] here, after the bos token; where the ending holds the bos token it begins there."""
    model = tiny_model("llama", "eager")
    rows = RaggedRows([[3, 4, 7, 8, 5, 6], [9, 7, 8, 11, 12, 13], [7, 7, 8, 5]], [4, 3, 3])
    assert common_ending(rows, BOS).tolist() == [BOS, 7, 8]
    assert common_ending(rows, 7).tolist() == [7, 8]
    alone = RaggedRows([[BOS, 7, 8, 5, 6], [BOS, 7, 8, 11, 12, 13], [BOS, 7, 8, 5]], [3, 3, 3])
    found = measure(model, rows, ["loss", "empty_prompt_loss", "unconditional_loss"])
    assert_close(found["empty_prompt_loss"], measure(model, alone, ["loss"])["loss"])
    assert_close(found["loss"], measure(model, rows, ["loss"])["loss"])
    assert_close(measure(model, rows, ["empty_prompt_loss"])["empty_prompt_loss"], found["empty_prompt_loss"])
    assert common_ending(RaggedRows([[3, 4, 5], [6, 7, 5]], [2, 2]), BOS).tolist() == [BOS]
    same = RaggedRows([[3, 4, 5]] * 3, [2] * 3)
    assert common_ending(same, BOS).tolist() == [BOS, 3, 4]

"""A measurement leaves the model as it found it, and refuses by name what it would get wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from measure_oracle import BOS, PAD, assert_close, oracle, random_rows, stacked, tiny_model

from coretune.measure import passes
from coretune.measure.kept import Kept
from coretune.measure.signals import SIGNALS, MeasureSettings, measurer

SETTINGS = MeasureSettings(projection_dim=16, factor_dim=8)


def measure(model, rows, names, settings=SETTINGS, target=None):
    return measurer(model, rows, names, settings, pad_token_id=PAD, bos_token_id=BOS, target=target)(
        np.arange(len(rows.prompt_length))
    )


def state(model):
    """Everything that a measurement might disturb."""
    return (
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [len(module._forward_hooks) for module in model.modules()],
        torch.get_rng_state(),
    )


def assert_same_state(before, after):
    assert before[0] == after[0]
    assert before[1] == after[1]
    for old, new in zip(before[2], after[2], strict=True):
        assert (old is None) == (new is None)
        assert old is None or torch.equal(old, new)
    assert before[3] == after[3]
    assert torch.equal(before[4], after[4])


def trained_a_little(family):
    """A model in a mixed state: gradients present, a module in eval mode, a parameter frozen."""
    model = tiny_model(family)
    model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    next(
        module for module in model.modules() if isinstance(module, torch.nn.Dropout | torch.nn.Linear)
    ).eval()
    next(iter(model.parameters())).requires_grad_(False)
    return model


@pytest.mark.parametrize("family", ["llama", "llama-lora", "gpt2"])
def test_the_model_is_left_as_it_was(family):
    model, rows = trained_a_little(family), random_rows(5, seed=1)
    before = state(model)
    measure(model, rows, SIGNALS, target=rows)
    assert_same_state(before, state(model))


def test_the_model_is_left_as_it_was_after_an_exception():
    model, rows = trained_a_little("llama"), random_rows(5, seed=1)
    rows.token_rows[3][0] = 10_000  # outside the vocabulary
    before = state(model)
    with pytest.raises(IndexError):
        measure(model, rows, SIGNALS, target=rows)
    assert_same_state(before, state(model))


def test_dropout_is_off():
    model, rows = tiny_model("llama-lora"), random_rows(5, seed=1)
    assert_close(measure(model, rows, ["loss"])["loss"], stacked(oracle(model, rows, 1), "loss"))


def test_gradient_checkpointing_changes_nothing():
    model, rows = tiny_model("llama"), random_rows(5, seed=2)
    plain = measure(model, rows, SIGNALS, target=rows)
    model.gradient_checkpointing_enable()
    for name, value in measure(model, rows, SIGNALS, target=rows).items():
        np.testing.assert_array_equal(value, plain[name])
    assert model.is_gradient_checkpointing


def test_an_outer_no_grad_changes_nothing():
    model, rows = tiny_model("llama"), random_rows(5, seed=2)
    plain = measure(model, rows, ["gradient_norm"])["gradient_norm"]
    with torch.no_grad():
        np.testing.assert_array_equal(measure(model, rows, ["gradient_norm"])["gradient_norm"], plain)


def test_weights_cached_by_an_outer_autocast_gather_no_gradient():
    model, rows = tiny_model("llama"), random_rows(3, seed=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(input_ids=torch.arange(8)[None])  # autocast now holds half-precision copies with a graph
        measure(model, rows, ["gradient_norm"])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_low_precision_is_within_its_bound():
    """bf16 has 8 bits: losses within 1 % of fp32, gradient norms within 5 %; so has fp16 or better."""
    model, rows = tiny_model("llama"), random_rows(12, seed=3)
    names = ["loss", "gradient_norm", "response_embedding"]
    exact = measure(model, rows, names)
    under = measure(model, rows, names, MeasureSettings(autocast="bfloat16"))
    whole = measure(model.to(torch.bfloat16), rows, names)
    half = measure(model.to(torch.float16), rows, names)
    for found in (under, whole, half):
        assert found["loss"].dtype == np.float32
        assert_close(found["loss"], exact["loss"], 0.01)
        assert_close(found["gradient_norm"], exact["gradient_norm"], 0.05)
        assert ((found["response_embedding"] * exact["response_embedding"]).sum(1) > 0.999).all()


def test_the_logits_are_chunked_and_the_chunks_do_not_show(monkeypatch):
    model, rows = tiny_model("llama"), random_rows(6, seed=4)
    whole = measure(model, rows, SIGNALS, target=rows)
    widest = 0

    def watch(layer, inputs, output):
        nonlocal widest
        widest = max(widest, len(output)) if output.dim() == 2 else widest

    monkeypatch.setattr("coretune.measure.head.CHUNK_ENTRIES", 3 * 53)
    handle = model.lm_head.register_forward_hook(watch)
    chunked = measure(model, rows, SIGNALS, target=rows)
    handle.remove()
    assert widest == 3
    for name in SIGNALS:
        assert_close(chunked[name], whole[name])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_heads_own_gradient_is_made_in_blocks_of_the_vocabulary(family, monkeypatch):
    model, rows = tiny_model(family), random_rows(6, seed=4)
    setting = MeasureSettings(last_blocks=None, parameters="trainable", projection_dim=16, factor_dim=8)
    whole = measure(model, rows, SIGNALS, setting, target=rows)
    monkeypatch.setattr("coretune.measure.head_weight.CHUNK_ENTRIES", 500)
    for name, value in measure(model, rows, SIGNALS, setting, target=rows).items():
        assert_close(value, whole[name], 2e-4)


def test_only_the_asked_work_is_done(monkeypatch):
    model, rows = tiny_model("llama"), random_rows(4, seed=5)
    positions, grad = [], []

    def watch(layer, inputs, output):
        positions.append(output.numel() // output.shape[-1])
        grad.append(output.requires_grad)

    model.lm_head.register_forward_hook(watch)
    measure(model, rows, ["response_embedding", "prompt_embedding"])
    assert positions == [8] * 4 + [0]  # that the logits are the head's, also large ones, and then nothing
    positions.clear()
    measure(model, rows, ["unconditional_loss"])
    responses = sum(
        len(row) - max(start, 1) for row, start in zip(rows.token_rows, rows.prompt_length, strict=True)
    )
    assert positions == [0, responses]  # what the head gives is known; no pass over the whole rows
    grad.clear()
    monkeypatch.setattr(torch.autograd, "backward", None)
    measure(model, rows, ["loss", "head_gradient"])
    assert not any(grad)


@pytest.mark.parametrize("inputs_require_grads", [False, True])
def test_backward_stops_at_the_last_blocks(inputs_require_grads):
    model, rows = tiny_model("llama"), random_rows(3, seed=6)
    if inputs_require_grads:  # as PEFT and Trainer do for gradient checkpointing
        model.enable_input_require_grads()
    seen = set()
    for i, block in enumerate(model.model.layers):
        block.mlp.register_forward_hook(
            lambda layer, inputs, output, i=i: seen.add((i, output.requires_grad))
        )
    measure(model, rows, ["gradient_norm"], MeasureSettings(last_blocks=2))
    assert {i for i, needed in seen if needed} == {1, 2}
    assert torch.is_grad_enabled()


def test_an_unused_adapter_is_refused_by_name():
    model = tiny_model("llama-lora")
    with model.disable_adapter(), pytest.raises(ValueError, match=r"lora_A.*took no part"):
        measure(model, random_rows(2, 0), ["gradient_norm"])


def test_a_layer_that_gets_no_gradient_is_refused_by_name():
    model = tiny_model("llama")
    model.model.layers[2].self_attn.register_forward_hook(
        lambda layer, inputs, output: (output[0].detach(), None)
    )
    with pytest.raises(ValueError, match=r"layers\.2\.self_attn\.o_proj.*got no gradient"):
        measure(model, random_rows(2, 0), ["gradient_norm"])


def test_a_layer_without_a_rule_is_refused_by_name():
    class Strange(torch.nn.Linear):
        pass

    model = tiny_model("llama")
    model.model.layers[2].self_attn.o_proj = Strange(16, 16, bias=False)
    with pytest.raises(ValueError, match=r"layers\.2\.self_attn\.o_proj.*Strange"):
        measure(model, random_rows(2, 0), ["gradient_norm"])


@pytest.mark.parametrize(
    ("names", "setting", "message"),
    [
        (["los"], {}, "unknown signals \\['los'\\]"),
        (["target_cosine"], {}, "needs target examples"),
        (["gradient_norm"], {"last_blocks": 9}, "last_blocks is 9 but the model has 3"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_runs(names, setting, message):
    with pytest.raises(ValueError, match=message):
        measurer(
            tiny_model("llama"),
            random_rows(2, 0),
            names,
            MeasureSettings(**setting),
            pad_token_id=PAD,
            bos_token_id=BOS,
        )


@pytest.mark.parametrize("setting", [{"projection_dim": 0}, {"last_blocks": 0}, {"autocast": "int8"}])
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        MeasureSettings(**setting)


def test_what_rows_are_compared_with_is_measured_once_while_the_weights_stay(monkeypatch):
    model, rows, moment = tiny_model("llama"), random_rows(6, seed=4), [0]
    count, plain = [], passes.forward_backward

    def counted(model, batch, *arguments, **settings):
        count.append(batch.size)
        return plain(model, batch, *arguments, **settings)

    monkeypatch.setattr(passes, "forward_backward", counted)
    kept = Kept(lambda: moment[0])
    target, to = random_rows(6, seed=5), {"pad_token_id": PAD, "bos_token_id": BOS}
    look = measurer(model, rows, ["target_cosine"], SETTINGS, target=target, once=kept, **to)
    assert not kept.at_hand
    first = look(np.array([1, 4]))["target_cosine"]
    assert (sum(count), kept.at_hand) == (6 + 2, True)
    np.testing.assert_allclose(look(np.array([4, 1]))["target_cosine"], first[::-1], atol=1e-5)
    assert sum(count) == 6 + 2 + 2
    moment[0] = 1
    assert not kept.at_hand
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(0.5)
    moved = look(np.array([1, 4]))["target_cosine"]
    assert sum(count) == 6 + 2 + 2 + 6 + 2
    anew = measurer(model, rows, ["target_cosine"], SETTINGS, target=target, **to)(np.array([1, 4]))
    np.testing.assert_allclose(moved, anew["target_cosine"], atol=1e-4)


def test_a_decoder_that_the_logits_do_not_come_from_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    monkeypatch.setattr(model, "get_decoder", torch.nn.Identity)
    with pytest.raises(ValueError, match="LlamaForCausalLM makes its logits without Identity, its decoder"):
        measure(model, random_rows(2, 0), ["loss"])

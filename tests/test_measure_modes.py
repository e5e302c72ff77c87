"""However a model is trained, its measurement is the same: checkpointing, precision, 4 bits, split."""

from __future__ import annotations

import importlib.util
import os
import socket
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from measure_oracle import BOS, PAD, assert_close, oracle, random_rows, stacked, tiny_model
from torch import distributed, multiprocessing

from coretune.measure.settings import MeasureSettings
from coretune.measure.signals import measurer
from coretune.training.model_cost import model_shape
from coretune.training.refusals import refuse_first_fsdp

NAMES = (
    "loss",
    "response_embedding",
    "prompt_embedding",
    "unconditional_loss",
    "head_gradient",
    "gradient_norm",
    "gradient",
)
PARTS = {
    "LoRA": ("llama-lora", {"last_blocks": None}),
    "full": ("llama", {"last_blocks": None, "parameters": "trainable"}),
    "last 1": ("llama", {"last_blocks": 1}),
}


def measure(model, rows, asked=None, names=NAMES, **setting):
    asked = np.arange(len(rows.prompt_length)) if asked is None else asked
    settings = MeasureSettings(**{"projection_dim": 16, "factor_dim": 8, **setting})
    return measurer(model, rows, names, settings, pad_token_id=PAD, bos_token_id=BOS)(asked)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("autocast", [None, "bfloat16"])
@pytest.mark.parametrize("part", PARTS)
def test_gradient_checkpointing_changes_nothing(part, autocast, attention):
    """Of either kind, set up as Trainer and PEFT do; in evaluation mode there is no dropout."""
    family, setting = PARTS[part]
    model, rows = tiny_model(family, attention), random_rows(6, seed=2)
    plain = measure(model, rows, autocast=autocast, **setting)
    for reentrant in (False, True):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
        model.train()
        for name, value in measure(model, rows, autocast=autocast, **setting).items():
            np.testing.assert_array_equal(value, plain[name], err_msg=name)


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="bitsandbytes, for 4-bit weights, is not installed",
)
def test_an_adapter_on_4_bit_weights_equals_the_batch_1_loop(tmp_path):
    """The rules see the adapter's layers only; 4-bit layers need none."""
    from peft import LoraConfig, get_peft_model
    from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=53, hidden_size=64, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    how = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    base = LlamaForCausalLM.from_pretrained(
        tmp_path, quantization_config=how, device_map="cpu", dtype=torch.float32
    )
    model = get_peft_model(base, LoraConfig(r=3, target_modules=["q_proj", "o_proj"], task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)
    assert type(model.get_decoder().layers[0].self_attn.q_proj.base_layer).__name__ == "Linear4bit"
    assert model_shape(model) == model_shape(LlamaForCausalLM(config))  # packed weights count whole
    rows = random_rows(5, seed=3)
    found, expected = measure(model, rows, last_blocks=None), oracle(model, rows, None)
    assert_close(found["loss"], stacked(expected, "loss"))
    norms = [torch.cat([g.flatten() for g in row["gradients"].values()]).norm() for row in expected]
    assert_close(found["gradient_norm"], torch.stack(norms).numpy(), 1e-3)


SPLIT = {"FSDP2": "LoRA", "FSDP1": "last 1"}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def split_model(kind: str) -> torch.nn.Module:
    model = tiny_model(PARTS[SPLIT[kind]][0])
    if kind == "FSDP2":
        from torch.distributed.fsdp import fully_shard

        mesh = distributed.init_device_mesh("cpu", (2,))
        for block in model.get_decoder().layers:
            fully_shard(block, mesh=mesh)
        return fully_shard(model, mesh=mesh, reshard_after_forward=True)  # as accelerate does at the root too
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    blocks = ModuleWrapPolicy({type(model.get_decoder().layers[0])})
    return FullyShardedDataParallel(
        model, auto_wrap_policy=blocks, use_orig_params=True, device_id=torch.device("cpu")
    )


def gradients_of_a_step(model: torch.nn.Module) -> list[torch.Tensor]:
    ids = torch.arange(8)[None] + 2
    model.eval()(input_ids=ids, labels=ids).loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    local = [g.to_local() if isinstance(g, distributed.tensor.DTensor) else g for g in gradients]
    model.zero_grad()
    return [g.clone() for g in local]


def one_of_two(rank: int, port: int, folder: str) -> None:
    """A process that holds half of each model, measures rows of its own, and writes what it found."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2")
    patience = timedelta(seconds=60)  # for a process that waits in vain
    distributed.init_process_group("gloo", rank=rank, world_size=2, timeout=patience)
    found = {}
    for kind, part in SPLIT.items():
        model = split_model(kind)
        before = gradients_of_a_step(model)
        for share, rows in enumerate((np.arange(5) if rank == 0 else np.arange(5, 7), np.arange(7 * rank))):
            look = measure(model, random_rows(7, seed=1), rows, batch_tokens=48, **PARTS[part][1])
            found |= {f"{kind}/{share}/{name}": value for name, value in look.items()}
        assert all(parameter.grad is None for parameter in model.parameters())
        after = gradients_of_a_step(model)
        assert len(before) == len(after)
        assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    np.savez(Path(folder) / f"{rank}.npz", **found)
    distributed.barrier()  # a process that failed before has raised, and the other waits here in vain
    # torch may abort at the interpreter's end (a thread of gloo's that is not joined), when all is shown.
    os._exit(0)


def test_two_processes_that_hold_half_the_weights_each_find_what_one_does(tmp_path):
    """Also where their rows make unlike numbers of batches, or one of them has no row to measure."""
    multiprocessing.spawn(one_of_two, args=(free_port(), str(tmp_path)), nprocs=2)
    found = [np.load(tmp_path / f"{rank}.npz") for rank in (0, 1)]
    rows = random_rows(7, seed=1)
    for kind, part in SPLIT.items():
        family, setting = PARTS[part]
        whole = measure(tiny_model(family), rows, batch_tokens=48, **setting)
        for name, expected in whole.items():
            assert_close(np.concatenate([one[f"{kind}/0/{name}"] for one in found]), expected)
            assert_close(found[1][f"{kind}/1/{name}"], expected)
            assert found[0][f"{kind}/1/{name}"].shape == (0, *expected.shape[1:])


def test_a_trainer_that_wraps_the_model_in_another_is_refused():
    refuse_first_fsdp(2)
    with pytest.raises(ValueError, match="fsdp_version is 1, which puts another model around"):
        refuse_first_fsdp(1)

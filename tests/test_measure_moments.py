"""Adam's state comes back under the names of the parameters it is of, or not at all."""

from __future__ import annotations

import copy
from pathlib import Path
from pickle import UnpicklingError

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as sharded
from accelerate import Accelerator
from measure_oracle import tiny_model
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from transformers import Trainer, TrainingArguments

from coretune.measure.moments import Moments

FAMILIES = ("llama", "llama-lora", "gpt2", "qwen2")


def trainer(model, folder, **settings):
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        per_device_train_batch_size=2,
        max_steps=2,
        save_steps=2,
        **settings,
    )
    rows = [{"input_ids": [i, i + 1, i + 2], "labels": [i, i + 1, i + 2]} for i in range(2, 10)]
    return Trainer(model, arguments, train_dataset=rows)


def step(model, optimizer, times=2):
    for i in range(times):
        ids = torch.arange(i + 2, i + 10)[None]
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def assert_is_of(moments, optimizer, model):
    """The state of each trainable parameter, found by the parameter itself."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert set(moments.first) == set(moments.second) == set(trainable)
    for name, parameter in trainable.items():
        state = optimizer.state[parameter]
        assert moments.first[name].dtype == torch.float32
        torch.testing.assert_close(moments.first[name], state["exp_avg"].float(), rtol=0, atol=0)
        torch.testing.assert_close(moments.second[name], state["exp_avg_sq"].float(), rtol=0, atol=0)
    assert moments.step == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trainers_checkpoint_comes_back_by_name(family, tmp_path):
    """Norms and biases, which Trainer puts after the rest, are where shapes alone could not tell them."""
    model = tiny_model(family)
    run = trainer(model, tmp_path, weight_decay=0.1, adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-7)
    run.train()
    fresh = tiny_model(family, seed=1)
    found = Moments.from_checkpoint(tmp_path / "checkpoint-2", fresh)
    assert_is_of(found, run.optimizer.optimizer, model)
    assert (found.beta1, found.beta2, found.epsilon) == (0.8, 0.95, 1e-7)
    live = Moments.of(run.optimizer, model)
    assert_is_of(live, run.optimizer.optimizer, model)
    assert (live.beta1, live.beta2, live.epsilon, live.step) == (0.8, 0.95, 1e-7, 2)


def test_a_live_optimizer_is_read_by_the_parameters_themselves():
    model = tiny_model("llama")
    parameters = list(model.parameters())[::-1]
    optimizer = torch.optim.Adam([{"params": parameters[:5]}, {"params": parameters[5:]}])
    step(model, optimizer)
    assert_is_of(Moments.of(optimizer, model), optimizer, model)
    accelerator = Accelerator(cpu=True)
    assert_is_of(Moments.of(accelerator.prepare(optimizer), model), optimizer, model)


def test_half_precision_moments_come_as_float32():
    model = tiny_model("llama").to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters())
    step(model, optimizer)
    assert_is_of(Moments.of(optimizer, model), optimizer, model)


@pytest.fixture
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_states_that_fsdp_saves_come_back_by_name(one_process, tmp_path):
    """Whole, as `optimizer.bin`; in shards, which are refused with the command that joins them; live."""
    plain = tiny_model("llama-lora")
    twin = torch.optim.AdamW([p for p in plain.parameters() if p.requires_grad])
    step(plain, twin)
    model = tiny_model("llama-lora")
    fully_shard(model, mesh=one_process)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    step(model, optimizer)
    assert_is_of(Moments.of(optimizer, model), twin, plain)
    whole = get_optimizer_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True))
    torch.save(whole, tmp_path / "optimizer.bin")
    assert_is_of(Moments.from_checkpoint(tmp_path, plain), twin, plain)
    (tmp_path / "optimizer.bin").unlink()
    state = {"optimizer": get_optimizer_state_dict(model, optimizer)}
    sharded.save(state, storage_writer=sharded.FileSystemWriter(tmp_path / "optimizer_0"))
    with pytest.raises(ValueError, match=r"in shards; join them: .* dcp_to_torch .*optimizer_0 .*\.bin"):
        Moments.from_checkpoint(tmp_path, plain)
    dcp_to_torch_save(tmp_path / "optimizer_0", tmp_path / "optimizer.bin")  # what that command calls
    assert_is_of(Moments.from_checkpoint(tmp_path, plain), twin, plain)


def test_what_fsdp1_spoils_is_refused(one_process, tmp_path):
    plain = tiny_model("llama")
    model = FullyShardedDataParallel(tiny_model("llama"), use_orig_params=True, device_id=torch.device("cpu"))
    optimizer = torch.optim.AdamW(model.parameters())
    step(model, optimizer)
    with pytest.raises(ValueError, match=r"under FSDP1 .* fsdp_version 2"):
        Moments.of(optimizer, model)
    whole = get_optimizer_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True))
    for state in whole["state"].values():
        state["exp_avg"] = state["exp_avg_sq"]  # as two processes on a CPU save it with torch 2.13
    torch.save(whole, tmp_path / "optimizer.bin")
    with pytest.raises(ValueError, match=r"one tensor for both moments of '.*fsdp_version 2"):
        Moments.from_checkpoint(tmp_path, plain)


def saved(folder: Path, model, optimizer) -> Path:
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    return folder


def stepped(family="llama-lora", kind=torch.optim.AdamW, times=2, **settings):
    model = tiny_model(family)
    optimizer = kind([p for p in model.parameters() if p.requires_grad], **settings)
    step(model, optimizer, times)
    return model, optimizer


def as_trainer_groups(model, tmp_path, times=2):
    optimizer = trainer(model, tmp_path).create_optimizer()
    step(model, optimizer, times)
    return optimizer


def test_what_is_not_adam_is_refused_by_name():
    for kind, keys in ((torch.optim.Adagrad, "sum"), (torch.optim.SGD, "momentum_buffer")):
        settings = {"momentum": 0.9} if kind is torch.optim.SGD else {}
        model, optimizer = stepped(kind=kind, lr=0.1, **settings)
        with pytest.raises(ValueError, match=rf"{kind.__name__} keeps .*{keys}.*train with adamw_torch"):
            Moments.of(optimizer, model)


def test_an_optimizer_that_cannot_help_says_why():
    model, optimizer = stepped()
    with pytest.raises(ValueError, match="AdamW holds none of the model's"):
        Moments.of(optimizer, copy.deepcopy(model))
    with pytest.raises(ValueError, match="AdamW holds no state: it has made no step"):
        Moments.of(torch.optim.AdamW(model.parameters()), model)
    optimizer.add_param_group({"params": [model.get_input_embeddings().weight.requires_grad_()]})
    optimizer.param_groups[1]["betas"] = (0.5, 0.6)
    step(model, optimizer, 1)
    with pytest.raises(ValueError, match=r"different betas and eps .*0\.5"):
        Moments.of(optimizer, model)
    optimizer.param_groups[1]["betas"] = optimizer.param_groups[0]["betas"]
    with pytest.raises(ValueError, match=r"different numbers of steps .* \[1, 3\]"):
        Moments.of(optimizer, model)


def test_a_parameter_that_took_no_step_has_no_moments(tmp_path):
    """And the state of the others is not shifted by it."""
    model = tiny_model("llama")
    never = model.model.layers[1].mlp.up_proj.weight
    model.model.layers[1].mlp.up_proj.forward = lambda x: x.new_zeros(*x.shape[:-1], 24)
    optimizer = as_trainer_groups(model, tmp_path)
    found = Moments.from_checkpoint(saved(tmp_path, model, optimizer), model)
    name = "model.layers.1.mlp.up_proj.weight"
    assert name not in found.first
    assert name not in Moments.of(optimizer, model).second
    never.requires_grad_(False)
    assert_is_of(found, optimizer, model)


def test_another_models_checkpoint_is_refused_with_both_numbers(tmp_path):
    model = tiny_model("llama")
    saved(tmp_path, model, as_trainer_groups(model, tmp_path))
    model.model.norm.weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"groups of \[23, 7\] parameters, Trainer would make \[23, 6\]"):
        Moments.from_checkpoint(tmp_path, model)
    with pytest.raises(ValueError, match="none of the model's requires a gradient"):
        Moments.from_checkpoint(tmp_path, model.requires_grad_(False))
    one_group, optimizer = stepped("llama")
    with pytest.raises(ValueError, match=r"groups of \[30\] parameters, Trainer would make \[23, 7\]"):
        Moments.from_checkpoint(saved(tmp_path, one_group, optimizer), one_group)


def test_names_are_plain_where_layers_are_wrapped(tmp_path):
    """As torch.compile and FSDP wrap them."""
    model = tiny_model("llama")
    optimizer = as_trainer_groups(model, tmp_path)
    saved(tmp_path, model, optimizer)
    wrapped = torch.nn.ModuleDict({"_orig_mod": model})
    assert_is_of(Moments.of(optimizer, wrapped), optimizer, model)
    assert_is_of(Moments.from_checkpoint(tmp_path, wrapped), optimizer, model)


def test_shapes_and_names_of_another_model_are_refused(tmp_path):
    model = tiny_model("llama")
    optimizer = as_trainer_groups(model, tmp_path)
    state = optimizer.state_dict()
    state["state"][0]["exp_avg"] = torch.zeros(3, 5)
    torch.save(state, tmp_path / "optimizer.pt")
    with pytest.raises(ValueError, match=r"'model\.embed_tokens\.weight' .* \(3, 5\), the .* \(53, 16\)"):
        Moments.from_checkpoint(tmp_path, model)
    (tmp_path / "optimizer.pt").unlink()
    by_name = {"state": {"model.other.weight": {}}, "param_groups": [{"params": ["model.other.weight"]}]}
    torch.save(by_name, tmp_path / "optimizer.bin")
    with pytest.raises(ValueError, match=r"the state of 'model\.other\.weight' and 0 more"):
        Moments.from_checkpoint(tmp_path, model)


def test_a_folder_without_a_readable_state_says_what_to_do(tmp_path):
    model = tiny_model("llama")
    with pytest.raises(ValueError, match=r"neither optimizer\.pt nor optimizer\.bin.*save_only_model=False"):
        Moments.from_checkpoint(tmp_path, model)
    (tmp_path / "global_step10").mkdir()
    with pytest.raises(ValueError, match=r"DeepSpeed's is in flat shards.*docs/signals\.md"):
        Moments.from_checkpoint(tmp_path, model)
    empty = trainer(model, tmp_path).create_optimizer()
    with pytest.raises(ValueError, match=r"optimizer\.pt holds no state: it has made no step"):
        Moments.from_checkpoint(saved(tmp_path, model, empty), model)


def test_no_code_in_a_file_is_run(tmp_path):
    class Harmful:
        def __reduce__(self):
            return Path.touch, (tmp_path / "harmed",)

    torch.save({"state": Harmful(), "param_groups": []}, tmp_path / "optimizer.pt")
    with pytest.raises(UnpicklingError, match="Weights only"):
        Moments.from_checkpoint(tmp_path, tiny_model("llama"))
    assert not (tmp_path / "harmed").exists()

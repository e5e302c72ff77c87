"""The ways in which two processes share the training of one model, on CPUs too.

accelerate (1.15) splits weights between processes with devices only. Here it takes these, on CPUs over
gloo, for such; nothing else of it is changed, so that a whole stock trainer runs.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

DDP = "DDP"
FSDP = {"FSDP 2, FULL": "FULL_STATE_DICT", "FSDP 2, SHARDED": "SHARDED_STATE_DICT"}
ZERO = {"ZeRO-2": 2, "ZeRO-3": 3}
WAYS = (DDP, *FSDP, *ZERO)


def arguments(way: str) -> dict[str, Any]:
    """Training arguments of this way."""
    if way in FSDP:
        how = {"version": 2, "state_dict_type": FSDP[way], "reshard_after_forward": True}
        return {"use_cpu": False, "fsdp": True, "fsdp_config": how}
    if way in ZERO:
        stage = {"stage": ZERO[way]}
        if stage["stage"] == 3:
            stage["stage3_gather_16bit_weights_on_model_save"] = True
        counts = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
        how = {"zero_optimization": stage, "zero_allow_untested_optimizer": True, "gradient_clipping": "auto"}
        return {"use_cpu": False, "deepspeed": {**how, **dict.fromkeys(counts, "auto")}}
    return {"use_cpu": True}


def as_process(rank: int, processes: int, port: int) -> None:
    """This process as one of several on this machine, as a launcher has it."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
    os.environ |= {name: str(number) for name, number in place.items()}
    os.environ["MASTER_ADDR"] = "127.0.0.1"


def as_devices(way: str) -> None:
    """In a process of its own, before a trainer's arguments are made: the CPUs pass for devices."""
    if way in FSDP:
        os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    if way in ZERO:
        os.environ["DS_ACCELERATOR"] = "cpu"
    if way in FSDP or way in ZERO:
        PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
        PartialState.set_device = lambda state: setattr(state, "device", torch.device("cpu"))


def whole_weights(model: Any) -> dict[str, torch.Tensor]:
    """Copies of the trained weights in one piece, by name; every process has to ask."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found[name] = _whole(parameter).detach().to("cpu", copy=True).contiguous()
    return found


def _whole(parameter: Any) -> torch.Tensor:
    if isinstance(parameter, DTensor):
        return parameter.full_tensor()
    if "ds_id" in vars(parameter):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.data.clone()
    return parameter

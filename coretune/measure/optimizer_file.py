"""An optimiser's saved state, brought from positions to parameters' names; refused where that is a guess."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from coretune.measure.parameters import plain_name

#: Parts of a name by which transformers 5 lets a parameter off weight decay, beside those of nn.LayerNorm.
UNDECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)", re.IGNORECASE)


@dataclass(frozen=True)
class SavedState:
    """The state of an optimiser, as it was saved.

    states   parameter -> {"exp_avg": …, "exp_avg_sq": …, "step": …}, whatever its optimiser keeps
    groups   torch's param_groups, with the settings
    file     where they are from
    """

    states: Mapping[str, Mapping[str, Any]]
    groups: Sequence[Mapping[str, Any]]
    file: Path


def saved_state(folder: Path, model: nn.Module) -> SavedState:
    """The optimiser state in a transformers checkpoint: `optimizer.pt`, or FSDP's whole `optimizer.bin`.

    Files are read without unpickling code. ValueError: no such file, with what to do for the forms that are
    there instead; a file whose parameters are not the model's.
    """
    by_position, by_name = folder / "optimizer.pt", folder / "optimizer.bin"
    if by_position.is_file():
        return _by_position(by_position, model)
    if by_name.is_file():
        return _by_name(by_name, model)
    raise ValueError(f"no optimizer state that can be read in {folder}: {_remedy(folder)}")


def trainer_order(model: nn.Module) -> list[list[str]]:
    """Names of the trainable parameters as transformers' Trainer groups them: with weight decay, without."""
    layer_norms = {
        f"{name}.{local}"
        for name, layer in model.named_modules()
        if isinstance(layer, nn.LayerNorm)
        for local, _ in layer.named_parameters()
    }
    groups: list[list[str]] = [[], []]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[bool(UNDECAYED.search(name)) or name in layer_norms].append(plain_name(name))
    return groups


def _by_position(file: Path, model: nn.Module) -> SavedState:
    """torch numbers parameters group after group."""
    saved = _load(file)
    names = trainer_order(model)
    if not any(names):
        raise ValueError(f"{file} has no parameter to belong to: none of the model's requires a gradient")
    if (found := [len(g["params"]) for g in saved["param_groups"]]) != (ours := [len(n) for n in names]):
        raise ValueError(
            f"{file} has groups of {found} parameters, Trainer would make {ours} (with and without weight "
            "decay) of those of the model that require a gradient; give the model that was trained, with the "
            "same parameters frozen, or save the state by name as optimizer.bin"
        )
    positions = [position for group in saved["param_groups"] for position in group["params"]]
    named = dict(zip(positions, [name for group in names for name in group], strict=True))
    states = {named[position]: state for position, state in saved["state"].items()}
    _refuse_other_shapes(states, model, file)
    return SavedState(states, saved["param_groups"], file)


def _refuse_other_shapes(states: Mapping[str, Mapping[str, Any]], model: nn.Module, file: Path) -> None:
    """The order that was found again has to fit everywhere."""
    shapes = {plain_name(name): tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for name, state in states.items():
        for key in state.keys() & {"exp_avg", "exp_avg_sq"}:
            if tuple(state[key].shape) != shapes[name]:
                raise ValueError(
                    f"{key} of {name!r} in {file} has shape {tuple(state[key].shape)}, the parameter "
                    f"{shapes[name]}: it is of another model, or in another order"
                )


def _by_name(file: Path, model: nn.Module) -> SavedState:
    """As FSDP saves a whole state; torch's converter of sharded ones wraps it in "optimizer"."""
    saved = _load(file)
    saved = saved.get("optimizer", saved)
    known = {plain_name(name) for name, _ in model.named_parameters()}
    if strange := sorted(set(saved["state"]) - known):
        raise ValueError(
            f"{file} holds the state of {strange[0]!r} and {len(strange) - 1} more that the model has not; "
            "give the model that was trained, under the same adapter's name"
        )
    for name, state in saved["state"].items():
        if {"exp_avg", "exp_avg_sq"} <= state.keys() and _same_memory(state["exp_avg"], state["exp_avg_sq"]):
            # torch 2.13 gathers FSDP1's states one by one into one buffer, and on a CPU copies none out.
            raise ValueError(
                f"{file} holds one tensor for both moments of {name!r}, as FSDP1 saves them on a CPU: the "
                "first is lost; train with fsdp_version 2"
            )
    return SavedState(saved["state"], saved["param_groups"], file)


def _same_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.numel() > 0 and one.data_ptr() == other.data_ptr()


def _load(file: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return loaded


def _remedy(folder: Path) -> str:
    """What to do about what is there instead of a state that can be read."""
    if (sharded := folder / "optimizer_0").is_dir():
        convert = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch"
        return f"FSDP's is in shards; join them: {convert} {sharded} {folder / 'optimizer.bin'}"
    if any(folder.glob("global_step*")):
        return (
            "DeepSpeed's is in flat shards without names; save it by name as optimizer.bin (docs/signals.md) "
            "or make the run without DeepSpeed"
        )
    return "it has neither optimizer.pt nor optimizer.bin; save checkpoints with save_only_model=False"

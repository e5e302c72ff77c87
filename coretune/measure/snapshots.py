"""Snapshots of a training run: trainable weights, learning rate, optimiser moments of `checkpoint-N` folders.

    checkpoint-N/   adapter_model.safetensors, or model.safetensors (in shards: its index)   weights
                    trainer_state.json, scheduler.pt                                         learning rate
                    optimizer.pt                                                             moments

Read by name and shape; what is missing or of another shape is an error that names it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from coretune.files import read_json
from coretune.measure.moments import Moments
from coretune.measure.parameters import MAGNITUDE, is_peft

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
STATE = "trainer_state.json"
# PEFT leaves the adapter's name out of its files, the wrapper of modules that are trained whole, and what it
# has put DoRA's magnitudes into.
_WRAPPER = re.compile(r"modules_to_save\.[^.]+\.")
_MAGNITUDE = re.compile(rf"({MAGNITUDE})\.weight$")


@dataclass(frozen=True)
class Snapshot:
    """A model's trainable state at one point of its training.

    weights        parameter name -> tensor on the CPU; empty = the weights that the model has when measured
    learning_rate  η > 0, what the gradients of this state count for in a trajectory
    moments        Adam's, for a preconditioner; None where none is asked for
    """

    name: str
    weights: Mapping[str, Tensor]
    learning_rate: float
    moments: Moments | None = None

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(
                f"the learning rate of snapshot {self.name} is {self.learning_rate}: its gradients would "
                "count for nothing; take snapshots from before the end of the schedule"
            )

    @staticmethod
    def read(
        folder: str | Path, model: nn.Module, *, after: int | None = None, with_moments: bool = False
    ) -> Snapshot:
        """The snapshot in a checkpoint folder of transformers, for the trainable parameters of `model`.

        after         step of the snapshot before this one, for the learning rate (see `learning_rate`); None:
                      the step of the checkpoint before it in the same folder, or 0
        with_moments  read the optimiser's moments too

        ValueError: no weights or no learning rate in the folder; a trainable parameter that is missing there
        or has another shape.
        """
        folder = Path(folder)
        own = _step(folder)
        if after is None:
            earlier = [step for step in _checkpoints(folder.parent) if step < own]
            after = max(earlier, default=0)
        return Snapshot(
            folder.name,
            read_weights(folder, model),
            learning_rate(folder, after),
            Moments.from_checkpoint(folder, model) if with_moments else None,
        )


def find_snapshots(folder: str | Path, count: int) -> list[Path]:
    """`count` of the `checkpoint-N` folders in `folder`, by step: evenly spaced, the last included.

    Evenly spaced among the checkpoints there are, not by step: whoever saved them chose where.
    ValueError when there are fewer, or no such folder.
    """
    if not Path(folder).is_dir():
        raise ValueError(
            f"checkpoints_from is {folder}, and there is no such folder; give one of checkpoint-N folders"
        )
    found = _checkpoints(Path(folder))
    if len(found) < count:
        raise ValueError(
            f"{folder} holds {len(found)} checkpoint-N folders, {count} are asked for: "
            "ask for fewer checkpoints, or save more often (save_steps, save_total_limit)"
        )
    steps = sorted(found)
    return [found[steps[len(steps) * (i + 1) // count - 1]] for i in range(count)]


def read_snapshots(
    folders: Sequence[Path], model: nn.Module, *, with_moments: bool = False
) -> list[Snapshot]:
    """The snapshots in these folders, in order of step, each with the mean learning rate since the last."""
    ordered = sorted(folders, key=_step)
    before = [0, *(_step(folder) for folder in ordered[:-1])]
    return [
        Snapshot.read(folder, model, after=after, with_moments=with_moments)
        for folder, after in zip(ordered, before, strict=True)
    ]


@contextmanager
def swapped(model: nn.Module, snapshot: Snapshot) -> Iterator[None]:
    """Inside, the model has the snapshot's weights; afterwards, after an exception too, its own, bit for bit.

    Written in place, so that optimisers and wrappers hold the same tensors throughout. ValueError where the
    model lacks a parameter of the snapshot or has it in another shape; then nothing was changed.
    """
    parameters = dict(model.named_parameters())
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    given = {name: tuple(weight.shape) for name, weight in snapshot.weights.items()}
    _refuse_others(given, shapes, "the model", f"snapshot {snapshot.name}")
    own = {name: parameters[name].detach().to("cpu", copy=True) for name in snapshot.weights}
    try:
        _write(parameters, snapshot.weights)
        yield
    finally:
        _write(parameters, own)


def read_weights(folder: Path, model: Any) -> dict[str, Tensor]:
    """Name -> CPU tensor of every trainable parameter of `model`, from the folder's safetensors files."""
    names: dict[str, list[str]] = {}  # a tied parameter has several, and a file keeps any one of them
    wanted: dict[str, Tensor] = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    same = {id(parameter): name for name, parameter in wanted.items()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in same:
            names.setdefault(same[id(parameter)], []).append(name)
    if not wanted:
        raise ValueError("the model has no trainable parameter: a snapshot of it would hold nothing")
    adapters = frozenset(model.peft_config) if is_peft(model) else frozenset()
    files, file_name = _files(folder, adapters)
    places = {
        name: next((key for key in map(file_name, names[name]) if key in files), file_name(name))
        for name in wanted
    }
    found = {name: _tensor(files[key], key) for name, key in places.items() if key in files}
    if len(found) < len(wanted) and file_name is str:
        found |= _renamed(folder, model, {name for name in wanted if name not in found})
    _refuse_others(
        {name: tuple(parameter.shape) for name, parameter in wanted.items()},
        {name: tuple(weight.shape) for name, weight in found.items()},
        str(folder),
        "the model",
    )
    return found


def _renamed(folder: Path, model: Any, names: set[str]) -> dict[str, Tensor]:
    """Those of the names that the folder's files have under others, or in other pieces.

    transformers (5) keeps some models otherwise on disk than in memory (GPT-NeoX's head; the experts of
    Mixtral and Qwen-MoE one by one), and only the model's own `from_pretrained` knows both.
    """
    if not hasattr(type(model), "from_pretrained") or not (folder / "config.json").is_file():
        return {}
    with torch.random.fork_rng(devices=[]):
        loaded = type(model).from_pretrained(folder, dtype="auto", output_loading_info=True)
    whole, report = loaded
    lacking = names & set(report["missing_keys"])
    return {name: p.detach() for name, p in whole.named_parameters() if name in names - lacking}


def learning_rate(folder: Path, after: int) -> float:
    """Mean learning rate over the steps after `after` up to the checkpoint's own.

    [LESS, Xia et al. 2024, Section 3.2: η_i is the average learning rate of the i-th epoch] The rate at the
    checkpoint's step alone would be nearly 0 at the end of a schedule that ends there. A step's rate is what
    the trainer logged for it, between two that are known it is interpolated, beyond the first and the last it
    is theirs; the step after the checkpoint is known from scheduler.pt. ValueError when nothing is known.
    """
    state = read_json(folder / STATE, f"remove {folder}, or restore it")
    known = {
        int(entry["step"]): float(entry["learning_rate"])
        for entry in state["log_history"]
        if "learning_rate" in entry
    }
    last = int(state["global_step"])
    if (schedule := folder / "scheduler.pt").is_file():
        known[last + 1] = float(torch.load(schedule, map_location="cpu", weights_only=True)["_last_lr"][0])
    if not known:
        raise ValueError(
            f"no learning rate in {folder}: trainer_state.json logs none and there is no scheduler.pt; "
            "train the warm-up run with logging_steps=1 or without save_only_model"
        )
    steps = sorted(known)
    return float(np.interp(np.arange(after + 1, last + 1), steps, [known[step] for step in steps]).mean())


def _checkpoints(folder: Path) -> dict[int, Path]:
    """Step -> folder, of those that are finished: trainer_state.json is what transformers writes last."""
    matched = ((CHECKPOINT.fullmatch(path.name), path) for path in folder.glob("checkpoint-*"))
    return {int(match[1]): path for match, path in matched if match and _finished(path)}


def _finished(folder: Path) -> bool:
    try:
        read_json(folder / STATE)
    except (FileNotFoundError, ValueError):  # a kill came before its end
        return False
    return True


def _step(folder: Path) -> int:
    if not (folder / STATE).is_file():
        raise ValueError(f"{folder} is no checkpoint of transformers: it has no {STATE}")
    return int(read_json(folder / STATE, f"remove {folder}, or restore it")["global_step"])


def _files(folder: Path, adapters: Collection[str]) -> tuple[dict[str, Path], Callable[[str], str]]:
    """Key -> file of the folder's weights, and how a parameter of the model is called there.

    adapters  their names in the model
    """
    adapter, whole, index = (
        folder / name
        for name in ("adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json")
    )
    if adapter.is_file():
        return dict.fromkeys(_keys(adapter), adapter), partial(_adapter_key, adapters)
    if whole.is_file():
        return dict.fromkeys(_keys(whole), whole), str
    if index.is_file():
        placed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {key: folder / file for key, file in placed.items()}, str
    raise ValueError(
        f"{folder} has neither adapter_model.safetensors nor model.safetensors; "
        "save the checkpoints as safetensors"
    )


def _adapter_key(adapters: Collection[str], name: str) -> str:
    parts = [part for part in _WRAPPER.sub("", name).split(".") if part not in adapters]
    return _MAGNITUDE.sub(r"\1", ".".join(parts))


def _keys(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as opened:
        return list(opened.keys())


def _tensor(file: Path, key: str) -> Tensor:
    with safe_open(file, framework="pt") as opened:
        tensor: Tensor = opened.get_tensor(key)
        return tensor


def _refuse_others(
    wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], place: str, owner: str
) -> None:
    """ValueError names a wanted parameter that is not found, or has another shape."""
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ValueError(
            f"{place} lacks {len(missing)} of the {len(wanted)} parameters of {owner}, as {missing[0]!r}: "
            "the warm-up run must have been trained with the same parameters (adapter, frozen layers)"
        )
    for name, shape in wanted.items():
        if found[name] != shape:
            raise ValueError(
                f"{name!r} has shape {found[name]} in {place} and {shape} in {owner}: "
                "they are of different models or adapters"
            )


def _write(parameters: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, weight in weights.items():
            parameters[name].copy_(weight)

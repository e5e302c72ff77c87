"""Checkpoints whose bytes are known, and whose weights are compared after they were loaded.

    save:  stock files ─► write_record (checkpoints.py) ─► trainer_state.json ─► its checksum
    load:  stock load ─► each trained weight as it was? ─► else under the names of the files ─► else refused

The stock trainer loads a state dict by name and leaves alone what it does not find: where a model is called
otherwise in files than in memory (GPT-NeoX's head, the fused experts of Mixtral and Qwen-MoE) it would go on
with other weights.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer

from coretune.escaping import first_line
from coretune.measure.snapshots import read_weights
from coretune.training.checkpoints import add_trainer_state, saved_weights, write_record
from coretune.training.identity import trained_checksums

log = logging.getLogger("coretune")
SHOWN = 3  # names in a message


class VerifiedCheckpoints(Trainer):
    """A stock trainer whose checkpoints have checksums, and that goes on with the weights that were saved."""

    def checkpoint_content(self) -> Mapping[str, Any]:
        """What the record of a checkpoint says beside files, step and weights; asked of process 0."""
        return {}

    def meet(self) -> None:
        """Wait for all processes."""
        self.accelerator.wait_for_everyone()

    def _save_rng_state(self, output_dir: str) -> None:
        """What transformers (5.23) writes before trainer_state.json; then nothing but that is missing."""
        super()._save_rng_state(output_dir)
        weights = trained_checksums(self.model)
        self.meet()  # every process has written what it writes
        if self.is_world_process_zero():
            write_record(output_dir, self.checkpoint_content(), self.state.global_step, weights)
        self.meet()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.is_world_process_zero():
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            add_trainer_state(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        check_loaded(resume_from_checkpoint, self.model)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        check_loaded(self.state.best_model_checkpoint, self.model)


def check_loaded(folder: str, model: nn.Module) -> None:
    """Every trained weight is what its record says, or is made so; ValueError names the others."""
    saved = saved_weights(folder)
    if not saved or not (wrong := _different(model, saved)):
        return
    reason = ""
    try:
        _restore(Path(folder), model, wrong)
    except (ValueError, OSError, RuntimeError) as error:
        reason = f" ({first_line(error)})"
    restored, wrong = wrong, _different(model, saved)
    if not wrong:
        log.warning(
            "%s: its files name %d weights otherwise than the model, as %s; they were loaded all the same",
            folder,
            len(restored),
            restored[0],
        )
        return
    few = ", ".join(wrong[:SHOWN]) + (", …" if len(wrong) > SHOWN else "")
    raise ValueError(
        f"{folder}: {len(wrong)} of {len(saved)} trained weights are not those that were saved, as "
        f"{few}{reason}: files and memory name them differently; go on with the versions that saved it"
    )


def _different(model: nn.Module, saved: Mapping[str, str]) -> list[str]:
    now = trained_checksums(model)
    return [name for name in {**saved, **now} if saved.get(name) != now.get(name)]


def _restore(folder: Path, model: nn.Module, names: list[str]) -> None:
    """These weights as the folder's files have them under whatever names."""
    found = read_weights(folder, model)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name in names:
            if name in found and name in parameters:
                parameters[name].copy_(found[name])

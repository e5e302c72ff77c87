"""What a run writes through the stock trainer: weights before all else, what is not weights never stops it.

A full disk leaves no half-written checkpoint behind, and is one line with path and need.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch.distributed.fsdp import StateDictType

from coretune.files import read_json, write_json, writing
from coretune.training.run_folder import drop_old, remove_checkpoint
from coretune.training.verified_checkpoints import VerifiedCheckpoints

log = logging.getLogger("coretune")
REMEDY = "make room and go on with resume_from_checkpoint: true"


@contextmanager
def side_product(path: str | Path) -> Iterator[None]:
    """What a run can do without: what is raised inside is a warning with the path, and the run goes on."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        log.warning("%s was not written, the run goes on: %s", path, reason)


class SavingTrainer(VerifiedCheckpoints):
    """A stock trainer whose files are whole, and which removes no folder but its own old checkpoints."""

    _checkpoint_limit: int | None = None

    @contextmanager
    def own_rotation(self) -> Iterator[None]:
        """Inside, old checkpoints are removed by `drop_old`, not by the stock trainer."""
        self._checkpoint_limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            yield
        finally:
            self.args.save_total_limit = self._checkpoint_limit

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        whole = nullcontext() if _internal_call else self._whole_weights()
        with writing(output_dir or self.args.output_dir, self._bytes(optimizer=False), REMEDY), whole:
            super().save_model(output_dir, _internal_call)

    @contextmanager
    def _whole_weights(self) -> Iterator[None]:
        """Inside, weights that FSDP splits are saved whole: with split checkpoints (SHARDED_STATE_DICT) the
        stock trainer (5.23) saves no model at the end, and says nothing of it."""
        if not self.is_fsdp_enabled:
            yield
            return
        plugin = self.accelerator.state.fsdp_plugin
        kept, plugin.state_dict_type = plugin.state_dict_type, StateDictType.FULL_STATE_DICT
        try:
            yield
        finally:
            plugin.state_dict_type = kept

    def begin_checkpoint(self, folder: Path) -> None:
        """Write into a checkpoint's folder what comes before the stock trainer's files."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run = self._get_output_dir(trial=trial)
        folder = Path(run) / f"checkpoint-{self.state.global_step}"
        try:
            with writing(folder, self._bytes(optimizer=True), REMEDY):
                self.begin_checkpoint(folder)
                super()._save_checkpoint(model, trial)
        except Exception:
            if self.args.should_save:
                remove_checkpoint(folder)  # its room is needed, and it is of no use
            raise
        if self.args.should_save:
            drop_old(run, self._checkpoint_limit, [str(folder), self.state.best_model_checkpoint])

    def save_state(self) -> None:
        if self.is_world_process_zero():
            write_json(Path(self.args.output_dir) / "trainer_state.json", asdict(self.state), indent=2)

    def save_metrics(self, split: str, metrics: dict[str, float], combined: bool = True) -> None:
        """As the stock method, but whole or not at all; an all_results.json that was cut is begun anew."""
        if not self.is_world_process_zero():
            return
        folder, everything = Path(self.args.output_dir), dict[str, float]()
        write_json(folder / f"{split}_results.json", dict(sorted(metrics.items())), indent=4)
        if combined:
            with suppress(FileNotFoundError, ValueError):
                everything = dict(read_json(folder / "all_results.json"))
            write_json(folder / "all_results.json", dict(sorted({**everything, **metrics}.items())), indent=4)

    def _bytes(self, optimizer: bool) -> int:
        """What a save takes, or a little more: of an adapter only what is trained is kept."""
        parameters = list(self.model.parameters())
        trained = [one for one in parameters if one.requires_grad]
        sizes = sum(one.numel() * one.element_size() for one in (trained or parameters))
        states = getattr(self.optimizer, "state", {}) if optimizer else {}
        kept = [value for state in states.values() for value in state.values() if hasattr(value, "numel")]
        return sizes + sum(value.numel() * value.element_size() for value in kept)

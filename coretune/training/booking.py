"""A stock trainer whose steps and evaluations are booked in the ledger."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from coretune.ledger import Ledger
from coretune.recording import selection_log
from coretune.recording.run_files import SPIKES
from coretune.recording.spikes import record_spike, spike, usual
from coretune.rounds.sampler import PoolRows, row_lengths
from coretune.training.finite import warn_of_broken_evaluation
from coretune.training.model_cost import ModelCost
from coretune.training.processes import Processes
from coretune.training.run_signals import RunSignals
from coretune.training.saving import SavingTrainer, side_product
from coretune.types import Array, Rows

log = logging.getLogger("coretune")
LINE = 1000  # steps of a log line whose rows are remembered


class BookingTrainer(SavingTrainer):
    """Whose ledger, costs and processes are set before anything is trained."""

    ledger: Ledger
    cost: ModelCost
    processes: Processes
    signals: RunSignals
    pool_rows: PoolRows
    _step_began = 0.0
    _evaluated: Array = np.zeros(3)  # rows, tokens, FLOPs that are not booked yet

    @cached_property
    def _trained(self) -> deque[Rows]:
        """Of each step since the last log line."""
        return deque(maxlen=LINE)

    def begin_step(self) -> None:
        self._step_began = self.ledger.clock()

    def book_step(self, rows: Rows, lengths: Array, warming_up: bool) -> None:
        """A step on these rows, lengths (n,) the pool's tokens; as training or as warm-up."""
        tokens, flops = int(lengths[rows].sum()), self.cost.training(rows)
        self._trained.append(rows)
        if warming_up:
            seconds = self.ledger.clock() - self._step_began
            self.ledger.add("warm-up", seconds=seconds, rows=len(rows), tokens=tokens, flops=flops)
        else:  # the seconds are those of the phase that `train` has opened
            self.ledger.add("training", rows=len(rows), tokens=tokens, flops=flops)

    def book_evaluated(self, inputs: Mapping[str, Any]) -> None:
        """A batch of an evaluation, until `evaluate` books all."""
        lengths = row_lengths(inputs)
        batch = np.array([len(lengths), lengths.sum(), self.cost.evaluation(lengths)])
        self._evaluated = self._evaluated + batch

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The stock line, and the cost so far. A warning names the rows of a loss that stands out."""
        if "loss" in logs and self._trained:
            if self.is_world_process_zero():
                self._watch(float(logs["loss"]), np.concatenate(self._trained), len(self._trained))
            self._trained.clear()
        super().log({**logs, **selection_log.totals(self.ledger)}, *args, **kwargs)

    def _watch(self, loss: float, rows: Rows, steps: int) -> None:
        """rows: of the last so many steps, of all processes; what a step showed is known of this one's."""
        usually = usual((line["loss"] for line in reversed(self.state.log_history) if "loss" in line), loss)
        if usually is None:
            return
        step, online = int(self.state.global_step), self.signals.online
        seen = np.full(len(rows), np.nan) if online is None else online.reader.loss_of(rows, step - steps)
        found = spike(step, loss, usually, rows, seen, self.pool_rows.ids)
        log.warning("%s", found.line)
        with side_product(Path(self.args.output_dir) / SPIKES):
            record_spike(Path(self.args.output_dir), found)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The stock evaluation, booked. The random state stays as it was: an evaluation that comes after a
        checkpoint is not made again by a run that goes on from there."""
        random = torch.get_rng_state()
        with self.ledger.phase("evaluation"):
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)
            rows, tokens, flops = self.processes.total(self._evaluated)
            self.ledger.add("evaluation", rows=int(rows), tokens=int(tokens), flops=float(flops))
            self._evaluated = np.zeros(3)  # of several datasets each is booked by its own call
        torch.set_rng_state(random)
        if self.is_world_process_zero():
            warn_of_broken_evaluation(metrics, self.state.global_step)
        return metrics

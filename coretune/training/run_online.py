"""A run's online signals: around its training steps, from all of its processes, and in its checkpoints.

training step ─► `OnlineReader` of this process ─┐
… of every other process ───────────────────┴─► next refresh, on process 0: rows that need no measurement
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from coretune.measure.online import OnlineReader
from coretune.measure.settings import MeasureSettings
from coretune.measure.step_signals import StepSignals, latest, load, save
from coretune.rounds.sampler import EXAMPLE_ID
from coretune.training.processes import Processes
from coretune.types import Array, Rows

FILE = "coretune_online_{}.npz"  # of each process, beside the weights in every checkpoint


class RunOnlineSignals:
    """Made once for a trainer. ValueError for signals that a training step does not show."""

    def __init__(
        self, model: Any, signals: Sequence[str], settings: MeasureSettings, processes: Processes
    ) -> None:
        self.reader, self.processes = OnlineReader(model, signals, settings), processes
        self.began = False
        processes.answers("online signals", self.reader.take)

    def around(self, inputs: Mapping[str, Any], step: int) -> AbstractContextManager[None]:
        """To be entered for the forward and backward of these inputs, after `step` optimiser steps.

        Nothing is kept before a first coreset is trained on: the first measurement is of all rows anyway.
        """
        if not self.began:
            return nullcontext()
        return self.reader.watching(inputs[EXAMPLE_ID], inputs["labels"], inputs["attention_mask"], step)

    def taken(self) -> tuple[Rows, Mapping[str, Array]]:
        """What all processes kept since the last time, a row as it was last seen; on process 0 while it
        decides (see `processes.py`)."""
        seen = latest(self.processes.call("online signals"))
        return seen.rows, seen.signals

    def save(self, folder: Path) -> None:
        """Write what this process holds; on every process."""
        folder.mkdir(parents=True, exist_ok=True)
        held = self.reader.take()
        self.reader.put(held)
        save(held, folder / FILE.format(self.processes.rank))

    def load(self, folder: Path) -> None:
        """Go on from what all processes wrote, however many they were; it is kept by process 0."""
        if self.processes.first:
            found = [load(path) for path in sorted(folder.glob(FILE.format("*")))]
            self.reader.put(latest(found or [_nothing()]))


def _nothing() -> StepSignals:
    return StepSignals(np.zeros(0, np.int64), np.zeros(0, np.int64), {})

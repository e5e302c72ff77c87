"""Signals of rows as they were last seen: from several processes, and on disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coretune.files import atomic_write
from coretune.types import Array, Rows


@dataclass(frozen=True)
class StepSignals:
    """Rows that training passed through, each as it was last seen.

    rows     (m,) int64, rising
    step     (m,) int64  optimiser steps made before
    signals  name -> (m, ...) float32, all finite
    """

    rows: Rows
    step: Array
    signals: dict[str, Array]


def latest(parts: Sequence[StepSignals]) -> StepSignals:
    """All that several saw, a row as it was last seen."""
    parts = [part for part in parts if len(part.rows)] or list(parts[:1])
    rows = np.concatenate([part.rows for part in parts])
    step = np.concatenate([part.step for part in parts])
    order = np.lexsort((step, rows))
    last = order[np.append(rows[order][1:] != rows[order][:-1], np.ones(min(1, len(rows)), bool))]
    names = parts[0].signals
    signals = {name: np.concatenate([part.signals[name] for part in parts])[last] for name in names}
    return StepSignals(rows[last], step[last], signals)


def save(seen: StepSignals, path: str | os.PathLike[str]) -> None:
    """Write to an .npz file; `load` gives back an equal one."""
    signals = {f"signal/{name}": values for name, values in seen.signals.items()}
    with atomic_write(path) as file:
        np.savez(file, rows=seen.rows, step=seen.step, **signals)  # type: ignore[arg-type]


def load(path: str | os.PathLike[str]) -> StepSignals:
    """Read what `save` wrote."""
    with np.load(path) as arrays:
        signals = {key.partition("/")[2]: arrays[key] for key in arrays.files if key.startswith("signal/")}
        return StepSignals(arrays["rows"], arrays["step"], signals)

"""Steps whose loss stood out, and the rows that were in their batches: RUN/_coretune/spikes.json."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from coretune.files import read_json, write_json
from coretune.recording.run_files import SPIKES
from coretune.types import Array, Rows

WINDOW, LEAST = 32, 8  # logged losses before a line that it is held against
FAR, TIMES = 6.0, 1.5  # [choice] deviations above their median, and times it
NAMED = 8  # rows of a spike by name


@dataclass(frozen=True)
class Spike:
    """step: that of the log line; usual: the median before it; rows: ids, the highest loss first; losses: of
    each, None where the step did not show it; batch: how many rows the line is of."""

    step: int
    loss: float
    usual: float
    rows: list[str]
    losses: list[float | None]
    batch: int

    @property
    def line(self) -> str:
        shown = [
            name if loss is None else f"{name} ({loss:.2f})"
            for name, loss in zip(self.rows, self.losses, strict=True)
        ]
        more = f" and {self.batch - len(shown)} more" if self.batch > len(shown) else ""
        return (
            f"step {self.step}: the loss is {self.loss:.3f}, and was about {self.usual:.3f}; "
            f"in the batch: {', '.join(shown)}{more}"
        )


def usual(before: Iterable[float], loss: float) -> float | None:
    """The median of the losses before, where this one stands out; None where it does not, or few are known.

    By the median absolute deviation, which a spike before does not widen.

    before  the newest first
    """
    last = np.array(list(islice(before, WINDOW)), np.float64)
    last = last[np.isfinite(last)]
    if len(last) < LEAST or not np.isfinite(loss):
        return None
    middle = float(np.median(last))
    deviation = 1.4826 * float(np.median(np.abs(last - middle)))
    return middle if loss > max(middle + FAR * deviation, TIMES * middle) else None


def spike(step: int, loss: float, usually: float, rows: Rows, seen: Array, ids: Sequence[str]) -> Spike:
    """rows (m,) of the pool in the order trained, each once or more; seen (m,) their losses, NaN = none."""
    _, first = np.unique(rows, return_index=True)
    first.sort()
    rows, seen = rows[first], seen[first]
    order = np.argsort(-np.nan_to_num(seen, nan=-np.inf), kind="stable")[:NAMED]
    losses = [round(float(seen[i]), 4) if np.isfinite(seen[i]) else None for i in order]
    return Spike(step, round(loss, 5), round(usually, 5), [ids[rows[i]] for i in order], losses, len(rows))


def record_spike(folder: Path, found: Spike) -> None:
    """Behind those of earlier steps; a run that goes on from an earlier one writes the later ones anew."""
    path = folder / SPIKES
    before = read_json(path) if path.is_file() else []
    write_json(path, [*(one for one in before if one["step"] < found.step), asdict(found)])

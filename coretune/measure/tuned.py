"""`target_loss`: each row's loss under weights that were tuned on a target's examples alone.

base model ─ warm-up on target s ─► snapshot s ─ weights in ─► losses, column s ─ weights out
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from coretune.measure.batches import TokenRows
from coretune.measure.settings import MeasureSettings
from coretune.measure.signals import measurer
from coretune.measure.snapshots import Snapshot, swapped
from coretune.types import TARGET_LOSS, Array, Measure, Rows


def tuned_measurer(
    model: Any,
    rows: TokenRows,
    settings: MeasureSettings,
    snapshots: Callable[[], Sequence[Snapshot]],
    *,
    pad_token_id: int,
    bos_token_id: int,
) -> Measure:
    """The measurement of `target_loss` (m, S) float32, a forward pass for each snapshot.

    snapshots  one a target, asked for at the first measurement

    After every call the model has its own weights again, bit for bit.
    """
    measure = measurer(model, rows, ["loss"], settings, pad_token_id=pad_token_id, bos_token_id=bos_token_id)
    known: list[Snapshot] = []

    def measured(asked: Rows) -> dict[str, Array]:
        if not known:
            known.extend(snapshots())
        columns = []
        for snapshot in known:
            with swapped(model, snapshot):
                columns.append(measure(asked)["loss"])
        return {TARGET_LOSS: np.stack(columns, axis=1)}

    return measured

"""Whether a coreset is kept: the adaptive test, after CREST (Yang et al. 2023), which tests its loss so."""

from __future__ import annotations

import numpy as np

from coretune.rounds.schedule import CoresetConfig
from coretune.rounds.state import State
from coretune.types import Pool, Rows


def still_good(config: CoresetConfig, state: State, pool: Pool, rows: Rows) -> bool:
    """Whether what was believed of `rows` before they were measured is still true enough."""
    if not state.selections or not pool.usable[state.coreset.indices].all():
        return False
    rows = rows[pool.usable[rows]]
    if len(rows) == 0:
        return True
    name = config.refresh.priority_score
    believed, found = state.pool.feature(name)[rows], pool.feature(name)[rows]
    error = np.abs(found - believed).mean() / max(float(np.abs(believed).mean()), 1e-12)
    return bool(error <= config.threshold)

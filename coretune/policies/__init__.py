"""Whom a refresh measures again, and how what it finds spreads to the rows it did not measure.

paper.py  GRACE's, as published · anchors.py  which anchors are planned · update.py  what measured rows tell
Ours: narrowing.py  the method's signals of few rows alone
Ours: reuse.py deferral.py  what is measured again, and when first · propagation.py drift.py  other updates
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from coretune.policies.anchors import Planned
from coretune.policies.reuse import Reuse
from coretune.rounds.schedule import CoresetConfig
from coretune.rounds.state import State
from coretune.types import Coreset, Pool, RefreshPolicy


def policy_of(
    config: CoresetConfig, state: State, online: bool, choose: Callable[[Pool], Coreset]
) -> RefreshPolicy:
    """The one that `AnchorRefresh.anchors` names, for the refresh of this state; arguments as of `Reuse`."""
    rng = np.random.default_rng([config.seed, state.round, 3])
    if config.refresh.anchors == "candidates":
        return Reuse(config, state, online, choose, rng)
    return Planned(config.refresh, state.round, rng)

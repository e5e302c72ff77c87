"""Methods that select by the engine that size, memory and deadline ask for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from coretune.select.brief import Brief
from coretune.select.craig import Craig
from coretune.select.engines import Plan, bytes_of, engine_within, seconds_of
from coretune.select.facility_location import FacilityLocation
from coretune.select.grace import Grace
from coretune.types import Budget, Coreset, Pool

#: Their greedy may be another one.
COVERING = (Craig, FacilityLocation, Grace)
WITHIN_LIMITS = (*COVERING, Brief)


def select_within(
    selector: Craig | FacilityLocation | Grace | Brief,
    pool: Pool,
    budget: Budget,
    rng: np.random.Generator,
    memory: str,
    deadline: str | None,
) -> Coreset:
    """`selector.select`; figures tell the guarantee where it is not that of one greedy run."""
    if isinstance(selector, Brief):
        return selector.choose(pool, budget, rng, memory_limit=memory, deadline=deadline)
    plans: list[Plan] = []
    seed = int(rng.integers(2**62))
    engine = engine_within(selector.name, bytes_of(memory), seconds_of(deadline), seed, plans)
    chosen = selector.choose(pool, budget, engine)
    if not plans or plans[0].kind != "two rounds":
        return chosen
    return replace(chosen, figures={**chosen.figures, "guarantee": plans[0].guarantee})

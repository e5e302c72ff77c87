"""A method's selection with its heavy passes on Ray: `coreset.engine: ray`."""

from __future__ import annotations

import numpy as np

from coretune.select.gtp import Gtp
from coretune.types import Budget, Coreset, Pool, Selector

#: Methods that have a form for a cluster.
SPREAD = (Gtp,)


def refuse_on_ray(selector: Selector) -> None:
    """ValueError for a method, or a setting of it, that has no form for a cluster."""
    if not isinstance(selector, SPREAD):
        known = ", ".join(method.name for method in SPREAD)
        raise ValueError(
            f"engine is ray, and {type(selector).__name__.lower()} selects on one machine only; "
            f"with Ray there are {known}; set engine to local"
        )


def select_on_ray(
    selector: Selector, pool: Pool, budget: Budget, rng: np.random.Generator, address: str | None = None
) -> Coreset:
    """`selector.select` by workers; see docs/cluster.md for what is the same and what is not.

    address  of a Ray cluster; None starts Ray on this machine's cores, for this selection
    """
    refuse_on_ray(selector)
    from coretune.cluster.session import connected

    with connected(address) as workers:
        assert isinstance(selector, Gtp)
        return _pursuit(selector, pool, budget, workers)


def _pursuit(selector: Gtp, pool: Pool, budget: Budget, workers: int) -> Coreset:
    from coretune.cluster.columns import RayColumns  # here: it imports Ray

    return selector.choose(pool, budget, lambda features: RayColumns.of(features, workers))

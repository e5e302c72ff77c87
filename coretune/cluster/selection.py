"""A method's selection with its heavy passes on Ray: `coreset.solver.engine: ray`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np

from coretune.engines.covering import COVERING
from coretune.select import engines
from coretune.select.brief import Brief
from coretune.select.craig import Craig
from coretune.select.facility_location import FacilityLocation
from coretune.select.grace import Grace
from coretune.select.gtp import Gtp
from coretune.select.two_rounds import PART_ROWS, two_rounds
from coretune.types import Budget, Coreset, Pool, Selector

log = logging.getLogger("coretune")

#: Methods that have a form for a cluster.
SPREAD = (*COVERING, Brief, Gtp)

GUARANTEE = (
    f"two rounds over parts of at most {PART_ROWS:,} rows: weaker than one greedy's, each round's factor is "
    "of its own objective"
)


def refuse_on_ray(selector: Selector) -> None:
    """ValueError for a method, or a setting of it, that has no form for a cluster."""
    if not isinstance(selector, SPREAD):
        known = ", ".join(method.name for method in SPREAD)
        raise ValueError(
            f"engine is ray, and {type(selector).__name__.lower()} selects on one machine only; "
            f"with Ray there are {known}; set engine to local"
        )
    if isinstance(selector, Brief) and selector.lower in ("dense", "graph"):
        raise ValueError(
            f"engine is ray and lower is {selector.lower}, which one machine does: set lower to partitions, "
            "or engine to local"
        )
    if isinstance(selector, (FacilityLocation, Grace)) and selector.similarity == "graph":
        raise ValueError(
            "engine is ray and similarity is graph, of which parts would cut most edges: set similarity to "
            "dense, or engine to local, which takes seconds along a graph"
        )


def select_on_ray(
    selector: Selector,
    pool: Pool,
    budget: Budget,
    rng: np.random.Generator,
    address: str | None = None,
    limits: Mapping[str, Any] = MappingProxyType({}),
) -> Coreset:
    """`selector.select` by workers; see docs/cluster.md for what is the same and what is not.

    address  of a Ray cluster; None starts Ray on this machine's cores, for this selection
    limits   of `Brief.choose`, which goes by them on a cluster too
    """
    refuse_on_ray(selector)
    from coretune.cluster.session import connected  # here, as below: they import Ray

    with connected(address) as workers:
        if isinstance(selector, Brief):
            return _in_parts(selector, pool, budget, rng, workers, limits)
        if isinstance(selector, COVERING):
            return _in_two_rounds(selector, pool, budget, int(rng.integers(2**62)), workers)
        from coretune.cluster.columns import RayColumns

        assert isinstance(selector, Gtp)
        return selector.choose(pool, budget, lambda features: RayColumns.of(features, workers))


def _in_parts(
    selector: Brief,
    pool: Pool,
    budget: Budget,
    rng: np.random.Generator,
    workers: int,
    limits: Mapping[str, Any],
) -> Coreset:
    """[choice] Where the lower level is not given: partitions as soon as the pool is more than one."""
    from coretune.cluster.parts import PartsOnRay

    if selector.lower == "auto" and pool.usable.sum() > engines.PART_ROWS:
        selector = replace(selector, lower="partitions")
    parts = partial(PartsOnRay.of, workers=workers)
    return selector.choose(pool, budget, rng, parts, **limits)


def _in_two_rounds(
    selector: Craig | FacilityLocation | Grace, pool: Pool, budget: Budget, seed: int, workers: int
) -> Coreset:
    """[choice] A pool of one part is chosen from in one round, exactly, and leaves the workers idle."""
    if pool.usable.sum() <= PART_ROWS:
        log.info("%s: %d rows are one part, chosen from in one round", selector.name, pool.usable.sum())
        return selector.select(pool, budget, np.random.default_rng(seed))
    from coretune.cluster.parts import parts_on_ray

    log.warning("%s: %s", selector.name, GUARANTEE)
    chosen = selector.choose(pool, budget, partial(two_rounds, seed=seed, each=parts_on_ray(workers)))
    return replace(chosen, figures={**chosen.figures, "guarantee": GUARANTEE})

"""Who selects, how much and when: the settings of a run on a coreset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from coretune.cluster.selection import refuse_on_ray, select_on_ray
from coretune.engines.covering import WITHIN_LIMITS, select_within
from coretune.filters import DetectsNoise, chain
from coretune.filters.narrow import Narrow
from coretune.filters.target_rows import TargetRows
from coretune.measure.settings import MeasureSettings
from coretune.rounds.budget import BudgetRequest
from coretune.rounds.quota_request import QuotaRequest
from coretune.rounds.refresh_settings import PASSED, AnchorRefresh
from coretune.select.by_target import with_served
from coretune.select.engines import bytes_of, seconds_of
from coretune.select.greedy import check_budget
from coretune.types import (
    EMPTY_PROMPT_LOSS,
    TARGET_LOSS,
    TRAINERS_SEED,
    AlongGraph,
    Budget,
    Coreset,
    Filter,
    KeepsQuota,
    Pool,
    ReadsGraph,
    Selector,
    TrainersSeed,
    UsesCheckpoints,
)

WARMUP_SHARE = 0.05  # [choice, after LESS]
WARMUP = "warmup"  # checkpoints of the run on a random share of the pool


@dataclass(frozen=True)
class CoresetConfig:
    """Which method selects, how much, when, and how the pool is measured.

    Attributes:
        selector: The method, with its settings.
        refresh: Which rows are measured again, and how the others are estimated.
        budget: Size of the coreset: rows, a share of the pool, or tokens.
        filters: Which rows may be chosen (`coretune/filters/`), one after the other; () = all usable ones.
        refresh_every: Optimiser steps between selections. "pass" [choice]: as many as one pass over the
            coreset takes, so no row comes twice. "never": one selection.
        warmup: Share of the pool trained on at random before the first measurement; methods that measure
            nothing have none. "auto" [choice, after LESS]: 0.05 where gradients are measured, 0 where forward
            passes with the prompt, or with an empty one, tell all. For a method with a warm-up run of its
            own: share of the pool that this run is trained on; the training itself has no warm-up then.
        defer_first_measurement: [choice] GRACE, and random choice, with the filter noise defer the first
            measurement until noise detection is on: until then coresets are random draws
            (`policies/deferral.py`). These and the warm-up have one of exact duplicates, and no row twice
            before all came once. A first measurement that was deferred also needs a response that seems
            wrong.
        audit_every: After every so many selections, at the next one, measure the whole pool and report how
            far the estimates are off. None = never. Costs a full measurement each time.
        record_unchosen: Of a pool of more than 20,000 rows so many that were not chosen, drawn once from
            the seed, are recorded beside those that were; smaller pools are recorded whole (`audit.py`).
        train_on_target: Rows of the pool that equal an example of the target may be trained on; else they
            are left out, and one line counts them.
        weighted: Multiply each row's loss by its coreset weight.
        quota: At least and at most so much of the budget for rows of one source (`quota_request.py`).
        memory_limit: Memory of a greedy selection above the features, as 4GiB or 512MiB.
        deadline: Time of a selection between all pairs, as 90s, 10min or 2h, at a nominal speed
            (`engines.py`). A longer one is made in two rounds, BRIEF's along a graph. None = exact, however
            long it takes (BRIEF: some minutes).
        engine: "local", or "ray": selections on a Ray cluster (docs/cluster.md).
        ray_address: Of that cluster; None = a Ray of this machine's cores, started for each selection.
        signals: How signals are measured.
        seed: Of all that is drawn; TRAINERS_SEED = data_seed of the trainer's arguments, else seed.
    """

    selector: Selector
    refresh: AnchorRefresh
    budget: BudgetRequest
    filters: tuple[Filter, ...] = ()
    refresh_every: int | str = "pass"
    warmup: float | Literal["auto"] = "auto"
    defer_first_measurement: bool = True
    audit_every: int | None = None
    record_unchosen: int = 10_000
    train_on_target: bool = False
    weighted: bool = False
    quota: QuotaRequest | None = None
    memory_limit: str = "4GiB"
    deadline: str | None = None
    engine: str = "local"
    ray_address: str | None = None
    signals: MeasureSettings = field(default_factory=MeasureSettings)
    seed: int = TRAINERS_SEED

    def __post_init__(self) -> None:
        if isinstance(self.refresh_every, str):
            if self.refresh_every not in ("pass", "never"):
                raise ValueError(
                    f"refresh_every is {self.refresh_every!r}: give a number of steps, or pass or never"
                )
        elif self.refresh_every < 1:
            raise ValueError(f"refresh_every is {self.refresh_every}: give at least 1 step, or never")
        if not 0 <= self.warmup_share < 1:
            raise ValueError(f"warmup is {self.warmup}: give a share of the pool, 0 to below 1, or auto")
        if self.audit_every is not None and self.audit_every < 1:
            raise ValueError(f"audit_every is {self.audit_every}: give at least 1 selection")
        if self.record_unchosen < 0:
            raise ValueError(f"record_unchosen is {self.record_unchosen}: give a number of rows, 0 or more")
        names = [each.name for each in self.filters]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"filters has {twice[0]} twice: give each filter once")
        if sum(isinstance(each, DetectsNoise) for each in self.filters) > 1:
            raise ValueError("filters has noise and neighbours: give one of them")
        self._refuse_combinations()
        self._refuse_engines()
        self._refuse_quota()
        bytes_of(self.memory_limit)
        seconds_of(self.deadline)

    def select(self, pool: Pool, budget: Budget, rng: np.random.Generator) -> Coreset:
        """The selector's answer, of the rows that the filters leave, within the quota."""
        left = chain.apply(self.filters, pool, self.with_quota(pool, budget))
        return left.noted(with_served(left.pool, self._chosen(left.pool, left.budget, rng)))

    def _chosen(self, pool: Pool, budget: Budget, rng: np.random.Generator) -> Coreset:
        """By the engine asked for."""
        ours = type(self.selector) in WITHIN_LIMITS  # what is made from one of ours may select otherwise
        if self.engine == "local" and ours and isinstance(self.selector, WITHIN_LIMITS):
            return select_within(self.selector, pool, budget, rng, self.memory_limit, self.deadline)
        if self.engine == "local":
            return self.selector.select(pool, budget, rng)
        limits = {"memory_limit": self.memory_limit, "deadline": self.deadline}
        return select_on_ray(self.selector, pool, budget, rng, self.ray_address, limits)

    def with_quota(self, pool: Pool, budget: Budget) -> Budget:
        """The budget with the quota, if there is one; ValueError where the usable rows cannot fill both."""
        if self.quota is None:
            return budget
        budget = replace(budget, quota=self.quota.resolve(pool, budget))
        check_budget(budget, pool.cost, pool.usable)
        return budget

    def _refuse_quota(self) -> None:
        if self.quota is None:
            return
        selector = self.selector
        if not (isinstance(selector, KeepsQuota) and selector.keeps_quota):
            raise ValueError(
                f"quota is given, and {type(selector).__name__.lower()} keeps none: leave it out, or take "
                "another method (docs/scale.md)"
            )
        if self.engine == "ray":
            raise ValueError("quota is given, and engine is ray, which keeps none: set engine to local")

    def _refuse_engines(self) -> None:
        if self.engine not in ("local", "ray"):
            raise ValueError(f"engine is {self.engine!r}: give local or ray")
        if self.engine == "ray":
            refuse_on_ray(self.selector)
        elif self.ray_address is not None:
            raise ValueError(f"ray_address is {self.ray_address!r} and engine is local: set engine to ray")

    def _refuse_combinations(self) -> None:
        if self.audit_every is not None and self.refresh.rebuilds:
            raise ValueError(
                "audit_every compares estimates with a full measurement, and with anchors all and repair "
                "none every refresh is one: leave audit_every out"
            )
        changing = "trajectory" in self.selector.needs and self.refresh_every != "never"
        if changing and self.refresh.anchors != "all":
            raise ValueError(
                f"anchors is {self.refresh.anchors}, and trajectories of later measurements are shorter "
                "than the first, so that all rows are measured again: set anchors to all"
            )
        if TARGET_LOSS in self.selector.needs and (self.refresh_every != "never" or self.warmup_share):
            raise ValueError(
                f"{TARGET_LOSS} is compared with the loss before training: set refresh_every to never and "
                "warmup to 0"
            )
        if self.narrows_at and not self.refresh.starts_anew:
            raise ValueError(
                "filters has narrow, after which few rows have all signals, so that nothing can be spread to "
                "the others: set anchors to all, propagate and repair to none, refresh_every to never, pass "
                "or a number"
            )
        if isinstance(self.selector, AlongGraph) and self.refresh.embedding != self.selector.graph_of:
            raise ValueError(
                f"the method compares {self.selector.graph_of} and the graph is of {self.refresh.embedding}: "
                "give refresh the embedding of the method"
            )
        if self.train_on_target and any(isinstance(each, TargetRows) for each in self.filters):
            raise ValueError(
                "filters has target_rows, which takes out what train_on_target keeps: give one of them"
            )
        if self.has_warmup_run and self.warmup_share == 0:
            raise ValueError("warmup is 0 and the warm-up run is trained on that share of the pool: raise it")

    @property
    def uses_checkpoints(self) -> bool:
        """Whether the first selection measures at checkpoints of a warm-up run."""
        return isinstance(self.selector, UsesCheckpoints)

    @property
    def has_warmup_run(self) -> bool:
        """Whether these checkpoints are of this run's own warm-up run, and not a folder of the user's."""
        return isinstance(self.selector, UsesCheckpoints) and self.selector.checkpoints_from == WARMUP

    @property
    def needs(self) -> tuple[str, ...]:
        """Signals to measure; none for a selector that needs none."""
        asked = (*self.selector.needs, *self._needs_of(self.filters))
        if not asked:
            return ()
        audited = (
            (self.refresh.priority_score, self.refresh.embedding) if self.audit_every is not None else ()
        )
        return tuple(dict.fromkeys((*asked, *self.refresh.needs, *audited)))

    @property
    def warmup_share(self) -> float:
        """`warmup` in [0, 1)."""
        if self.warmup != "auto":
            return self.warmup
        return 0.0 if PASSED.issuperset({*self.needs} - {EMPTY_PROMPT_LOSS}) else WARMUP_SHARE

    @property
    def narrows_at(self) -> int:
        """So many of the first filters are applied before the other signals are measured; 0 = no cascade."""
        return next((at for at, each in enumerate(self.filters, 1) if isinstance(each, Narrow)), 0)

    @property
    def narrow(self) -> Narrow | None:
        """The filter that makes the selection a cascade; None where there is none."""
        return next((each for each in self.filters if isinstance(each, Narrow)), None)

    @property
    def cheap_needs(self) -> tuple[str, ...]:
        """Signals to measure of all rows: all, or those of the filters up to `narrow`."""
        if not self.narrows_at:
            return self.needs
        return tuple(dict.fromkeys(self._needs_of(self.filters[: self.narrows_at])))

    def _needs_of(self, filters: Sequence[Filter]) -> Iterator[str]:
        """Signals that these filters read, and the graph's embedding where one compares neighbours."""
        for each in filters:
            yield from each.needs
            if isinstance(each, ReadsGraph) and each.reads_graph:
                yield self.refresh.embedding

    @property
    def noise(self) -> DetectsNoise | None:
        """The filter that takes out noisy rows, where there is one."""
        return next((each for each in self.filters if isinstance(each, DetectsNoise)), None)


def seeded(config: CoresetConfig, args: Any) -> CoresetConfig:
    """The config with the seed that orders the data in the stock trainer, unless it has its own."""
    if not isinstance(config.seed, TrainersSeed):
        return config
    return replace(config, seed=args.seed if args.data_seed is None else args.data_seed)

"""Trusted rows of what is wanted: several targets as one list of examples, and pool rows that equal one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from coretune.filters.target_rows import TargetRows
from coretune.rounds.coreset_config import CoresetConfig
from coretune.rounds.exact_duplicates import row_digests
from coretune.rounds.sampler import PoolRows
from coretune.types import Array, Rows

#: Signals, and the filter's, for which a target is given.
TARGET_SIGNALS = frozenset({"target_cosine", "target_loss", "target_similarity", "trajectory"})


@dataclass(frozen=True)
class Target:
    """Trusted rows, and the part of the budget that is chosen for them: shares of all targets sum to 1.

    name  what people call it, as its file
    """

    rows: PoolRows
    share: float = 1.0
    name: str = "target"


def targets_of(given: PoolRows | Sequence[Target] | None) -> tuple[Target, ...]:
    """None, one target's rows, or several targets: the targets."""
    if given is None:
        return ()
    return tuple(given) if isinstance(given, Sequence) else (Target(given),)


@dataclass(frozen=True)
class TargetExamples:
    """The m examples of all targets, one target after the other; members as in `PoolRows`."""

    targets: tuple[Target, ...]

    @property
    def weight(self) -> Array | None:
        """None: no example is trained on."""
        return None

    @cached_property
    def of(self) -> Array:
        """(m,) int64: the target that each example is of."""
        sizes = [len(target.rows.length) for target in self.targets]
        return np.repeat(np.arange(len(sizes)), sizes)

    @cached_property
    def share(self) -> Array:
        """(S,) float64, which adds up to 1."""
        share = np.array([target.share for target in self.targets], np.float64)
        return share / share.sum()

    @property
    def ids(self) -> list[str]:
        return [name for target in self.targets for name in target.rows.ids]

    @property
    def source(self) -> Array | None:
        return None

    @cached_property
    def prompt_length(self) -> Array:
        return np.concatenate([target.rows.prompt_length for target in self.targets])

    @cached_property
    def response_length(self) -> Array:
        return np.concatenate([target.rows.response_length for target in self.targets])

    @cached_property
    def length(self) -> Array:
        return np.concatenate([target.rows.length for target in self.targets])

    def tokens(self, rows: Rows) -> list[Array]:
        return [self._one("tokens", int(row)) for row in rows]

    def labels(self, rows: Rows) -> list[Array]:
        return [self._one("labels", int(row)) for row in rows]

    def _one(self, name: str, row: int) -> Array:
        target = int(self.of[row])
        within = row - int(np.searchsorted(self.of, target))
        found: Array = getattr(self.targets[target].rows, name)(np.array([within]))[0]
        return found


def equal_rows(rows: PoolRows, examples: PoolRows) -> Array:
    """(n,) bool: rows of the pool with the tokens and labels of one of the examples."""
    pool, wanted = (row_digests(len(one.length), one.tokens, one.labels) for one in (rows, examples))
    return np.isin(pool, wanted)


def without_examples(
    config: CoresetConfig, rows: PoolRows, targets: Sequence[Target], tell: Callable[..., object]
) -> tuple[CoresetConfig, Array | None]:
    """The config with the filter that leaves out what of the pool equals an example, where there is such a
    row and nobody asked to train on it; and (n,) bool: these rows. None without a target."""
    if not targets:
        if config.train_on_target:
            tell("train_on_target has no effect: no target is given")
        return config, None
    found = equal_rows(rows, TargetExamples(tuple(targets)))
    count = int(found.sum())
    if count and not config.train_on_target:
        tell(
            "%d rows of the pool equal examples of the target and are left out (train_on_target keeps them)",
            count,
        )
        named = any(each.name == TargetRows.name for each in config.filters)
        config = config if named else replace(config, filters=(TargetRows(), *config.filters))
    return config, found

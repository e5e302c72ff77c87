"""Rounds on a model made of numbers, for the tests of what a round does."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from checkpoint_method import ByCheckpoints
from fake_model import FakeModel

from coretune.ledger import Ledger
from coretune.refresh import advance, start
from coretune.rounds.budget import parse_budget
from coretune.rounds.coreset_config import CoresetConfig
from coretune.rounds.order import round_order
from coretune.rounds.refresh_settings import AnchorRefresh
from coretune.rounds.schedule import Schedule, coreset_rows, make_schedule
from coretune.rounds.state import State
from coretune.rounds.transitions import empty_pool
from coretune.select.facility_location import FacilityLocation
from coretune.types import Coreset, Pool

N = 40
COST = np.arange(5, 5 + N)
ALONE = {"anchors": "all", "propagate": "none", "repair": "none", "warmup": 0.1}  # nothing follows the graph


def config(selector: Any = None, **settings: Any) -> CoresetConfig:
    refresh = {key: settings.pop(key) for key in list(settings) if key in AnchorRefresh.__dataclass_fields__}
    settings = {"budget": parse_budget("20%"), "refresh_every": 1, "warmup": 0.0, **settings}
    return CoresetConfig(selector or FacilityLocation(), AnchorRefresh(**{"k": 4, **refresh}), **settings)


def schedule_of(config: CoresetConfig, batch: int = 4) -> Schedule:
    return make_schedule(config, N, coreset_rows(config, empty_pool(COST)), batch)


class Run:
    """A run of rounds on a fake model, which ages between them."""

    def __init__(self, config: CoresetConfig, model: FakeModel | None = None, batch: int = 4) -> None:
        self.config, self.model, self.ledger = config, model or FakeModel(N), Ledger()
        self.schedule = schedule_of(config, batch)
        self.measurement = self.model.measurement(*config.needs) if config.needs else None
        self.states = [start(config, empty_pool(COST), self.schedule, self.measurement, self.ledger)]

    @property
    def state(self) -> State:
        return self.states[-1]

    def go(self, rounds: int, ageing: int = 1) -> Run:
        for _ in range(rounds):
            self.model.age += ageing
            self.states.append(advance(self.config, self.state, self.schedule, self.measurement, self.ledger))
        return self

    def rows(self, state: State | None = None) -> list[int]:
        return round_order(state or self.state, self.schedule, self.config.seed).rows.tolist()


def by_checkpoints(**settings: Any) -> CoresetConfig:
    selector = ByCheckpoints(
        **{key: settings.pop(key) for key in ("checkpoints_from", "signal") if key in settings}
    )
    return config(selector, **{**ALONE, **settings})


def assert_same(one: State, other: State) -> None:
    """Equal in every number, NaN being equal to NaN, and of the same types."""
    assert (one.round, one.selected_in, one.selections) == (other.round, other.selected_in, other.selections)
    mine, theirs = arrays(one), arrays(other)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert value.dtype == theirs[name].dtype, name
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


def arrays(state: State) -> dict[str, Any]:
    parts: list[Pool | Coreset | Any] = [state.pool, state.coreset]
    if state.pool.graph is not None:
        parts += [state.pool.graph, state.pool.graph.reserve]
        assert state.pool.graph.reserve is not None
    found = {}
    for part in parts:
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            if isinstance(value, np.ndarray):
                found[f"{type(part).__name__}.{field.name}"] = value
            elif field.name in ("features", "reasons"):
                found |= {f"{field.name}.{name}": entry for name, entry in value.items()}
    return found

"""Sections `coreset` of a config, and what is said of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from coretune.coreset_section import build_coreset
from coretune.keys import put
from coretune.types import Budget, Coreset, Pool
from coretune.yaml_text import ConfigError


def section_of(method: Any = "grace", **settings_: Any) -> dict[str, Any]:
    """With a setting for each path: section_of("grace", **{"refresh.k": 3})."""
    section = {"method": method, "budget": "10%"}
    for path, value in settings_.items():
        put(section, path, value)
    return section


def flat(section: Any, path: str = "") -> dict[str, Any]:
    """Path -> value of all settings of a section that was spelled out."""
    if not isinstance(section, dict) or not section:
        return {path: section}
    return {k: v for key, one in section.items() for k, v in flat(one, f"{path}.{key}".lstrip(".")).items()}


@dataclass(frozen=True)
class Lowest:
    """A selector of a user's own, whose settings are its fields."""

    from_row: int = 0
    needs: tuple[str, ...] = ()

    def select(self, pool: Pool, budget: Budget, rng: np.random.Generator) -> Coreset:
        rows = np.arange(self.from_row, self.from_row + budget.amount)
        return Coreset(rows, np.ones(len(rows)), np.zeros(len(rows)))


def message(section: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        build_coreset(section, 0)
    assert "\n" not in str(caught.value)
    return str(caught.value)

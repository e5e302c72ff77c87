"""Why a method did not let a row compete: the codes of the component `held_back` in `Coreset.reasons`."""

from __future__ import annotations

from collections.abc import Mapping

CONTRADICTED, COPY, OUTLIER, RESTING = 1, 2, 3, 4
HELD_BACK: Mapping[int, str] = {
    CONTRADICTED: "its neighbourhood contradicts it",
    COPY: "a copy of a less noisy row",
    OUTLIER: "cut off as an outlier",
    RESTING: "resting, trained on not long ago or more than its share",
}

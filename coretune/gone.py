"""Settings of the `coreset` section that are gone, and what to write now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coretune.yaml_text import ConfigError

_IMPORTANCES = dict.fromkeys(
    ("alignment", "ifd", "neighbour_consistency", "uniform"),
    "it gained nothing (docs/results.md); take gradient_norm, loss or learnability",
)

#: Section of `coreset`, "" beside `method` -> key -> what to write.
KEYS: Mapping[str, Mapping[str, str]] = {
    "": {
        "mismatched": "write filters: [{noise: {pairs: …}}], or [{neighbours: {pairs: …}}] (docs/filters.md)",
        "tells_above": "write filters: [{neighbours: {min_loss_ratio: …}}] (docs/filters.md)",
        "loss_above": "write filters: [neighbours], whose rule is fixed (docs/filters.md)",
        "mismatch_above": "write filters: [neighbours], whose rule is fixed (docs/filters.md)",
        "copies": "write filters: [{duplicates: {alike: folded}}] (docs/filters.md)",
        "rest": "write filters: [{cooldown: {coresets: …}}] (docs/filters.md)",
        "cutoff": "write filters: [noise] (docs/filters.md)",
        "cutoff_by": "write filters: [noise] (docs/filters.md)",
        "record_others": "write record_unchosen",
    },
    "method": {
        "importance_term": "importance counts by its mean; leave it out",
        "teacher": "write checkpoints_from",
    },
    "signals": {"reference_rows": "no signal compares with the pool's mean gradient; leave it out"},
    "refresh": {
        **dict.fromkeys(
            ("count_alike", "spread_anchors"),
            "anchors of priority are as published, which this gained nothing over; leave it out",
        ),
        **dict.fromkeys(("check_every", "threshold"), "refresh_every has no adaptive any more; leave it out"),
        "wait": "write refresh: {defer_first_measurement: …}",
        "look_again": "write refresh: {staleness_factor: …}",
        "harvest": "write refresh: {online_signals: …}",
    },
    "filters": {
        "least_told": "write {noise: {min_auc: …}}",
        "on_above": "write {neighbours: {min_loss_ratio: …}}",
    },
}
#: Key -> value -> what to write.
VALUES: Mapping[str, Mapping[str, str]] = {
    "anchors": {
        "random": "candidates and priority gained more (docs/results.md); leave anchors out",
        "trained": "candidates gain as much (docs/results.md); leave anchors out",
    },
    "importance": _IMPORTANCES,
    "difficulty": _IMPORTANCES,
    "refresh_every": {
        "adaptive": "it cost half as much again (docs/results.md); write pass, or a number of steps",
    },
    "repair": {
        "rebuild": "it gained nothing over none (docs/results.md); leave repair out, or take local",
    },
    "propagate": dict.fromkeys(
        ("delta", "fit"),
        "it gained nothing over none (docs/results.md); leave propagate out, or take average, Eq. 21",
    ),
}


def refuse_gone(path: str, room: str, key: str, value: Any) -> None:
    """ConfigError where the key of that section, or this value of it, is gone; beside `method` any key is."""
    keys = (
        KEYS.get(room, {}) if room else {key: words for keys in KEYS.values() for key, words in keys.items()}
    )
    if key in keys:
        raise ConfigError(f"{path} is gone: {keys[key]}")
    if isinstance(value, str) and value in VALUES.get(key, {}):
        raise ConfigError(f"{path}: {value} is gone: {VALUES[key][value]}")

"""An arm of a comparison: a method and its settings, laid over the `coreset` section that all arms share.

"grace"   "grace:refresh.anchors=all;method.grace.lambda=0.5"   "full" = the whole pool, always reshuffled
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from coretune.keys import nearest, put
from coretune.presets import PRESETS, known_methods
from coretune.types import UsesCheckpoints
from coretune.yaml_text import ConfigError, read_text

FULL = "full"


def split_arms(text: str) -> list[str]:
    """Arms parted by commas; those within brackets part nothing: "random,d2:filters=[duplicates,noise]"."""
    depth, arms = 0, [""]
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth:
            arms.append("")
        else:
            arms[-1] += letter
    return [arm.strip() for arm in arms]


def arm_section(arm: str, shared: Mapping[str, Any]) -> dict[str, Any]:
    """The `coreset` section of an arm, whose settings are paths in it.

    What the shared section sets for its own method alone is left out for another, and refresh.audit_every for
    all: an audit's measurements are not the method's, and would be charged to it. [choice] A method that
    chooses once, as one with a warm-up run, keeps its own schedule unless the arm says otherwise: with
    another schedule it would be another method.
    Raises ConfigError for an unknown method or a setting that is not `path=value`.
    """
    method, _, settings = arm.partition(":")
    known = known_methods()
    if method == FULL:
        section: dict[str, Any] = {"method": "random", "budget": "100%", "refresh_every": "never"}
    elif method not in known:
        names = sorted([*known, FULL])
        raise ConfigError(f"there is no arm {method!r}{nearest(method, names)}; there are {', '.join(names)}")
    else:
        section = _shared_with(method, known[method], shared)
    for setting in filter(None, settings.split(";")):
        path, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"{setting!r} in the arm {arm!r} is no setting: write path=value, parted by ;")
        put(section, path, read_text(value, repr(setting)))
    return section


def _shared_with(method: str, kind: type, shared: Mapping[str, Any]) -> dict[str, Any]:
    """The shared section with this method, and without what is not for it."""
    section: dict[str, Any] = copy.deepcopy(dict(shared))
    given = section.get("method")
    same = given == method or (isinstance(given, Mapping) and method in given)
    made = kind()
    section.get("refresh", {}).pop("audit_every", None)
    preset = {key: value for key, value in PRESETS.get(method, {}).items() if key != "method"}
    own = made.defaults if isinstance(made, UsesCheckpoints) else preset
    once = isinstance(made, UsesCheckpoints) or own.get("refresh_every") == "never"
    for key, value in own.items() if once and not same else ():
        if isinstance(value, Mapping):
            section[key] = {name: one for name, one in section.get(key, {}).items() if name not in value}
        else:
            section.pop(key, None)
    return {**section, "method": given if same else method}

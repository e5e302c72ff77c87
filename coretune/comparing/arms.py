"""An arm of a comparison: a method and its settings, laid over the `coreset` section that all arms share.

"grace"   "grace:anchors=all;propagate=delta"   "full" = the whole pool, reshuffled all the time
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from coretune.config import ConfigError, nearest
from coretune.presets import PRESETS
from coretune.select import SELECTORS
from coretune.types import Taught
from coretune.yaml_text import read_text

FULL = "full"
METHODS = {**SELECTORS, **{name: SELECTORS[preset["method"]] for name, preset in PRESETS.items()}}


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
    """The `coreset` section of an arm.

    What the shared section sets for its own method alone is left out for another, and audit_every for all:
    an audit's looks are not the method's, and would be charged to it. [choice] A method that
    looks through a teacher keeps its own way of looking and training, unless the arm says otherwise: with
    another schedule it would be another method.
    Raises ConfigError for an unknown method or a setting that is not `name=value`.
    """
    method, _, settings = arm.partition(":")
    if method == FULL:
        section: dict[str, Any] = {"method": "random", "budget": "100%", "refresh_every": "never"}
    elif method not in METHODS:
        known = ", ".join(sorted([*METHODS, FULL]))
        raise ConfigError(f"there is no arm {method!r}{nearest(method, [*METHODS, FULL])}; there are {known}")
    else:
        left_out = _foreign(method, shared)
        section = {name: value for name, value in shared.items() if name not in left_out} | {"method": method}
    for setting in filter(None, settings.split(";")):
        name, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"{setting!r} in the arm {arm!r} is no setting: write name=value, parted by ;")
        section[name] = read_text(value, repr(setting))
    return section


def _foreign(method: str, shared: Mapping[str, Any]) -> set[str]:
    """Settings of the shared section that are not for this method."""
    selector = METHODS[method]
    known = {field.name.rstrip("_") for field in fields(selector)}
    left_out = {"audit_every"}
    if shared.get("method") in METHODS and shared["method"] != method:
        theirs = {field.name.rstrip("_") for field in fields(METHODS[shared["method"]])}
        left_out |= theirs - known
    made = selector()
    if isinstance(made, Taught) and shared.get("method") != method:
        left_out |= set(made.defaults)
    return left_out

"""Keys of nested settings: paths, names that bring settings of their own, and what an unknown key may mean.

grace                     a name
{grace: {lambda: 0.5}}    a name with settings; under `coreset.method` the path of this one is
                          coreset.method.grace.lambda
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from coretune.yaml_text import ConfigError


def put(tree: dict[str, Any], path: str, value: Any) -> None:
    """Write the value at the path, in place.

    Sections on the way are made where there are none, and a name, alone or in a list of names, becomes the
    section of its settings. ConfigError where the path leads through anything else.
    """
    keys = path.split(".")
    for key, below in pairwise(keys):
        found = _opened(tree, key, below)
        if found is None:
            raise ConfigError(f"{path} cannot be set: {key} is {tree[key]!r:.80}, which has no {below}")
        tree = found
    tree[keys[-1]] = value


def _opened(tree: Any, key: Any, below: str) -> dict[str, Any] | None:
    """The section tree[key] that may hold `below`; None where something else is there."""
    held = tree.get(key)
    if isinstance(held, list):
        named = [one == below or (isinstance(one, dict) and below in one) for one in held]
        if True not in named:
            return None
        tree, key = held, named.index(True)
        held = held[key]
    if held is None:
        held = tree[key] = {}
    elif held == below:
        held = tree[key] = {below: {}}
    return held if isinstance(held, dict) else None


def named(given: Any, path: str, known: Iterable[str]) -> tuple[str, Mapping[str, Any]]:
    """A known name and the settings that it brings, of "grace" or {"grace": {"lambda": 0.5}}."""
    known = sorted(known)
    if isinstance(given, Mapping) and len(given) > 1:
        raise ConfigError(f"{path} has {len(given)} names, {', '.join(map(str, given)):.80}: give one")
    brings = isinstance(given, Mapping) and len(given) == 1
    name, settings = next(iter(given.items())) if brings else (given, {})
    if not isinstance(name, str) or name not in known:
        hint = nearest(str(name), known)
        raise ConfigError(f"{path}: {given!r:.80} is unknown{hint}; there are {', '.join(known)}")
    return name, as_settings(settings, f"{path}.{name}")


def as_settings(value: Any, path: str) -> Mapping[str, Any]:
    """The value, if it is {setting: value}."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path} is {value!r:.80}: give its settings as {{setting: value}}")
    return value


def refuse_unknown(
    prefix: str, given: Iterable[str], known: Iterable[str], elsewhere: Iterable[str] = ()
) -> None:
    """ConfigError for the first key that is not known, naming the nearest one that is by its path.

    elsewhere  paths of keys of other sections
    """
    known = sorted(known)
    paths = {path.rpartition(".")[2]: path for path in elsewhere} | {key: prefix + key for key in known}
    for key in given:
        if key not in known:
            close = _close(key, paths, 0.8) or _close(key, known, 0.5)
            hint = f", did you mean {paths[close[0]]!r}?" if close else f"; known are {', '.join(known)}"
            raise ConfigError(f"unknown key {prefix}{key}{hint}")


def nearest(word: str, known: Iterable[str]) -> str:
    """ ", did you mean 'x'?" or nothing."""
    close = _close(word, known, 0.5)
    return f", did you mean {close[0]!r}?" if close else ""


def _close(word: Any, known: Iterable[str], cutoff: float) -> list[str]:
    return difflib.get_close_matches(str(word), list(known), n=1, cutoff=cutoff)

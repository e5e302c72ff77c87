"""The `coreset` section: the one place where its settings become objects, in YAML and in Python alike.

method    a name or a preset (`presets.py`), {name: {its settings}}, or a selector of your own
budget, filters, refresh_every, quota, weighted, record_unchosen
refresh   whom to measure again, and when
signals   how signals are measured
solver    what a selection may take, and where it is made

Every setting has one place, and sets one object. What is not given is what the preset or the method asks for,
and else the setting's own default.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import cache
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from coretune.filters import FILTERS
from coretune.gone import refuse_gone
from coretune.keys import as_settings, named, nearest, put, refuse_unknown
from coretune.measure.settings import MeasureSettings
from coretune.policies.unused_settings import unused_filters, unused_settings
from coretune.presets import PRESETS, known_methods
from coretune.rounds.budget import BudgetRequest, parse_budget
from coretune.rounds.coreset_config import CoresetConfig
from coretune.rounds.quota_request import QuotaRequest, parse_quota
from coretune.rounds.refresh_settings import AnchorRefresh
from coretune.types import TRAINERS_SEED, AlongGraph, Filter, Selector, UsesCheckpoints
from coretune.yaml_text import ConfigError

log = logging.getLogger("coretune")

#: Room -> fields of `CoresetConfig` that are in it; the others are beside `method`.
OF_THE_RUN = {
    "refresh": ("warmup", "defer_first_measurement", "audit_every"),
    "solver": ("memory_limit", "deadline", "engine", "ray_address"),
}
ROOMS = ("refresh", "signals", "solver")
READ_HERE = ("budget", "quota", "filters")
_MADE = {"selector", "refresh", "signals", "seed", "autocast"}  # fields that no key sets
#: Room -> key -> class and field that its value is of; "" are the keys beside `method`.
Places = Mapping[str, Mapping[str, tuple[type, str]]]
#: Room -> key -> value.
Given = Mapping[str, Mapping[str, Any]]


def coreset(method: Any, *, seed: int = TRAINERS_SEED, **settings: Any) -> CoresetConfig:
    """The `coreset` section in Python, with the same keys.

    Example: coreset({"grace": {"lambda": 0.5}}, budget="10%", refresh={"anchors": "all"})

    Args:
        method: A name, {name: settings}, or a selector of your own, which brings its settings:
            coreset(Margin(at=2.0), budget=600).
        seed: Of all that the coreset draws; left out: the trainer's, data_seed of its arguments, else seed.
        settings: budget, filters, refresh_every, refresh, signals, solver, quota, weighted, and
            record_unchosen.

    Raises:
        ConfigError: As the section does.
    """
    section = {"method": method, **settings}
    made = build_coreset(section, seed)
    warn_of_unused(section, made)
    return made


def build_coreset(section: Mapping[str, Any], seed: int) -> CoresetConfig:
    """What a `coreset` section describes. Raises ConfigError."""
    name, kind = method_of(section)
    places, given = places_of(section, kind), _by_room(section)
    if not isinstance(section["method"], Selector):
        given = _overlaid(_by_room(PRESETS.get(name, {})), given)
    _refuse_unknown(given, places, name)
    selector = section["method"]
    if not isinstance(selector, Selector):
        selector = _build(kind, _values(given, places, name, kind), f"coreset.method.{name}")
    if isinstance(selector, UsesCheckpoints):
        given = _overlaid(_by_room(selector.defaults), given)
        _refuse_unknown(given, places, name)
    values = {
        part: _values(given, places, name, part) for part in (AnchorRefresh, MeasureSettings, CoresetConfig)
    }
    if isinstance(selector, AlongGraph):
        values[AnchorRefresh]["embedding"] = selector.graph_of
    objects = {
        "selector": selector,
        "refresh": _build(AnchorRefresh, values[AnchorRefresh], "coreset.refresh"),
        "signals": _build(MeasureSettings, {**values[MeasureSettings], "seed": seed}, "coreset.signals"),
        "budget": _budget(given[""]),
        "quota": _quota(given[""]),
        "filters": filters_of(given[""].get("filters", [])),
        "seed": seed,
    }
    made: CoresetConfig = _build(CoresetConfig, {**values[CoresetConfig], **objects}, "coreset")
    return made


def spelled_out(config: CoresetConfig, section: Mapping[str, Any]) -> dict[str, Any]:
    """The section that the config was made of, with every setting written, defaults included."""
    name, kind = method_of(section)
    parts = {kind: config.selector, AnchorRefresh: config.refresh, MeasureSettings: config.signals}
    written = {
        "method": name,
        **{key: section[key] for key in ("budget", "quota") if section.get(key) is not None},
    }
    written["filters"] = [{each.name: _written(each)} for each in config.filters]
    for room, keys in places_of(section, kind).items():
        for key, (part, field) in keys.items():
            if key not in READ_HERE:
                put(written, _path(room, name) + key, _plain(getattr(parts.get(part, config), field)))
    return written


def warn_of_unused(section: Mapping[str, Any], config: CoresetConfig) -> None:
    """One line for all settings that do nothing."""
    if unused := without_effect(section, config):
        log.warning(
            "no effect with method %s as it is refreshed: %s", method_of(section)[0], ", ".join(unused)
        )


def without_effect(section: Mapping[str, Any], config: CoresetConfig) -> list[str]:
    """Paths of settings with a value of their own that this method and schedule never read."""
    name, kind = method_of(section)
    unused, places, given = unused_settings(config), places_of(section, kind), _by_room(section)
    usual, paths = _usual(config.selector, name), []
    for room, keys in unused.items():
        for key in keys & given[room].keys():
            part, field = places[room][key]
            otherwise = usual[room].get(key, _default(part, field))
            if _plain(given[room][key]) != _plain(otherwise) and _measures_alike(
                config, part, field, otherwise
            ):
                paths.append(f"coreset.{_path(room, name)}{key}")
    if config.filters != filters_of(usual[""].get("filters", [])):
        paths += [f"coreset.filters.{each}" for each in unused_filters(config)]
    return sorted(paths)


def _measures_alike(config: CoresetConfig, part: type, field: str, value: Any) -> bool:
    """Whether no other signals are measured with this value of the field."""
    if part is not AnchorRefresh:
        return True
    asked = {*config.selector.needs, *(name for each in config.filters for name in each.needs)}
    refresh = config.refresh
    return {*replace(refresh, **{field: value}).needs} - asked == {*refresh.needs} - asked


def _usual(selector: Any, name: str) -> Given:
    """What is asked for where nothing is given; a selector of one's own asks for nothing."""
    preset = {} if name not in known_methods() else PRESETS.get(name, {})
    asked = selector.defaults if isinstance(selector, UsesCheckpoints) else {}
    return _overlaid(_by_room(asked), _by_room(preset))


def nested(section: Mapping[str, Any]) -> dict[str, Any]:
    """A section as runs wrote it while its settings stood side by side, as it is written now."""
    name, kind = method_of(section)
    places = places_of(section, kind)
    written = {key: copy.deepcopy(value) for key, value in section.items() if key in _beside(places)}
    for key, value in section.items():
        if key not in written:
            for path in _now(key, places, name) or [key]:
                put(written, path, value)
    return written


def method_of(section: Mapping[str, Any]) -> tuple[str, type]:
    """The name that the section gives, and the class of the selector of that name."""
    known = known_methods()
    if "method" not in section:
        refuse_unknown("coreset.", [key for key in section if nearest(key, ["method"])], top_keys())
        raise ConfigError(f"coreset.method is missing; there are {', '.join(sorted(known))}")
    method = section["method"]
    if isinstance(method, Selector):
        return type(method).__name__, type(method)
    name = named(method, "coreset.method", known)[0]
    return name, known[name]


# -------------------------------------------------------------------------------------------- where keys are


def places_of(section: Mapping[str, Any], kind: type) -> Places:
    """Where each setting of a section with a method of this class goes."""
    rooms: dict[str, dict[str, tuple[type, str]]] = {
        "": {},
        "method": {} if isinstance(section["method"], Selector) else keys_of(kind),
        "refresh": keys_of(AnchorRefresh),
        "signals": keys_of(MeasureSettings),
        "solver": {},
    }
    if hasattr(kind, "graph_of"):
        del rooms["refresh"]["embedding"]  # the method's own says it
    room_of = {key: room for room, keys in OF_THE_RUN.items() for key in keys}
    for key, place in keys_of(CoresetConfig).items():
        rooms[room_of.get(key, "")][key] = place
    return rooms


def keys_of(part: type) -> dict[str, tuple[type, str]]:
    """Key -> class and field of every setting of a class."""
    return {key: (part, name) for key, name in _names(part).items()}


def _beside(places: Places) -> set[str]:
    """Keys of the section itself."""
    return {*places[""], *places} - {""}


def top_keys() -> list[str]:
    """Keys of the section itself, whatever its method."""
    in_rooms = {key for keys in OF_THE_RUN.values() for key in keys}
    return ["method", *ROOMS, *(key for key in keys_of(CoresetConfig) if key not in in_rooms)]


def _by_room(section: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    rooms = {room: dict(as_settings(section.get(room, {}), f"coreset.{room}")) for room in ROOMS}
    method = section.get("method")
    settings = next(iter(method.values())) if isinstance(method, Mapping) else {}
    beside = {key: value for key, value in section.items() if key != "method" and key not in rooms}
    return {"": beside, "method": dict(settings), **rooms}


def _overlaid(base: Given, given: Given) -> dict[str, dict[str, Any]]:
    return {room: {**base[room], **given[room]} for room in given}


def _path(room: str, name: str) -> str:
    """Of a key within the section, but for the key itself."""
    return {"": "", "method": f"method.{name}."}.get(room, f"{room}.")


def _refuse_unknown(given: Given, places: Places, name: str) -> None:
    """ConfigError for the first key that no setting has: where it is now, what to write in its place, or the
    nearest one that there is."""
    for key in given[""]:
        if key in places[""]:
            continue
        if paths := _now(key, places, name):
            raise ConfigError(f"coreset.{key} is now {' and '.join(f'coreset.{path}' for path in paths)}")
    for room in given:
        prefix = f"coreset.{_path(room, name)}"
        for key, value in given[room].items():
            refuse_gone(prefix + key, room, key, value)
        known = places[room] if room else _beside(places)
        elsewhere = [f"coreset.{_path(other, name)}{key}" for other, keys in places.items() for key in keys]
        refuse_unknown(prefix, given[room], known, elsewhere)


def _now(key: str, places: Places, name: str) -> list[str]:
    """Where a setting is that stood beside the method once: with k-center `embedding` set two."""
    key = key.rstrip("_")
    return [_path(room, name) + key for room, keys in places.items() if room and key in keys]


# ------------------------------------------------------------------------------------------ values to objects


def _values(given: Given, places: Places, name: str, part: type) -> dict[str, Any]:
    """Field -> value of what is given for this class."""
    return {  # budget, quota and filters are read by themselves
        places[room][key][1]: _checked(part, places[room][key][1], value, f"coreset.{_path(room, name)}{key}")
        for room, settings in given.items()
        for key, value in settings.items()
        if places[room][key][0] is part and key not in READ_HERE
    }


def _build(part: type, values: Mapping[str, Any], path: str) -> Any:
    try:
        return part(**values)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None


def _checked(part: type, field: str, value: Any, path: str) -> Any:
    """The value as the field's type has it; ConfigError where it is of another."""
    try:
        checked = _adapter(part, field).validate_python(value)
    except ValidationError as error:
        raise ConfigError(f"{path} is {value!r:.80}: {error.errors()[0]['msg'].lower()}") from None
    if isinstance(value, bool) and not isinstance(checked, bool):  # pydantic takes true for 1
        raise ConfigError(f"{path} is {value!r:.80}: give a value that is not true or false")
    return checked


@cache
def _adapter(part: type, field: str) -> TypeAdapter[Any]:
    return TypeAdapter(get_type_hints(part)[field])


def _names(part: type) -> dict[str, str]:
    """Key -> field of a dataclass; `lambda_` is written lambda."""
    names = {field.name.rstrip("_"): field.name for field in fields(part) if field.init}
    return {key: name for key, name in names.items() if key not in _MADE}


def _written(part: Any) -> dict[str, Any]:
    return {key: _plain(getattr(part, field)) for key, field in _names(type(part)).items()}


def _default(part: type, name: str) -> Any:
    return next(field.default for field in fields(part) if field.name == name)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def filters_of(given: Any) -> tuple[Filter, ...]:
    """The filters of a list of names, or of {name: {setting: value}}. Raises ConfigError."""
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise ConfigError(
            f"coreset.filters is {given!r:.80}: give a list of {', '.join(FILTERS)}; [] = no filter"
        )
    return tuple(entry if isinstance(entry, Filter) else _filter(entry) for entry in given)


def _filter(entry: Any) -> Filter:
    name, settings = named(entry, "coreset.filters", FILTERS)
    kind, path = FILTERS[name], f"coreset.filters.{name}"
    names = _names(kind)
    for key, value in settings.items():
        refuse_gone(f"{path}.{key}", "filters", key, value)
    refuse_unknown(f"{path}.", settings, names)
    values = {
        names[key]: _checked(kind, names[key], value, f"{path}.{key}") for key, value in settings.items()
    }
    made: Filter = _build(kind, values, "coreset.filters")
    return made


def _budget(beside: Mapping[str, Any]) -> BudgetRequest:
    if "budget" not in beside:
        raise ConfigError("coreset.budget is missing; give rows (600), a share (10%) or tokens (2M tokens)")
    try:
        return parse_budget(beside["budget"])
    except ValueError as error:
        raise ConfigError(f"coreset.budget: {error}") from None


def _quota(beside: Mapping[str, Any]) -> QuotaRequest | None:
    if beside.get("quota") is None:
        return None
    try:
        return parse_quota(beside["quota"])
    except ValueError as error:
        raise ConfigError(f"coreset.{error}") from None

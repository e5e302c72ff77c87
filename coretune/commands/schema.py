"""The config as a JSON schema: an editor that reads it completes keys and marks mistakes while one types.

Made of what checks a config: RunConfig, the dataclasses of the `coreset` section, and the fields of the stock
SFTConfig and LoraConfig that are installed here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, get_type_hints

from pydantic import TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError

from coretune.config import TOP_ONLY, RunConfig
from coretune.coreset_section import READ_HERE, keys_of, places_of
from coretune.filters import FILTERS
from coretune.presets import known_methods
from coretune.stock_fields import LORA, SFT, Classes, defaults, field_types, helps, kind_of

DRAFT = "http://json-schema.org/draft-07/schema#"  # what editors' YAML servers read


def config_schema() -> dict[str, Any]:
    """Of a whole config file."""
    found = RunConfig.model_json_schema()
    training = _stock(SFT)
    for name in TOP_ONLY:
        del training["properties"][name]
    found["properties"] |= {"coreset": _coreset(), "training": training, "peft": _peft()}
    return {"$schema": DRAFT, **found, "title": "coretune"}


def _coreset() -> dict[str, Any]:
    methods = known_methods()
    rooms: dict[str, dict[str, Any]] = {}
    own: dict[str, dict[str, Any]] = {}
    for name, kind in methods.items():
        places = places_of({"method": name}, kind)
        own[name] = _properties(places["method"])
        for room in places:
            if room != "method":
                rooms.setdefault(room, {}).update(_properties(places[room]))
    beside = rooms.pop("")
    named = {
        "method": {
            "anyOf": [{"enum": sorted(methods)}, *map(_named, sorted(own), map(own.get, sorted(own)))]
        },
        "budget": {
            "type": ["string", "number"],
            "description": "Rows (600), a share of the pool (10%), or tokens (2M tokens).",
        },
        "filters": {
            "type": "array",
            "items": {
                "anyOf": [
                    {"enum": sorted(FILTERS)},
                    *(_named(name, _properties(keys_of(kind))) for name, kind in sorted(FILTERS.items())),
                ]
            },
        },
        "quota": {"type": ["object", "null"]},
    }
    sections = {room: _closed(properties) for room, properties in rooms.items()}
    return _closed({**beside, **named, **sections}, ["method", "budget"])


def _named(name: str, properties: Any) -> dict[str, Any]:
    """{name: {its settings}}."""
    return _closed({name: _closed(properties)}, [name])


def _properties(keys: Mapping[str, tuple[type, str]]) -> dict[str, Any]:
    return {key: _property(part, field) for key, (part, field) in keys.items() if key not in READ_HERE}


def _property(part: type, name: str) -> dict[str, Any]:
    field = next(field for field in fields(part) if field.name == name)
    return {**_type(get_type_hints(part)[name]), **_default(field.default)}


def _default(value: Any) -> dict[str, Any]:
    """{"default": …} where JSON can hold it."""
    if value is MISSING:
        return {}
    try:
        return {"default": json.loads(json.dumps(value))}
    except TypeError:
        return {}


def _type(kind: Any) -> dict[str, Any]:
    """{} for what takes anything, or what JSON has no word for."""
    try:
        found = TypeAdapter(kind).json_schema()
    except (PydanticInvalidForJsonSchema, PydanticSchemaGenerationError):
        return {}
    return {} if "$defs" in found else found


def _stock(classes: Classes) -> dict[str, Any]:
    """A section that is a stock class."""
    values, texts = defaults(classes), helps(classes)
    properties = {}
    for name, annotation in field_types(classes).items():
        properties[name] = _type(kind_of(annotation))
        if name in values:
            properties[name] |= _default(values[name])
        if name in texts:
            properties[name]["description"] = texts[name]
    return _closed(properties)


def _peft() -> dict[str, Any]:
    """LoRA's fields; of another type, which peft_type names, any."""
    types = {"enum": ["LORA", "lora"]}
    lora = _stock(LORA)
    lora["properties"]["peft_type"] = types
    other = {"type": "object", "required": ["peft_type"], "properties": {"peft_type": {"not": types}}}
    return {"if": other, "then": {}, "else": {**lora, "type": ["object", "null"]}}


def _closed(properties: Any, required: list[str] | None = None) -> dict[str, Any]:
    """An object with these keys alone."""
    found = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**found, "required": required} if required else found

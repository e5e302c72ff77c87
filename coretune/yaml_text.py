"""A config's YAML, read as what JSON can hold: texts, numbers, true and false, null, lists, mappings.

Numbers are those of YAML 1.2 (PyYAML reads 1e-3 as text, since YAML 1.1 asks for a dot), dates are text, no
key is written twice. A file may come from anybody: its size, its depth and what its aliases expand to are
bounded before anything is built of it.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from coretune.data.raw import is_unicode

BYTES = 1 << 17  # [choice] of a config; a written one has a few thousand
DEPTH = 32  # [choice] levels; a config has four
#: Of YAML 1.2: 010 is ten and 1:30 a text (in 1.1 eight and ninety); 1_000 as everywhere in Python.
INTEGER = re.compile(r"^[-+]?[0-9][0-9_]*$|^0o[0-7]+$|^0x[0-9a-fA-F]+$")
FLOAT = re.compile(
    r"^[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?$|^[-+]?[0-9]+[eE][-+]?[0-9]+$"
    r"|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
)
NUMBERS = {"tag:yaml.org,2002:int": INTEGER, "tag:yaml.org,2002:float": FLOAT}
VALUES = 20_000  # [choice] keys and values, each alias counted as what it expands to


class ConfigError(ValueError):
    """One line: which key, what is wrong, what to do."""


class _Loader(yaml.SafeLoader):
    """Every fault is a YAMLError that names its line."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except Exception:  # PyYAML's own constructors raise whatever int(), float() … do of such a value
            kind = node.tag.rpartition(":")[2]
            raise yaml.YAMLError(f"{node.value!r:.80} is no {kind}{node.start_mark}") from None

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise yaml.YAMLError(f"a mapping is wanted{node.start_mark}")
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping

    def construct_integer(self, node: Any) -> int:
        text = self.construct_scalar(node)
        if not INTEGER.match(text):
            raise ValueError(text)
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


_Loader.yaml_implicit_resolvers = {
    first: [(tag, NUMBERS.get(tag, pattern)) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)


class _Dumper(yaml.SafeDumper):
    """Puts in quotes each text that our reader, or YAML 1.1's, would take for a number."""


for tag, pattern in NUMBERS.items():
    _Dumper.add_implicit_resolver(tag, pattern, list("-+.0123456789"))


def write(value: Any) -> str:
    """The value as YAML that reads back as it is."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False)
    return text


def read_file(path: str | Path) -> Any:
    """What the file holds. ConfigError names it."""
    file = Path(path)
    try:
        if not file.is_file():
            raise ConfigError(f"{path} is no file; give the path of a YAML file")
        size = file.stat().st_size
        if size > BYTES:
            raise ConfigError(
                f"{path} has {size:,} bytes, and a config at most {BYTES:,}: is it the right file?"
            )
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not YAML: {error}; save it as UTF-8") from None
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{str(path)!r} is no path: {error}") from None  # as with a NUL in it
    return read_text(text, str(path))


def read_text(text: str, name: str) -> Any:
    """The value that the text writes; `name` is what a ConfigError calls it."""
    try:
        _refuse_deep(text)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _refuse_large(node, {})
            return _plain(loader.construct_document(node))
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not YAML: {' '.join(str(error).split())}") from None


def _refuse_deep(text: str) -> None:
    """PyYAML builds values by recursion, so that depth is judged by its events, which it makes without."""
    depth = 0
    for number, event in enumerate(yaml.parse(text, yaml.SafeLoader)):
        if number > 2 * VALUES:
            raise yaml.YAMLError(f"more than {VALUES:,} keys and values{event.start_mark}")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEPTH:
                raise yaml.YAMLError(f"more than {DEPTH} levels{event.start_mark}")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _refuse_large(node: yaml.Node, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """(keys and values, levels) of the node with its aliases written out; YAMLError above VALUES or DEPTH."""
    key = id(node)
    if key in known:
        found = known[key]
        if found is None:  # it is being counted further up
            raise yaml.YAMLError(f"an alias holds itself{node.start_mark}")
        return found
    known[key] = None
    _refuse_twice(node)
    children = node.value if isinstance(node, yaml.CollectionNode) else ()
    parts = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
    sizes = [_refuse_large(part, known) for part in parts]
    size, depth = 1 + sum(size for size, _ in sizes), 1 + max((depth for _, depth in sizes), default=0)
    if size > VALUES:
        raise yaml.YAMLError(f"more than {VALUES:,} keys and values, aliases written out{node.start_mark}")
    if depth > DEPTH + 1:
        raise yaml.YAMLError(f"more than {DEPTH} levels, aliases written out{node.start_mark}")
    known[key] = size, depth
    return size, depth


def _refuse_twice(node: yaml.Node) -> None:
    """YAMLError for a key written twice. Judged before PyYAML writes out what `<<` brings, which may be
    replaced."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    keys = Counter(key.value for key, _ in pairs if isinstance(key, yaml.ScalarNode))
    twice = next((key for key, times in keys.items() if times > 1), None)
    if twice is not None:
        raise yaml.YAMLError(f"the key {twice!r:.80} is written twice{node.start_mark}")


def _plain(value: Any) -> Any:
    """The value, copied where aliases share it; YAMLError for what JSON cannot hold."""
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise yaml.YAMLError(f"the key {key!r:.80} is not text: put it in quotes")
        return {_plain(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, float) and value != value:
        raise yaml.YAMLError(".nan is not a number: give one")
    if isinstance(value, int) and abs(value) >> 64:
        raise yaml.YAMLError("a number has more than 64 bits: no setting is so large")
    if isinstance(value, str) and not is_unicode(value):
        raise yaml.YAMLError(f"{value!r:.80} holds half a surrogate pair: remove it")
    if value is None or isinstance(value, str | int | float):
        return value
    raise yaml.YAMLError(
        f"{value!r:.80} is {type(value).__name__}, which no setting is: leave the tag (!!) out"
    )

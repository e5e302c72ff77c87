"""Names in the `peft` section that match nothing in the model: peft passes over one if another matches."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from coretune.config import ConfigError

#: What peft puts into the names of what it wraps.
WRAPPED = re.compile(r"\.(base_layer|original_module)(?=\.|$)")
LAYER = re.compile(r"\.(?:layers|h|blocks?|layer)\.(\d+)\.")


def refuse_unmatched(model: Any, section: Mapping[str, Any]) -> None:
    """ConfigError for the first name of the section that no module, parameter or layer has."""
    if not section:
        return
    base = model.get_base_model()
    modules = [WRAPPED.sub("", name) for name, _ in base.named_modules()]
    parameters = [WRAPPED.sub("", name) for name, _ in base.named_parameters()]
    for key, names, fits in (
        ("target_modules", modules, _is_or_ends),
        ("exclude_modules", modules, _is_or_ends),
        ("feedforward_modules", modules, _is_or_ends),
        ("modules_to_save", modules, str.endswith),
        ("target_parameters", parameters, _is_or_ends),
        ("rank_pattern", modules, _matches),
        ("alpha_pattern", modules, _matches),
    ):
        given = section.get(key)
        if isinstance(given, list | dict):  # a text is one pattern: peft says if it fits nothing
            _refuse(key, map(str, given), names, fits)
    layers = section.get("layers_to_transform")
    if layers is not None and "layers_pattern" not in section:
        found = {found[1] for name in modules if (found := LAYER.search(f".{name}."))}
        given = layers if isinstance(layers, list) else [layers]
        _refuse("layers_to_transform", map(str, given), found, str.__eq__)


def _refuse(key: str, given: Iterable[str], names: Iterable[str], fits: Callable[[str, str], bool]) -> None:
    for wanted in given:
        if not any(fits(name, wanted) for name in names):
            raise ConfigError(
                f"peft.{key} has {wanted!r:.60}, which nothing in the model is called: correct it, or "
                "leave it out"
            )


def _is_or_ends(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith(f".{wanted}")


def _matches(name: str, pattern: str) -> bool:
    return re.fullmatch(rf"(.*\.)?({pattern.removeprefix('^')})", name) is not None

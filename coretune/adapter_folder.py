"""What PEFT has saved an adapter into, a folder or a repository of the hub, and the model that it is of.

Read without PEFT.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coretune.data.sources import is_path
from coretune.escaping import first_line
from coretune.yaml_text import ConfigError

#: What PEFT writes into an adapter's folder.
ADAPTER = "adapter_config.json"
WEIGHTS = "adapter_model.*"
#: Of `model_init_kwargs`: what says where on the hub a repository is, and what is of that repository alone.
OF_A_HUB = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
OF_A_REPOSITORY = ("revision", "subfolder")
#: An adapter and its tokenizer; its checkpoints and whole weights stay where they are.
FILES = ("adapter_*", "*.json", "*.jinja", "*.model", "*.txt")


def holds_adapter(folder: str | Path) -> bool:
    """Whether the folder holds an adapter."""
    return (Path(folder) / ADAPTER).is_file()


def may_be_hub_id(model: str | Path) -> bool:
    """Whether only the hub, or its cache, can say what the model is."""
    return not is_path(str(model)) and not Path(model).exists()


def base_of(model: str | Path) -> str:
    """The folder or hub id of the model that an adapter's folder is of; of any other, itself.

    ConfigError where the adapter is damaged, or its base is not there.
    """
    if not holds_adapter(model):
        return str(model)
    noted = Path(model) / ADAPTER
    if not any(Path(model).glob(WEIGHTS)):
        raise ConfigError(f"{model} holds an adapter's {ADAPTER} and no weights of it: restore them")
    base = _noted(Path(model))["base_model_name_or_path"]
    if not isinstance(base, str) or (is_path(base) and not Path(base).is_dir()):
        raise ConfigError(
            f"{model} is an adapter of {base}, and there is no such folder: start the command where training "
            f"was started, or correct base_model_name_or_path in {noted}"
        )
    return base


def located(model: str | Path, how: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """Where a model is on this machine, and how it is loaded, or an adapter's base.

    An adapter on the hub is brought into the hub's cache; any other model is named as before. A revision and
    a subfolder are of what `model` names; the base of an adapter has the revision that the adapter notes.

    how  the `model_init_kwargs`
    """
    kwargs = dict(how or {})
    folder = _brought(str(model), kwargs) if may_be_hub_id(model) else None
    if folder is not None:
        kwargs = {key: value for key, value in kwargs.items() if key not in OF_A_REPOSITORY}
    folder = folder or Path(model)
    if not holds_adapter(folder):
        return str(model), kwargs
    if (revision := _noted(folder).get("revision")) is not None:
        kwargs.setdefault("revision", revision)
    return str(folder), kwargs


def _brought(name: str, how: Mapping[str, Any]) -> Path | None:
    """The folder in the hub's cache that has the adapter; None where the hub's repository is of no adapter.

    None too where neither hub nor cache can say it: loading the model then reports why.
    """
    from huggingface_hub import hf_hub_download, snapshot_download

    given = {key: how[key] for key in OF_A_HUB if how.get(key) is not None}
    try:
        found = Path(hf_hub_download(name, ADAPTER, **given))
    except Exception:  # offline, no such id, no access, no such file: loading says which
        return None
    below = f"{given.pop('subfolder')}/" if "subfolder" in given else ""
    fault = ""
    try:
        snapshot_download(
            name,
            **given,
            allow_patterns=[f"{below}{file}" for file in FILES],
            ignore_patterns=[f"{below}*/*"],
        )
    except Exception as error:  # what was brought before may be all that is needed
        fault = f" ({first_line(error)})"
    if not any(found.parent.glob(WEIGHTS)):
        raise ConfigError(
            f"{name} is an adapter on the hub, and its weights are not in the hub's cache and cannot be "
            f"downloaded{fault}: allow network and access, or give a folder that holds them"
        )
    return found.parent


def _noted(folder: Path) -> Mapping[str, Any]:
    """What PEFT has noted in an adapter's folder; ConfigError where that cannot be read."""
    noted = folder / ADAPTER
    try:
        found: Mapping[str, Any] = json.loads(noted.read_text(encoding="utf-8"))
        found["base_model_name_or_path"]
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{noted} cannot be read, restore it ({first_line(error)})") from None

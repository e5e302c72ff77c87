"""A folder that PEFT has saved an adapter into, and the model that it is of. Read without PEFT."""

from __future__ import annotations

import json
from pathlib import Path

from coretune.data.sources import is_path
from coretune.escaping import first_line
from coretune.yaml_text import ConfigError

#: What PEFT writes into an adapter's folder.
ADAPTER = "adapter_config.json"
WEIGHTS = "adapter_model.*"


def holds_adapter(folder: str | Path) -> bool:
    """Whether the folder holds an adapter."""
    return (Path(folder) / ADAPTER).is_file()


def base_of(model: str | Path) -> str:
    """The folder or hub id of the model that an adapter's folder is of; of any other, itself.

    ConfigError where the adapter is damaged, or its base is not there.
    """
    if not holds_adapter(model):
        return str(model)
    noted = Path(model) / ADAPTER
    if not any(Path(model).glob(WEIGHTS)):
        raise ConfigError(f"{model} holds an adapter's {ADAPTER} and no weights of it: restore them")
    try:
        base = json.loads(noted.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{noted} cannot be read, restore it ({first_line(error)})") from None
    if not isinstance(base, str) or (is_path(base) and not Path(base).is_dir()):
        raise ConfigError(
            f"{model} is an adapter of {base}, and there is no such folder: start the command where training "
            f"was started, or correct base_model_name_or_path in {noted}"
        )
    return base

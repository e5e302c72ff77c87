"""The coreset's settings in the run config of every tracker, so that runs group by method.

transformers' trackers (wandb, trackio, MLflow, TensorBoard, SwanLab, … in 5.23) take what they write as the
run's config from the arguments that `on_train_begin` gives them.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Protocol, runtime_checkable

from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from coretune.config import ConfigError
from coretune.rounds.coreset_config import CoresetConfig
from coretune.select import SELECTORS
from coretune.training.card import budget_of, public_settings

PREFIX = "coreset/"
#: Trackers that transformers does not list as available where they are.
NOT_LISTED = ("azure_ml", "flyte")


@runtime_checkable
class Tracker(Protocol):
    """A callback that sets up a run of its own, as transformers' do."""

    def setup(self, args: Any, *others: Any, **named: Any) -> Any: ...

    def on_train_begin(self, args: Any, state: Any, control: Any, **named: Any) -> Any: ...


class _WithCoreset:
    """The stock arguments, with more in what is written of them."""

    def __init__(self, args: Any, settings: Mapping[str, Any]) -> None:
        self._args, self._settings = args, settings

    def __getattr__(self, name: str) -> Any:
        return getattr(self._args, name)

    def to_dict(self) -> dict[str, Any]:
        return {**self._args.to_dict(), **self._settings}

    def to_sanitized_dict(self) -> dict[str, Any]:
        return {**self._args.to_sanitized_dict(), **self._settings}

    def to_json_string(self) -> str:
        return json.dumps(self.to_dict(), indent=2)


def refuse_missing_trackers(names: Iterable[str]) -> None:
    """ConfigError for a tracker of `report_to` whose package is not installed."""
    here = get_available_reporting_integrations()
    for name in names:
        if name in INTEGRATION_TO_CALLBACK and name not in (*here, *NOT_LISTED):
            raise ConfigError(
                f"training.report_to is {name}, whose package is not installed: install it, or take "
                f"{' or '.join([*here, 'none'])}"
            )


def send_to_trackers(callbacks: Iterable[Any], config: CoresetConfig) -> None:
    """Have every tracker among the callbacks write the coreset's settings too."""
    settings = tracked(config)
    trackers: tuple[Any, ...] = (*INTEGRATION_TO_CALLBACK.values(), Tracker)  # TensorBoard's has no `setup`
    for callback in callbacks:
        if isinstance(callback, trackers):
            callback.on_train_begin = partial(_begin, callback.on_train_begin, settings)


def _begin(begin: Any, settings: Mapping[str, Any], args: Any, *others: Any, **named: Any) -> Any:
    return begin(_WithCoreset(args, settings), *others, **named)


def tracked(config: CoresetConfig) -> dict[str, Any]:
    """coreset/method, coreset/budget, and coreset/<setting> for every other one, as numbers, texts, booleans.

    What names the user's data, folders and hosts stays out, as in the model card.
    """
    names = {kind: name for name, kind in SELECTORS.items()}
    kind = type(config.selector)
    found = {"method": names.get(kind, kind.__name__), "budget": budget_of(config)}
    for name, text in public_settings(config).items():
        found.setdefault(name, _plain(text))
    return {f"{PREFIX}{name}": value for name, value in found.items()}


def _plain(text: str) -> Any:
    """The value that the text writes, where it is a number, a text, true or false."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, bool | int | float | str) else text

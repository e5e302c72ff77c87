"""Trackers get the coreset's settings with the stock arguments, so that runs group by method."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_run import arguments, coreset_config, trainer
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from coretune.config import ConfigError
from coretune.rounds.quota_request import parse_quota
from coretune.training.trackers import refuse_missing_trackers, send_to_trackers, tracked


class StandIn(TrainerCallback):
    """Does what transformers' trackers do with the arguments."""

    def setup(self, args: Any, state: Any, model: Any, **_: Any) -> None:
        self.written = [args.to_dict(), json.loads(args.to_json_string()), args.to_sanitized_dict()]
        self.seed = args.seed

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.setup(args, state, model)


def test_a_tracker_is_given_the_settings_of_the_coreset_with_the_stock_arguments(tmp_path: Path) -> None:
    tracker = StandIn()
    made = trainer(tmp_path, coreset_config("random"), max_steps=1, callbacks=[tracker])
    made.train()
    assert tracker.seed == made.args.seed
    for written in tracker.written:
        assert written["coreset/method"] == "random"
        assert written["learning_rate"] == made.args.learning_rate
    assert "coreset/method" not in made.args.to_dict()  # what is saved is the stock class's own


def test_a_tracker_that_is_not_installed_is_refused_with_those_that_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = "coretune.training.trackers.get_available_reporting_integrations"
    monkeypatch.setattr(module, lambda: ["mlflow"])
    refuse_missing_trackers(["mlflow", "flyte"])
    with pytest.raises(
        ConfigError, match="report_to is wandb, whose package is not installed: install it, or take mlflow"
    ):
        refuse_missing_trackers(["mlflow", "wandb"])


def test_settings_are_numbers_texts_and_booleans() -> None:
    found = tracked(coreset_config("grace", weighted=False))
    assert found["coreset/method"] == "grace"
    assert found["coreset/budget"] == "25 %"
    assert found["coreset/refresh_every"] == 2
    assert found["coreset/weighted"] is False
    assert all(isinstance(value, str | int | float) for value in found.values())


def test_no_setting_that_names_data_or_a_machine_is_given_away() -> None:
    found = tracked(coreset_config("random", quota=parse_quota({"source": {"secret-source": 0.3}})))
    assert "secret" not in json.dumps(found)


class Unlike(dict[str, Any]):
    """A stand-in of a tracker's library: takes every call."""

    def __getattr__(self, _: str) -> Any:
        return lambda *args, **kwargs: self.setdefault("given", []).append((args, kwargs))


def test_the_tracker_without_a_setup_gets_them_too(tmp_path: Path) -> None:
    """TensorBoard's, which writes the arguments as JSON; its library need not be installed."""
    tracker = object.__new__(INTEGRATION_TO_CALLBACK["tensorboard"])
    tracker.logging_dir, tracker.tb_writer = str(tmp_path), (writer := Unlike())
    send_to_trackers([tracker], coreset_config("d2"))
    tracker.on_train_begin(arguments(tmp_path), TrainerState(is_world_process_zero=True), TrainerControl())
    (name, text), _ = writer["given"][0]
    assert (name, json.loads(text)["coreset/method"]) == ("args", "d2")


@pytest.mark.parametrize("name", ["mlflow", "trackio", "wandb"])
def test_the_trackers_of_transformers_set_up_with_the_arguments_of_the_beginning(name: str) -> None:
    tracker, seen = object.__new__(INTEGRATION_TO_CALLBACK[name]), []
    tracker.setup = lambda args, *_, **__: seen.append(args.to_dict())
    tracker._initialized, tracker._auto_end_run = False, False
    tracker._wandb, tracker._trackio = Unlike(), Unlike()
    send_to_trackers([tracker], coreset_config("craig"))
    args = arguments(Path("nowhere"))
    tracker.on_train_begin(args, TrainerState(is_world_process_zero=True), TrainerControl())
    assert seen[0]["coreset/method"] == "craig"

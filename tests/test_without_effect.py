"""Settings that do nothing by a run's target, rows, length or other arguments are named."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from checkpoint_method import ByCheckpoints
from fake_run import config
from tiny_run import corpus, model_folder
from transformers import AutoModelForCausalLM, TrainingArguments
from trl import SFTConfig

from coretune.filters.narrow import Narrow
from coretune.measure.settings import MeasureSettings
from coretune.measure.signals import measurer
from coretune.policies.unused_settings import unused_settings
from coretune.rounds.budget import parse_budget
from coretune.rounds.schedule import Schedule
from coretune.scoring.evaluate_section import EvaluateSection
from coretune.select.loss import Loss
from coretune.select.random import Random
from coretune.select.rds import Rds
from coretune.training.without_effect import (
    OF_EVALUATION,
    READ_WITH,
    arguments_without_effect,
    settings_without_effect,
)

LENGTH = np.full(40, 10)
CASCADE = {"anchors": "all", "propagate": "none", "repair": "none"}


def told(
    selector: Any, steps: int = 20, every: int = 1, target: bool = False, store: bool = False, **settings: Any
) -> list[str]:
    made = config(selector, **settings)
    return list(settings_without_effect(made, Schedule(2, 4, 0, every), steps, LENGTH, target, store))


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            {"target": True},
            "method loss does not choose by a target: the target only keeps its own rows out of training",
        ),
        ({"target": True, "selector": Rds()}, None),
        ({"store": True}, None),
        ({"store": True, "selector": Random()}, "signals_dir has no effect: method random measures nothing"),
        ({"record_unchosen": 7}, "record_unchosen has no effect: a pool of 40 rows is recorded whole"),
        (
            {"filters": (Narrow(times=5, by="spread"),), **CASCADE},
            "filters.narrow has no effect: 5 times the budget is the whole pool",
        ),
        (
            {"filters": (Narrow(by="spread"),), "budget": parse_budget("100 tokens"), **CASCADE},
            "filters.narrow has no effect: 4 times the budget is the whole pool",
        ),
        ({"filters": (Narrow(by="spread"),), **CASCADE}, None),
        (
            {"refresh_every": 20, "every": 10},
            "refresh_every is 20, and after 20 steps training is over: one coreset is chosen",
        ),
        ({"refresh_every": 20, "every": 10, "steps": 21}, None),
        ({"refresh_every": "pass", "every": 10}, None),
        ({"refresh_every": "never", "every": 0}, None),
        (
            {"refresh_every": 4, "every": 2, "audit_every": 5},
            "refresh.audit_every is 5, and not more than 5 coresets are chosen: none is audited",
        ),
        ({"refresh_every": 4, "every": 2, "audit_every": 4}, None),
    ],
)
def test_what_this_run_leaves_without_effect_is_named(given: dict[str, Any], line: str | None) -> None:
    given = {"selector": Loss(), **given}
    assert told(**given) == ([] if line is None else [line])


def test_a_key_of_training_that_is_read_with_another_is_named_without_it() -> None:
    given = {key: 1 for keys in READ_WITH for key in keys} | dict.fromkeys(OF_EVALUATION, 1)
    assert given.keys() <= SFTConfig.__dataclass_fields__.keys()
    none = SimpleNamespace(
        eval_strategy="no",
        save_strategy="epoch",
        logging_strategy="no",
        lr_scheduler_type="linear",
        load_best_model_at_end=False,
        packing=False,
        gradient_checkpointing=False,
        use_liger_kernel=False,
        push_to_hub=False,
    )
    lines = list(arguments_without_effect(given, none, False))
    assert [line.split()[0].removeprefix("training.") for line in lines] == list(given)
    assert lines[0] == "training.eval_steps has no effect without eval_strategy: steps"
    assert lines[-1].endswith("has no effect without eval_data or eval_fraction")
    every = {"eval_strategy": "steps", "load_best_model_at_end": True, "save_steps": 500, "push_to_hub": True}
    every["use_liger_kernel"] = True
    args = SFTConfig("o", use_cpu=True, packing=True, gradient_checkpointing=True, **every)
    assert not list(arguments_without_effect(given, args, True))
    assert not list(arguments_without_effect({}, TrainingArguments("o", use_cpu=True), False))


def test_keys_of_evaluate_without_what_reads_them_are_named() -> None:
    assert list(EvaluateSection(max_new_tokens=9, task_rows=3).without_effect) == [
        "evaluate.max_new_tokens has no effect: of the metrics only rouge generates answers",
        "evaluate.task_rows has no effect: evaluate.tasks names none",
    ]
    assert not list(EvaluateSection(max_new_tokens=9, metric=["loss", "rouge"]).without_effect)
    assert not list(EvaluateSection(max_new_tokens=128, tasks=["arc"], task_rows=3).without_effect)


#: Key of `signals` -> another value; batch_tokens changes what is held at once, and no signal.
OTHER = {
    "last_blocks": 1,
    "parameters": "trainable",
    "projection_dim": 32,
    "factor_dim": 8,
    "basis": "sjlt",
}


@pytest.mark.parametrize("under", [{}, {"basis": "sjlt"}])
def test_settings_of_signals_are_said_to_be_unread_where_they_change_no_signal(under: dict[str, Any]) -> None:
    model, rows = AutoModelForCausalLM.from_pretrained(model_folder()), corpus()
    base = MeasureSettings(projection_dim=64, factor_dim=4, seed=0, **under)

    def measured(name: str, settings: MeasureSettings) -> Any:
        return measurer(model, rows, [name], settings, pad_token_id=0, bos_token_id=1)(np.arange(3))[name]

    for name in (
        "loss",
        "weighted_embedding",
        "gradient_norm",
        "gradient",
        "if_gradient",
        "head_gradient",
    ):
        unused = unused_settings(config(ByCheckpoints(signal=name), warmup=0.1, signals=base, **CASCADE))[
            "signals"
        ]
        one = measured(name, base)
        for key, value in OTHER.items():
            if getattr(base, key) != value:
                other = measured(name, replace(base, **{key: value}))
                same = one.shape == other.shape and np.allclose(one, other, atol=1e-6)
                assert same == (key in unused), (name, key)

"""Settings that this run leaves without effect: by its target, its rows, its length or its other arguments.

What a method never reads, whatever the rows, `policies/unused_settings.py` says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from coretune.recording.audit import WHOLE_POOL
from coretune.rounds.coreset_config import CoresetConfig
from coretune.rounds.schedule import Schedule
from coretune.rounds.targets import TARGET_SIGNALS
from coretune.rounds.transitions import empty_pool
from coretune.types import Array

#: Keys of `training` -> what must be set for them to be read, and whether it is.
READ_WITH: Mapping[tuple[str, ...], tuple[str, Callable[[Any], Any]]] = {
    ("eval_steps",): ("eval_strategy: steps", lambda args: args.eval_strategy == "steps"),
    ("save_steps",): ("save_strategy: steps", lambda args: args.save_strategy == "steps"),
    ("logging_steps",): ("logging_strategy: steps", lambda args: args.logging_strategy == "steps"),
    ("metric_for_best_model", "greater_is_better"): (
        "load_best_model_at_end, save_strategy: best or lr_scheduler_type: reduce_lr_on_plateau",
        lambda args: (
            args.load_best_model_at_end
            or args.save_strategy == "best"
            or args.lr_scheduler_type == "reduce_lr_on_plateau"
        ),
    ),
    ("liger_kernel_config",): ("use_liger_kernel: true", lambda args: args.use_liger_kernel),
    ("packing_strategy",): ("packing: true", lambda args: args.packing),
    ("gradient_checkpointing_kwargs",): (
        "gradient_checkpointing: true",
        lambda args: args.gradient_checkpointing,
    ),
    ("hub_model_id", "hub_strategy", "hub_private_repo", "hub_always_push", "hub_revision"): (
        "push_to_hub: true",
        lambda args: args.push_to_hub,
    ),
}
#: Keys of `training` that are read where there is evaluation data.
OF_EVALUATION = ("eval_delay", "eval_on_start", "eval_accumulation_steps", "per_device_eval_batch_size")


def settings_without_effect(
    config: CoresetConfig, schedule: Schedule, steps: int, length: Array, target: bool, store: bool
) -> Iterator[str]:
    """A line for each.

    steps   of the whole run
    length  (n,) tokens of the pool's rows
    target  whether a target is given
    store   whether a folder for the first measurement is
    """
    name = getattr(config.selector, "name", type(config.selector).__name__)
    n, needs = len(length), set(config.needs)
    if target and not TARGET_SIGNALS & needs:
        yield f"method {name} does not choose by a target: the target only keeps its own rows out of training"
    if store and not needs:
        yield f"signals_dir has no effect: method {name} measures nothing"
    if config.record_unchosen != CoresetConfig.record_unchosen and n <= WHOLE_POOL:
        yield f"record_unchosen has no effect: a pool of {n:,} rows is recorded whole"
    if config.narrow is not None and _leaves_all(config, length):
        yield f"filters.narrow has no effect: {config.narrow.times:g} times the budget is the whole pool"
    yield from _beyond(config, schedule, steps)


def _leaves_all(config: CoresetConfig, length: Array) -> bool:
    assert config.narrow is not None
    budget = config.budget.resolve(empty_pool(length))
    whole = len(length) if budget.unit == "rows" else int(length.sum())
    return config.narrow.times * budget.amount >= whole


def _beyond(config: CoresetConfig, schedule: Schedule, steps: int) -> Iterator[str]:
    """What would come after the last step."""
    made = schedule.selections(steps)
    if config.refresh_every not in ("never", "pass") and made == 1:
        yield (
            f"refresh_every is {config.refresh_every}, and after {steps} steps training is over: one coreset "
            "is chosen"
        )
    if config.audit_every is not None and config.needs and 1 <= made <= config.audit_every:
        yield (
            f"refresh.audit_every is {config.audit_every}, and not more than {made} coresets are chosen: "
            "none is audited"
        )


def arguments_without_effect(given: Mapping[str, Any], args: Any, evaluated: bool) -> Iterator[str]:
    """A line for each key of `training` that is given and that nobody reads without another.

    args       made of them
    evaluated  whether there is evaluation data
    """
    for keys, (wanted, holds) in READ_WITH.items():
        for key in keys:
            if given.get(key) is not None and not holds(args):
                yield f"training.{key} has no effect without {wanted}"
    for key in OF_EVALUATION:
        if given.get(key) and not evaluated:
            yield f"training.{key} has no effect without eval_data or eval_fraction"

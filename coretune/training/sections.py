"""The sections of a config that are the stock libraries' own: `training` and `peft`.

The rows are tokenised here, not by TRL (`data/`). So a key of SFTConfig that shapes rows is honoured here
too, or named in an error (`stock_fields.py`): none is taken and left without effect.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

import torch
from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import TrainingArguments
from trl import SFTConfig

from coretune.config import ConfigError, RunConfig
from coretune.keys import refuse_unknown
from coretune.stock_fields import ELSEWHERE
from coretune.training.few_bits import quantization
from coretune.training.trackers import refuse_missing_trackers

#: Keys that SFTConfig has beyond TrainingArguments and that are honoured, here or by TRL's trainer.
BY_ROWS = (
    "assistant_only_loss",
    "chat_template_path",
    "completion_only_loss",
    "dataset_num_proc",
    "eos_token",
)
BY_MODEL = ("activation_offloading", "loss_type", "model_init_kwargs", "pad_token", "router_aux_loss_coef")
BY_BATCHES = ("max_length", "packing", "packing_strategy", "padding_free", "pad_to_multiple_of")
SFT_KEYS = frozenset((*BY_ROWS, *BY_MODEL, *BY_BATCHES, "trust_remote_code"))
#: Left to the rows: TRL would judge them by a dataset that it did not prepare.
ROWS_ONLY = ("assistant_only_loss", "completion_only_loss")
MAPPINGS = ("_kwargs", "liger_kernel_config")  # ends of the names of mappings
NUMBERS = {bool, float, int}

#: Key -> why none of its values does anything here.
PEFT_REFUSED: Mapping[str, str] = {
    "auto_mapping": "peft writes it itself: leave it out",
    "base_model_name_or_path": "it is model_name_or_path: leave it out",
    "peft_version": "peft writes it itself: leave it out",
    "revision": "write training.model_init_kwargs: {revision: …}",
    "inference_mode": "nothing would be trained: leave it out",
    "megatron_config": "Megatron's layers are not trained here: leave it out",
    "megatron_core": "Megatron's layers are not trained here: leave it out",
    "corda_config": "it needs statistics of the data before training: prepare the model in Python",
    "eva_config": "it needs statistics of the data before training: prepare the model in Python",
    "lora_ga_config": "it needs gradients of the data before training: prepare the model in Python",
    "arrow_config": "it routes between adapters that are trained already: leave it out",
    "use_qalora": "only GPTQ layers have it, which are not trained here: leave it out",
    "qalora_group_size": "only GPTQ layers have it, which are not trained here: leave it out",
}
PREPARED_INIT = ("corda", "eva", "lora_ga")
PEFT_TYPES_REFUSED: Mapping[str, str] = {
    "ADALORA": "its ranks change by calls after each step, which no stock trainer makes",
    "MULTITASK_PROMPT_TUNING": "it needs a task number in each row",
    "POLY": "it needs a task number in each row",
    "XLORA": "it mixes adapters that are trained already",
}


def training_arguments(config: RunConfig) -> SFTConfig:
    """The stock SFTConfig of the `training` section; ConfigError for a key that would do nothing."""
    for name, value in config.training.items():
        _refuse_later(name, value)
    given = {"output_dir": config.output_dir, "seed": config.seed, **config.training}
    given = {name: value for name, value in given.items() if name not in ROWS_ONLY}
    if not torch.accelerator.is_available():
        given.setdefault("use_cpu", True)  # without it transformers refuses bf16 where there is no GPU
    try:
        args = SFTConfig(**{**given, "dataset_kwargs": {"skip_prepare_dataset": True}})
    except (ValueError, TypeError) as error:
        raise ConfigError(f"training: {' '.join(str(error).split())}") from None
    for name in given:
        if name.endswith(MAPPINGS) and isinstance(
            getattr(args, name), str
        ):  # the stock class reads text that is a JSON object
            raise ConfigError(f"training.{name} is a text that is no JSON object: give a mapping")
    refuse_missing_trackers(args.report_to)
    if few := quantization(config, args):
        args.model_init_kwargs = {**(args.model_init_kwargs or {}), "quantization_config": few}
    return args


def _refuse_later(name: str, value: Any) -> None:
    """ConfigError for a key that a later TRL has, and that shapes rows: it is not read anywhere."""
    known = name in ELSEWHERE or name in SFT_KEYS or name in TrainingArguments.__dataclass_fields__
    if not known and value != _default(SFTConfig, name):
        raise ConfigError(f"training.{name} is {value!r}, and rows are prepared without it: leave it out")


def _default(part: type, name: str) -> Any:
    field = next(field for field in fields(part) if field.name == name)
    return field.default if field.default_factory is MISSING else field.default_factory()


def adapter_config(config: RunConfig) -> PeftConfig | None:
    """The stock config of the `peft` section, of the type that it names; None for full fine-tuning."""
    if config.peft is None:
        return None
    given = dict(config.peft)
    kind = given.pop("peft_type", "LORA")
    known = {str(name.value): made for name, made in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    name = str(kind.value if isinstance(kind, PeftType) else kind).upper()
    if name in PEFT_TYPES_REFUSED:
        raise ConfigError(
            f"peft.peft_type is {kind!r}, and {PEFT_TYPES_REFUSED[name]}: take another, as LORA"
        )
    for key, value in given.items():
        _refuse_dead_adapter(known[name], key, value)
    made = _made(known[name], {"task_type": "CAUSAL_LM", **given})
    if made.task_type != "CAUSAL_LM":
        raise ConfigError(
            f"peft.task_type is {given['task_type']!r}, and causal language models are trained: leave it out"
        )
    if made.is_prompt_learning and not getattr(made, "num_virtual_tokens", None):
        raise ConfigError(f"peft.num_virtual_tokens is missing, and {name} needs it: give a number of tokens")
    return made


def _refuse_dead_adapter(kind: type, key: str, value: Any) -> None:
    hint = _hints(kind).get(key)
    kinds = ({hint} if get_origin(hint) is list else set(get_args(hint) or (hint,))) - {type(None)}
    if {get_origin(one) for one in kinds} == {list} and not isinstance(value, list | None):
        raise ConfigError(f"peft.{key} is {value!r:.80}: give a list")
    if kinds <= NUMBERS and not isinstance(value, int | float | None):
        raise ConfigError(
            f"peft.{key} is {value!r:.80}: give a number, or true or false where it is a switch"
        )
    if kinds <= {str, list, list[str]} and isinstance(value, int | float):
        raise ConfigError(f"peft.{key} is {value!r:.80}: give text, or a list where it takes several")
    if key in PEFT_REFUSED and value != _default(kind, key):
        raise ConfigError(f"peft.{key} is {value!r}, which has no effect here: {PEFT_REFUSED[key]}")
    if key == "init_lora_weights" and value in PREPARED_INIT:
        raise ConfigError(
            f"peft.init_lora_weights is {value!r}, which needs statistics of the data before training: "
            "prepare "
            "the model in Python, or take true, gaussian, pissa or olora"
        )


def _made(kind: type, given: Mapping[str, Any]) -> PeftConfig:
    """ConfigError for values that the config refuses, and for those that it says it ignores."""
    try:
        given = {key: _nested(kind, key, value) for key, value in given.items()}
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            made = kind(**given)
    except (ValueError, TypeError, AttributeError, ImportError) as error:
        raise ConfigError(f"peft: {' '.join(str(error).split())}") from None
    for warning in said:
        if "ignored" in str(warning.message):
            raise ConfigError(f"peft: {' '.join(str(warning.message).split())}")
    return made


def _nested(kind: type, key: str, value: Any) -> Any:
    """A mapping as the config class that the field wants, where it wants one."""
    if not isinstance(value, dict):
        return value
    hint = _hints(kind).get(key)
    wanted = [part for part in (hint, *get_args(hint)) if isinstance(part, type)]
    classes = [part for part in wanted if is_dataclass(part)]
    if not classes:
        return value
    refuse_unknown(f"peft.{key}.", value, classes[0].__dataclass_fields__)
    return classes[0](**value)


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)

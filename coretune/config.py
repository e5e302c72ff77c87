"""The run's config: read, overridden, checked.

model_name_or_path, train_data, eval_data, columns, output_dir, seed, skip_bad_rows
eval_fraction: share of train_data that is held out as evaluation data
train_on:     of a conversation the last answer, or all answers
target_data:  a file, or {file: share of the budget}
corpus_dir:   where tokenised rows are kept for the next start with the same; left out: a temporary folder
signals_dir:  where scans of the pool are kept, so that runs may share them; left out: RUN/signals
coreset:   method (or a preset, `presets.py`), budget, filters, refresh, signals, … (`coreset_section.py`)
training:  the stock trl.SFTConfig, passed through
peft:      the stock peft.LoraConfig, passed through; left out = full fine-tuning, or where the model is an
           adapter that adapter
load_in_4bit, load_in_8bit: of the frozen weights under an adapter, by bitsandbytes
evaluate:  file, metric, max_new_tokens, rows, tasks, task_rows: how good the trained model is (`quality.py`)
report:    when report.html is written: after refreshes and at the end, at the end, never
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from coretune.adapter_folder import holds_adapter, located, may_be_hub_id
from coretune.coreset_section import build_coreset, nested, top_keys
from coretune.data.raw import CorpusError
from coretune.data.sources import absent, is_path, sources_of
from coretune.keys import nearest, put, refuse_unknown
from coretune.other_tools import answer
from coretune.scoring.evaluate_section import EvaluateSection
from coretune.secrets import HIDDEN, is_secret, without_secrets
from coretune.stock_fields import LORA, SFT, Classes, adapters, dead_value, field_types, first_wrong
from coretune.yaml_text import ConfigError, read_file, read_text

PROVENANCE = "provenance"  # versions and fingerprints, written by a run into its own config.yaml
TOP_ONLY = ("output_dir", "seed", "resume_from_checkpoint")  # not in `training`
PLACES = ("model_name_or_path", "train_data", "eval_data", "output_dir", "corpus_dir", "signals_dir")
_NO_PATHS = ("columns", PROVENANCE)  # sections whose texts name no files
#: Keys of `training` that may name a file, and how such a name ends, or else it is something else.
FILES_OF_TRAINING = ("accelerator_config", "chat_template_path", "deepspeed", "fsdp_config")
ENDS_OF_FILES = (".jinja", ".j2", ".json")
#: Keys of `training` with a value that YAML 1.1 reads as false: what is meant.
_NO = {"eval_strategy": "no", "logging_strategy": "no", "save_strategy": "no", "report_to": "none"}


class RunConfig(BaseModel):
    """A checked config file. Sections are kept as written, so that a run's copy replays it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model_name_or_path: str
    train_data: str | dict[str, Any] | list[str | dict[str, Any]]
    output_dir: str
    coreset: dict[str, Any]
    eval_data: str | dict[str, Any] | list[str | dict[str, Any]] | None = None
    eval_fraction: float | None = Field(None, gt=0, lt=1)
    target_data: str | dict[str, float] | None = None
    corpus_dir: str | None = None
    signals_dir: str | None = None
    columns: dict[str, str] | None = None
    seed: int = Field(0, ge=0, lt=2**32, strict=True)  # what numpy's generators take
    train_on: Literal["last", "all"] = "last"
    skip_bad_rows: bool = False
    resume_from_checkpoint: str | bool | None = None
    training: dict[str, Any] = {}
    peft: dict[str, Any] | None = None
    load_in_4bit: bool = Field(False, strict=True)
    load_in_8bit: bool = Field(False, strict=True)
    evaluate: EvaluateSection | None = None
    report: Literal["refresh", "end", "never"] = "refresh"
    provenance: dict[str, Any] | None = None

    @property
    def evaluated(self) -> bool:
        """Whether there is evaluation data."""
        return self.eval_data is not None or self.eval_fraction is not None

    @property
    def coreset_seed(self) -> int:
        """Of the coreset's draws: what seeds the order of the data, as in the stock trainer."""
        given = self.training.get("data_seed")
        return self.seed if given is None else given


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, apply `key=value` overrides (`coreset.budget=5%`), check every key.

    Raises ConfigError; an unknown key names the nearest known one.
    """
    raw = read_file(path)
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{path} holds {type(raw).__name__}; a config is `key: value` lines, see the README"
        )
    for override in overrides:
        _override(raw, override)
    return check_config(raw)


def load_present(path: str | Path, overrides: Sequence[str] | None) -> RunConfig:
    """`load_config`, and ConfigError where the model or data is not there (`refuse_absent`)."""
    config = load_config(path, overrides or ())
    refuse_absent(config)
    return config


def check_config(raw: Mapping[str, Any]) -> RunConfig:
    """A RunConfig of plain values, every section's keys and values checked."""
    unknown = {key: value for key, value in raw.items() if key not in RunConfig.model_fields}
    if said := answer(unknown, field_types(SFT), [*_below(), *RunConfig.model_fields]):
        raise ConfigError(said)
    refuse_unknown("", raw, RunConfig.model_fields, _below())
    if raw.get(PROVENANCE) and isinstance(raw.get("coreset"), Mapping):
        raw = {**raw, "coreset": nested(raw["coreset"])}  # a run of before settings were nested wrote it
    raw = {key: value if key in _NO_PATHS else _at_home(value) for key, value in raw.items()}
    if isinstance(raw.get("training"), Mapping):
        raw = {**raw, "training": {key: _said(key, value) for key, value in raw["training"].items()}}
    try:
        config = RunConfig(**raw)
    except ValidationError as error:
        raise ConfigError(_first(error)) from None
    _check_texts(config)
    _check_data(config)
    build_coreset(config.coreset, config.coreset_seed)
    _check_shares(config.target_data)
    _check_stock(config)
    _check_bits(config)
    if not may_be_hub_id(config.model_name_or_path):  # else `at_hand` asks the hub, once that is needed
        _check_adapter(config, holds_adapter(config.model_name_or_path))
    _check_places(config)
    return config


def _below() -> list[str]:
    """Paths of keys of the sections, for one that was written a level too high."""
    sections = {"coreset": top_keys(), "training": field_types(SFT), "peft": field_types(LORA)}
    return [f"{section}.{key}" for section, keys in reversed(sections.items()) for key in keys]


def refuse_absent(config: RunConfig) -> None:
    """ConfigError for a model or data that is plainly a path and not there; hub ids are asked for later."""
    model = config.model_name_or_path
    targets: Any = config.target_data or []
    if is_path(model) and not Path(model).is_dir():
        raise ConfigError(
            f"model_name_or_path is {model}, and there is no such folder; give a model folder or a hub id"
        )
    sources = [("target_data", name) for name in ([targets] if isinstance(targets, str) else targets)]
    sources += [("train_data", config.train_data), ("eval_data", config.eval_data)]
    sources += [("evaluate.file", config.evaluate.file if config.evaluate else None)]
    for key, source in sources:
        if source is not None and (missing := absent(source)) is not None:
            raise ConfigError(
                f"{key} is {missing}, and there is no such file or folder; check its name, and the "
                "working directory"
            )
    given = {f"training.{key}": config.training.get(key) for key in FILES_OF_TRAINING}
    for key, file in [*given.items(), ("resume_from_checkpoint", config.resume_from_checkpoint)]:
        named = isinstance(file, str) and (is_path(file) or file.endswith(ENDS_OF_FILES))
        if named and not Path(str(file)).exists():
            raise ConfigError(
                f"{key} is {file}, which is not there: check its name, and the working directory"
            )


def _said(key: str, value: Any) -> Any:
    """`save_strategy: no` as it is meant."""
    return _NO[key] if value is False and key in _NO else value


def _check_shares(targets: str | Mapping[str, float] | None) -> None:
    if not isinstance(targets, Mapping):
        return
    if not targets or not all(share > 0 for share in targets.values()):
        raise ConfigError(
            f"target_data is {dict(targets)}: give each file a share above 0, as {{a.jsonl: 0.7}}"
        )
    if abs(sum(targets.values()) - 1) > 1e-6:
        raise ConfigError(
            f"the shares of target_data sum to {sum(targets.values()):g}: let them sum to 1, the whole budget"
        )


def _check_stock(config: RunConfig) -> None:
    """ConfigError for keys and values of `training` and `peft` that the stock classes do not know."""
    for name in TOP_ONLY:
        if name in config.training:
            raise ConfigError(f"training.{name} belongs at the top of the config: write {name} there")
    sections: dict[str, tuple[Classes, Mapping[str, Any]]] = {"training": (SFT, config.training)}
    if config.peft is not None:
        sections["peft"] = (_adapter_classes(config.peft), config.peft)
    for name, (classes, section) in sections.items():
        known = field_types(classes)
        unknown = {key: value for key, value in section.items() if key not in known}
        if classes in (SFT, LORA) and (said := answer(unknown, ())):
            raise ConfigError(f"{name}: {said}")
        refuse_unknown(f"{name}.", section, known)
        for key, value in section.items() if name == "training" else ():
            if why := dead_value(key, value):
                raise ConfigError(f"training.{key} is {_shown(key, value)}, which has no effect here: {why}")
        if wrong := first_wrong(classes, section):
            key, remedy = wrong
            raise ConfigError(f"{name}.{key} is {_shown(key, section[key])}: {remedy}")


def _adapter_classes(section: Mapping[str, Any]) -> Classes:
    kind = section.get("peft_type", "LORA")
    name = str(getattr(kind, "value", kind)).upper()
    if name == "LORA":
        return LORA
    if name not in adapters():
        known = ", ".join(sorted(adapters()))
        raise ConfigError(f"peft.peft_type is {kind!r:.80}{nearest(name, adapters())}; there are {known}")
    return adapters()[name]


def at_hand(config: RunConfig) -> RunConfig:
    """With the folder in the hub's cache for the model's name, where that is an adapter's on the hub.

    ConfigError where the sections of the config do not fit an adapter, or a whole model.
    """
    kwargs = mapping_of(config.training.get("model_init_kwargs"))
    folder, how = located(config.model_name_or_path, kwargs)
    _check_adapter(config, holds_adapter(folder))
    training = {**config.training, "model_init_kwargs": how} if how != (kwargs or {}) else config.training
    return config.model_copy(update={"model_name_or_path": folder, "training": training})


def mapping_of(kwargs: Any) -> Any:
    """`model_init_kwargs`; of a text the JSON object that it holds, which the stock class reads too."""
    if not isinstance(kwargs, str):
        return kwargs
    try:
        found = json.loads(kwargs)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError("training.model_init_kwargs is a text that is no JSON object: give a mapping")
    return found


def _check_adapter(config: RunConfig, adapted: bool) -> None:
    """ConfigError where an adapter is given twice, or weights of few bits are without one."""
    model = config.model_name_or_path
    if adapted and config.peft is not None:
        raise ConfigError(
            f"model_name_or_path is {model}, an adapter, which is trained on with its own settings: leave "
            f"peft out; for a new adapter give the merged model (coretune merge {model})"
        )
    quantized = _quantized(config)
    if quantized and config.peft is None and not adapted:
        raise ConfigError(
            f"{quantized[0]} freezes the model's weights, and nothing else would be trained: add a section "
            "peft, as peft: {r: 16, target_modules: all-linear}"
        )


def _check_bits(config: RunConfig) -> None:
    """ConfigError where it is said twice how weights are loaded."""
    quantized = _quantized(config)
    if len(quantized) > 1:
        raise ConfigError("load_in_4bit and load_in_8bit are both true: give one of them")
    given = config.training.get("model_init_kwargs")
    if quantized and isinstance(given, Mapping) and "quantization_config" in given:
        raise ConfigError(
            f"{quantized[0]} and training.model_init_kwargs.quantization_config both say how weights are "
            "loaded: give one of them"
        )


def _quantized(config: RunConfig) -> list[str]:
    return [name for name in ("load_in_4bit", "load_in_8bit") if getattr(config, name)]


def _check_data(config: RunConfig) -> None:
    """ConfigError for entries of train_data and eval_data that say nothing, and for two evaluation data."""
    if config.eval_data is not None and config.eval_fraction is not None:
        raise ConfigError("eval_data and eval_fraction both say what is evaluated: give one of them")
    for key in ("train_data", "eval_data"):
        try:
            if getattr(config, key) is not None:
                sources_of(getattr(config, key))
        except CorpusError as error:
            raise ConfigError(f"{key}: {error}") from None


def _check_texts(config: RunConfig) -> None:
    """ConfigError for names of files and models that no file system has."""
    texts: dict[str, Any] = {name: getattr(config, name) for name in (*PLACES, "resume_from_checkpoint")}
    targets = config.target_data
    texts["target_data"] = list(targets) if isinstance(targets, Mapping) else targets
    for name, value in texts.items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and not (text.strip() and text.isprintable()):
                raise ConfigError(f"{name} is {text!r:.80}: give a name of printable characters")


def _check_places(config: RunConfig) -> None:
    """ConfigError for a folder of rows or signals where a push to a hub would take it along."""
    home = _resolved(config.output_dir)
    for name in ("corpus_dir", "signals_dir"):
        given = getattr(config, name)
        if given is None:
            continue
        place = _resolved(given)
        if place != home and home not in place.parents:
            continue
        if place == home or not place.relative_to(home).parts[0].startswith("_"):
            raise ConfigError(
                f"{name} is {given}, within output_dir, which push_to_hub uploads, and holds what is of your "
                f"rows: put it beside output_dir, or below {config.output_dir}/_coretune"
            )


def _resolved(path: str) -> Path:
    try:
        return Path(path).expanduser().resolve()
    except (OSError, RuntimeError) as error:  # a loop of links; a user who has no home
        raise ConfigError(f"{path} is no path: {error}") from None


def _shown(key: str, value: Any) -> str:
    """The value as a message has it: short, and no secret."""
    return HIDDEN if is_secret(key) else f"{without_secrets(value)!r:.80}"


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is not an override; write key=value, as in coreset.budget=5%")
    put(raw, key, read_text(value, repr(override)))


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"] if "[" not in str(part))  # without kinds of a union
    if first["type"] == "missing":
        return f"{key} is missing from the config"
    return f"{key} is {first['input']!r:.80}: {first['msg'].lower()}"


def _at_home(value: Any) -> Any:
    """With the home folder in the place of ~ in every path, however deep: whoever uses one later, and in what
    library, means the same folder."""
    if isinstance(value, Mapping):
        return {_at_home(key): _at_home(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_at_home(one) for one in value]
    if not isinstance(value, str) or not re.match(r"~[^/\s]*(/|$)", value):
        return value
    path = os.path.expanduser(value)
    if path == value:
        raise ConfigError(f"{value} begins with the home folder of a user who is not on this machine")
    return path

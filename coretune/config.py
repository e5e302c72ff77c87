"""The run's config: the one place where strings become objects.

model_name_or_path, train_data, eval_data, columns, output_dir, seed, skip_bad_rows
eval_fraction: share of train_data that is held out as evaluation data
train_on:     of a conversation the last answer, or all answers
target_data:  a file, or {file: share of the budget}
corpus_dir:   where tokenised rows are kept for the next start with the same; left out: a temporary folder
signals_dir:  where whole looks at the pool are kept, so that runs may share them; left out: RUN/signals
coreset:   method (or a preset, `presets.py`), budget, filters, and side by side the settings of that
           method, of the refresh, of the measurement.
           What is not given is what the method asks for, and else the setting's own default
training:  the stock trl.SFTConfig, passed through
peft:      the stock peft.LoraConfig, passed through; left out = full fine-tuning
evaluate:  file, metric, max_new_tokens, rows, tasks, task_rows: how good the trained model is (`quality.py`)
report:    when report.html is written: after refreshes and at the end, at the end, never
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from coretune.data.raw import CorpusError
from coretune.data.sources import absent, is_path, sources_of
from coretune.filters import FILTERS
from coretune.measure.settings import MeasureSettings
from coretune.presets import PRESETS, expanded
from coretune.rounds.budget import BudgetRequest, parse_budget
from coretune.rounds.quota_request import QuotaRequest, parse_quota
from coretune.rounds.refresh_settings import AnchorRefresh
from coretune.rounds.schedule import CoresetConfig
from coretune.scoring.evaluate_section import EvaluateSection
from coretune.secrets import HIDDEN, is_secret, without_secrets
from coretune.select import SELECTORS
from coretune.stock_fields import LORA, SFT, field_types, first_wrong
from coretune.types import TRAINERS_SEED, Filter, Selector, Taught
from coretune.yaml_text import ConfigError, read_file, read_text

PROVENANCE = "provenance"  # versions and fingerprints, written by a run into its own config.yaml
TOP_ONLY = ("output_dir", "seed", "resume_from_checkpoint")  # not in `training`
PLACES = ("model_name_or_path", "train_data", "eval_data", "output_dir", "corpus_dir", "signals_dir")
_NO_PATHS = ("columns", PROVENANCE)  # sections whose texts name no files
_OWN = {"method", "budget", "quota", "filters"}
#: Keys of the coreset section that are gone: what to write now.
_RENAMED = {
    "mismatched": "filters: [{noise: {pairs: …}}], or [{neighbours: {pairs: …}}]",
    "tells_above": "filters: [{neighbours: {on_above: …}}]",
    "loss_above": "filters: [neighbours], whose rule is fixed",
    "mismatch_above": "filters: [neighbours], whose rule is fixed",
    "copies": "filters: [{duplicates: {alike: folded}}]",
    "rest": "filters: [{cooldown: {coresets: …}}]",
    "cutoff": "filters: [noise]",
    "cutoff_by": "filters: [noise]",
}
#: Keys of TRL's configs that have another name here.
_ELSEWHERE = {
    "datasets": "write train_data: [{path: …}, …], whose entries have the same keys",
    "dataset_name": "write train_data: NAME",
    "dataset_config": "write train_data: {path: NAME, name: CONFIG}",
    "dataset_train_split": "write train_data: {path: NAME, split: SPLIT}",
    "dataset_test_split": "write eval_data: {path: NAME, split: SPLIT}",
    "test_split_size": "write eval_fraction: SHARE",
}
_OBJECTS = {"selector", "refresh"}  # made here, never written in YAML
_FROM_TRAINING = {"autocast", "seed"}  # the run's, not the coreset section's
#: Keys of `training` with a value that YAML 1.1 reads as false: what it stands for.
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


@dataclass(frozen=True)
class CoresetSection:
    """The objects the `coreset` section describes."""

    coreset: CoresetConfig
    measuring: MeasureSettings

    def spelled_out(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The section with every setting written, defaults included.

        A key of two parts (`embedding`) sets both, so it is left out where their defaults differ.
        """
        written = {key: given[key] for key in ("method", "budget", "quota") if given.get(key) is not None}
        written["filters"] = [{each.name: asdict(each)} for each in self.coreset.filters]  # type: ignore[call-overload]
        differing: set[str] = set()
        for part in (self.coreset, self.coreset.selector, self.coreset.refresh, self.measuring):
            keys = {key: name for key, name in _settings(type(part)).items() if key not in _OWN | _OBJECTS}
            for key, name in keys.items():
                value = getattr(part, name)
                value = list(value) if isinstance(value, tuple) else value
                if written.setdefault(key, value) != value:
                    differing.add(key)
        return {key: value for key, value in written.items() if key not in differing}


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


def check_config(raw: Mapping[str, Any]) -> RunConfig:
    """A RunConfig of plain values, every section's keys and values checked."""
    for key, remedy in _ELSEWHERE.items():
        if key in raw:
            raise ConfigError(f"{key} is not a key here: {remedy} (docs/data.md)")
    refuse_unknown("", raw, RunConfig.model_fields)
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
    _check_places(config)
    return config


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


def _said(key: str, value: Any) -> Any:
    """`save_strategy: no` as it is meant."""
    return _NO[key] if value is False and key in _NO else value


def build_coreset(section: Mapping[str, Any], seed: int, own: Selector | None = None) -> CoresetSection:
    """The objects of a `coreset` section; own: a selector in place of its method. Raises ConfigError."""
    section = section if own else expanded(section)
    parts = {
        "selector": type(own) if own else _method(section),
        "refresh": AnchorRefresh,
        "measuring": MeasureSettings,
        "coreset": CoresetConfig,
    }
    known = {name: set(_settings(part)) - _OBJECTS for name, part in parts.items()}
    known["coreset"] -= {"budget", "quota", "filters"}
    known["selector"] = set() if own else known["selector"]
    _refuse_renamed(section, set().union(*known.values()))
    refuse_unknown("coreset.", section, _OWN.union(*known.values()))
    selector = own or _build(parts["selector"], {k: v for k, v in section.items() if k in known["selector"]})
    if isinstance(selector, Taught):
        section = {**selector.defaults, **section}
        refuse_unknown("coreset.", section, _OWN.union(*known.values()))
    given = {name: {k: v for k, v in section.items() if k in keys} for name, keys in known.items()}
    objects = {
        "selector": selector,
        "refresh": _build(AnchorRefresh, given["refresh"]),
        "budget": _budget(section),
        "quota": _quota(section),
        "filters": filters_of(section.get("filters", [])),
        "seed": seed,
    }
    coreset = _build(CoresetConfig, given["coreset"], objects)
    return CoresetSection(coreset, _build(MeasureSettings, given["measuring"], {"seed": seed}))


def without_effect(section: Mapping[str, Any], made: CoresetSection) -> list[str]:
    """Keys of the section with a value of their own that this method and schedule never look at."""
    config, chooser = made.coreset, made.coreset.selector
    unread: set[str] = set()
    if not config.needs:
        unread |= {*_settings(AnchorRefresh), *_settings(MeasureSettings), "warmup", "wait", "audit_every"}
    if config.refresh_every != "adaptive":
        unread |= {"check_every", "threshold"}
    if config.refresh_every == "never":
        unread |= {"look_again", "anchor_share", "beta", "delta", "harvest", "audit_every"}
    unread -= set(_settings(type(chooser)))
    defaults = {
        key: field.default
        for part in (AnchorRefresh, MeasureSettings, CoresetConfig)
        for field in fields(part)
        if (key := field.name.rstrip("_")) in unread
    }
    given = {key: tuple(v) if isinstance(v, list) else v for key, v in section.items() if key in unread}
    return sorted(key for key, value in given.items() if value != defaults[key])


def coreset(method: str | Selector, *, seed: int = TRAINERS_SEED, **settings: Any) -> CoresetConfig:
    """The `coreset` section in Python: coreset("grace", budget="10%", refresh_every=20, lambda_=0.5).

    method  a name, or a selector of your own, which brings its settings: coreset(Margin(at=2.0), budget=600)
    seed    of all that the coreset draws; left out: the trainer's, data_seed of its arguments, else seed

    Raises ConfigError as the section does, and for a setting of the measurement, which is not part of it.
    """
    section = {name.rstrip("_"): value for name, value in settings.items()}
    section |= {"method": method} if isinstance(method, str) else {}
    if measuring := sorted(set(section) & set(_settings(MeasureSettings))):
        raise ConfigError(
            f"{measuring[0]} is a setting of the measurement: give it to the trainer, "
            f"measuring=MeasureSettings({measuring[0]}=…)"
        )
    return build_coreset(section, seed, None if isinstance(method, str) else method).coreset


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
    sections = {"training": (SFT, config.training)}
    if config.peft is not None and str(config.peft.get("peft_type", "LORA")).upper() == "LORA":
        sections["peft"] = (LORA, config.peft)
    for name, (classes, section) in sections.items():
        refuse_unknown(f"{name}.", section, field_types(classes))
        if wrong := first_wrong(classes, section):
            key, remedy = wrong
            raise ConfigError(f"{name}.{key} is {_shown(key, section[key])}: {remedy}")


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
    targets: Any = config.target_data or []
    texts = {name: getattr(config, name) for name in PLACES} | {
        "target_data": [targets] if isinstance(targets, str) else list(targets)
    }
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


def _method(section: Mapping[str, Any]) -> type:
    names = sorted({*SELECTORS, *PRESETS})
    known = ", ".join(names)
    if "method" not in section:
        raise ConfigError(f"coreset.method is missing; there are {known}")
    method = section["method"]
    if not isinstance(method, str) or method not in SELECTORS:
        raise ConfigError(f"coreset.method is {method!r:.80}{nearest(str(method), names)}; there are {known}")
    return SELECTORS[method]


def _refuse_renamed(section: Mapping[str, Any], known: set[str]) -> None:
    """ConfigError for a key that is gone, with what stands in its place."""
    for key in section:
        if key in _RENAMED and key not in known:
            raise ConfigError(f"coreset.{key} is gone: write {_RENAMED[key]} (docs/filters.md)")


def filters_of(given: Any) -> tuple[Filter, ...]:
    """The filters of a list of names, or of {name: {setting: value}}. Raises ConfigError."""
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise ConfigError(
            f"coreset.filters is {given!r:.80}: give a list of {', '.join(FILTERS)}; [] = no filter"
        )
    return tuple(entry if isinstance(entry, Filter) else _filter(entry) for entry in given)


def _filter(entry: Any) -> Filter:
    """Of a name, or of {name: {setting: value}}."""
    named = isinstance(entry, Mapping) and len(entry) == 1
    name, settings = next(iter(entry.items())) if named else (entry, {})
    if not isinstance(name, str) or name not in FILTERS:
        raise ConfigError(
            f"coreset.filters has {entry!r:.80}{nearest(str(name), FILTERS)}; there are {', '.join(FILTERS)}"
        )
    if not isinstance(settings, Mapping):
        raise ConfigError(
            f"coreset.filters.{name} is {settings!r:.80}: give its settings as {{setting: value}}"
        )
    refuse_unknown(f"coreset.filters.{name}.", settings, _settings(FILTERS[name]))
    made: Filter = _build(FILTERS[name], settings, prefix=f"coreset.filters.{name}.")
    return made


def _budget(section: Mapping[str, Any]) -> BudgetRequest:
    if "budget" not in section:
        raise ConfigError("coreset.budget is missing; give rows (600), a share (10%) or tokens (2M tokens)")
    try:
        return parse_budget(section["budget"])
    except ValueError as error:
        raise ConfigError(f"coreset.budget: {error}") from None


def _quota(section: Mapping[str, Any]) -> QuotaRequest | None:
    if section.get("quota") is None:
        return None
    try:
        return parse_quota(section["quota"])
    except ValueError as error:
        raise ConfigError(f"coreset.{error}") from None


def refuse_unknown(prefix: str, given: Iterable[str], known: Iterable[str]) -> None:
    """ConfigError for the first key that is not known, naming the nearest one that is."""
    known = sorted(known)
    for key in given:
        if key not in known:
            hint = nearest(str(key), known) or f"; known are {', '.join(known)}"
            raise ConfigError(f"unknown key {prefix}{key}{hint}")


def nearest(word: str, known: Iterable[str]) -> str:
    """ ", did you mean 'x'?" or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""


def _settings(part: type) -> dict[str, str]:
    """YAML key -> field name of a dataclass; `lambda_` is written lambda."""
    names = {field.name.rstrip("_"): field.name for field in fields(part) if field.init}
    return {key: name for key, name in names.items() if key not in _FROM_TRAINING}


def _build(
    part: type,
    values: Mapping[str, Any],
    objects: Mapping[str, Any] | None = None,
    prefix: str = "coreset.",
) -> Any:
    names = {field.name.rstrip("_"): field.name for field in fields(part)}
    checked = {names[key]: _checked(part, names[key], value, prefix) for key, value in values.items()}
    try:
        return part(**checked, **(objects or {}))
    except ValueError as error:
        raise ConfigError(f"coreset: {error}") from None


def _checked(part: type, name: str, value: Any, prefix: str) -> Any:
    """The value as the field's type has it; ConfigError where it is of another."""
    key = f"{prefix}{name.rstrip('_')}"
    try:
        checked = TypeAdapter(get_type_hints(part)[name]).validate_python(value)
    except ValidationError as error:
        raise ConfigError(f"{key} is {value!r:.80}: {error.errors()[0]['msg'].lower()}") from None
    if isinstance(value, bool) and not isinstance(checked, bool):  # pydantic takes true for 1
        raise ConfigError(f"{key} is {value!r:.80}: give a value that is not true or false")
    return checked


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is not an override; write key=value, as in coreset.budget=5%")
    *sections, last = key.split(".")
    for section in sections:
        if raw.get(section) is None:
            raw[section] = {}
        raw = raw[section]
        if not isinstance(raw, dict):
            raise ConfigError(f"{override!r}: {section} is not a section")
    raw[last] = read_text(value, repr(override))


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
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

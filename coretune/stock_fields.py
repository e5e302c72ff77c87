"""The fields of the stock SFTConfig and LoraConfig and what each takes, read from their source.

Importing those classes takes many seconds, since it imports torch; a mistake in a config is to be reported
at once.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Optional, Union

from pydantic import ConfigDict, TypeAdapter, ValidationError

#: Each class after those that it extends: (package, file, class). Without a file: a version that has none.
Classes = tuple[tuple[str, str, str], ...]
SFT = (
    ("transformers", "training_args.py", "TrainingArguments"),
    ("trl", "trainer/base_config.py", "_BaseConfig"),
    ("trl", "trainer/sft_config.py", "SFTConfig"),
)
LORA = (
    ("peft", "config.py", "PeftConfigMixin"),
    ("peft", "config.py", "PeftConfig"),
    ("peft", "tuners/lora/config.py", "LoraConfig"),
)
TYPE_OF_ADAPTER = re.compile(r"self\.peft_type = PeftType\.(\w+)")
#: Files of transformers with the enumerations whose words its fields take.
ENUMERATIONS = ("trainer_utils.py", "training_args.py")
#: Fields that take more than their annotations say (transformers 5.23, peft 0.21).
WIDER = {"fsdp": "bool | str | list[str] | None", "lora_alpha": "int | float"}
#: Whole numbers below which a run fails later, or does what nobody meant.
LEAST = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "pad_to_multiple_of": 1,
    "dataset_num_proc": 0,
    "dataloader_num_workers": 0,
    "neftune_noise_alpha": 0,
    "max_grad_norm": 0,
    "r": 1,
}
#: Key of SFTConfig -> (values that say what is done anyway, why no other is taken and what to do).
ELSEWHERE: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "dataset_text_field": (("text",), "texts are read from `text`: write columns: {text: …} at the top"),
    "dataset_kwargs": ((None, {}, {"skip_prepare_dataset": True}), "rows are tokenised here: leave it out"),
    "truncation_mode": (("keep_start",), "prompts are cut from the left, responses never: leave it out"),
    "shuffle_dataset": ((False,), "the coreset has an order of its own, which seed changes: leave it out"),
    "eval_packing": ((None, False), "evaluation rows are not packed: leave it out"),
    "length_column_name": (("length",), "lengths are those of the tokenised rows: leave it out"),
    "do_train": ((True,), "`coretune train` trains, `coretune select` does not: leave it out"),
    "do_eval": ((True,), "eval_data and eval_strategy say what is evaluated and when: leave it out"),
    "do_predict": ((False,), "nothing is predicted; the section `evaluate` generates answers: leave it out"),
    "include_for_metrics": ((), "no metric of your own can be given here: leave it out"),
    "batch_eval_metrics": ((False,), "no metric of your own can be given here: leave it out"),
    "parallelism_config": ((None,), "YAML cannot hold such an object: write it into accelerate's file"),
    "local_rank": ((-1,), "the launcher (torchrun, accelerate) says it: leave it out"),
}
WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "dict": "a mapping",
    "list": "a list",
    "None": "null",
}


class _Kinds:
    """Literal[…]: of its kinds, since some classes take more words than they list."""

    def __getitem__(self, given: Any) -> Any:
        return Union[tuple(type(one) for one in (given if isinstance(given, tuple) else (given,)))]  # noqa: UP007


class _List:
    """tuple[…]: YAML has lists alone."""

    def __getitem__(self, _: Any) -> Any:
        return list


class _Names(dict[str, Any]):
    """What annotations are made of; a class that is not named here takes anything."""

    def __missing__(self, _: str) -> Any:
        return Any


_NAMES = _Names(
    {"str": str, "int": int, "float": float, "bool": bool, "dict": dict, "list": list, "tuple": _List()}
    | {"Any": Any, "Optional": Optional, "Union": Union, "Literal": _Kinds()}
)


@cache
def field_types(classes: Classes) -> Mapping[str, ast.expr]:
    """Field -> its annotation, as the last class that names it has it."""
    found = {name: line.annotation for name, line in _fields(classes)}
    return {**found, **{name: ast.parse(WIDER[name], mode="eval").body for name in found if name in WIDER}}


@cache
def defaults(classes: Classes) -> Mapping[str, Any]:
    """Field -> its default, of the fields whose default is written out."""
    return dict(_written_out(classes, "default"))


@cache
def helps(classes: Classes) -> Mapping[str, str]:
    """Field -> what the class says of it, where it says it in the field itself."""
    return {name: data["help"] for name, data in _written_out(classes, "metadata") if "help" in data}


def _written_out(classes: Classes, word: str) -> Iterator[tuple[str, Any]]:
    """What the fields have for a word of `field(…)`; `x: int = 3` has a default."""
    for name, line in _fields(classes):
        given = (
            {one.arg: one.value for one in line.value.keywords} if isinstance(line.value, ast.Call) else {}
        )
        value = given.get(word, None if given or word != "default" else line.value)
        if value is not None:
            with suppress(ValueError):  # made by a call, or of names
                yield name, ast.literal_eval(value)


def _fields(classes: Classes) -> Iterator[tuple[str, ast.AnnAssign]]:
    for package, file, name in classes:
        yield from _fields_of(package_folder(package) / file, name)


def package_folder(name: str) -> Path:
    """Of an installed package, which is not imported for it."""
    spec = find_spec(name)
    return Path((spec.submodule_search_locations or [""])[0] if spec else "")


def _fields_of(path: Path, name: str) -> Iterator[tuple[str, ast.AnnAssign]]:
    for line in _body(path, name):
        if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name):
            continue
        if "ClassVar" not in ast.unparse(line.annotation):
            yield line.target.id, line


@cache
def adapters() -> Mapping[str, Classes]:
    """Type of adapter -> the classes of its config in peft, which names the type itself."""
    home = package_folder("peft")
    files = [
        home / "config.py",
        *sorted((home / "tuners").glob("*.py")),
        *sorted((home / "tuners").glob("*/config.py")),
    ]
    where = {name: (path, node) for path in files for name, node in _classes(path).items()}

    def line(name: str) -> Classes:
        path, node = where[name]
        above = [base.id for base in node.bases if isinstance(base, ast.Name) and base.id in where]
        own = ("peft", str(path.relative_to(home)), name)
        return (*(one for base in above for one in line(base)), own)

    found = {name: TYPE_OF_ADAPTER.search(ast.unparse(node)) for name, (_, node) in where.items()}
    return {match[1]: line(name) for name, match in found.items() if match}


@cache
def _classes(path: Path) -> Mapping[str, ast.ClassDef]:
    nodes = ast.parse(path.read_text(encoding="utf-8")).body if path.is_file() else []
    return {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}


def _body(path: Path, name: str) -> list[ast.stmt]:
    found = _classes(path).get(name)
    return found.body if found else []


def _words_of(name: str) -> list[str]:
    """The values of an enumeration of transformers; none of another class."""
    for file in ENUMERATIONS:
        lines = _body(package_folder("transformers") / file, name)
        if found := [ast.literal_eval(line.value) for line in lines if isinstance(line, ast.Assign)]:
            return found
    return []


def dead_value(key: str, value: Any) -> str | None:
    """Why a value of a key of `training` would do nothing, and what to do; None where it does something."""
    same, why = ELSEWHERE.get(key, ((value,), ""))
    return None if value in same else why


def first_wrong(classes: Classes, section: Mapping[str, Any]) -> tuple[str, str] | None:
    """The first key of a section whose value its field does not take, and what to give; None: all do."""
    types, default = field_types(classes), defaults(classes)
    for key, value in section.items():
        if key in default and (type(value), value) == (type(default[key]), default[key]):
            continue  # some are null, or 0, though their annotations do not say so
        if key in types and (remedy := wrong_value(types[key], value)):
            return key, remedy
        if key in LEAST and value is not None and value < LEAST[key]:
            return key, f"give at least {LEAST[key]}"
    return None


def kind_of(annotation: ast.expr) -> Any:
    """The type that an annotation writes; of classes that are not named here any."""
    return eval(compile(ast.Expression(annotation), "<annotation>", "eval"), {"__builtins__": {}}, _NAMES)


def wrong_value(annotation: ast.expr, value: Any) -> str | None:
    """What to give instead of a value that the annotation does not take; None where it takes it.

    A number is not read from text, and true is no number: the classes would take both and fail later.
    """
    try:
        TypeAdapter(
            kind_of(annotation), config=ConfigDict(strict=True, arbitrary_types_allowed=True)
        ).validate_python(value)
    except ValidationError:
        names = set(_outer(annotation))
        names |= {"str"} if "Literal" in names else set()
        words = [
            word for name, word in WORDS.items() if name in names - ({"int"} if "float" in names else set())
        ]
        return f"give {' or '.join(words)}" if words else "give a value of its type"
    return _wrong_word(annotation, value)


def _outer(annotation: ast.expr) -> Iterator[str]:
    """The names and constants of an annotation, without those of what a list or a mapping holds."""
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) in ("list", "dict", "tuple"):
        yield ast.unparse(annotation.value)
        return
    yield ast.unparse(annotation)
    for part in ast.iter_child_nodes(annotation):
        yield from _outer(part) if isinstance(part, ast.expr) else ()


def _wrong_word(annotation: ast.expr, value: Any) -> str | None:
    """What to give instead of a text that the annotation's enumeration has not."""
    names = [part.id for part in ast.walk(annotation) if isinstance(part, ast.Name) and part.id not in _NAMES]
    known = [word for name in names for word in _words_of(name)]
    if not isinstance(value, str) or not known or value in known:
        return None
    near = get_close_matches(value, known, 1)
    return f"did you mean {near[0]!r}?" if near else f"give one of {', '.join(known)}"

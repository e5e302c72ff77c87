"""Correct commands with something wrong in them: a key, a value, a character, an option.

Nothing here asks a machine for what it cannot give: values that would start processes or write outside the
working directory are left out, since a wish for a million workers is no mistake of reading.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml

from coretune.config import RunConfig
from coretune.coreset_section import build_coreset, spelled_out
from coretune.other_tools_keys import LEAVE, WRITE
from coretune.scoring.evaluate_section import EvaluateSection
from coretune.stock_fields import LORA, SFT, field_types

NUMBERS = [-(2**63), -1, 0, 1, 2, 3, 97, 2**31, 2**63, 10**400, -0.5, 0.5, 1.5, 1e-12, 1e308, float("inf")]
TEXTS = [
    *(
        "",
        " ",
        "no",
        "yes",
        "null",
        "abc",
        "10%",
        "-5%",
        "101%",
        "0 tokens",
        "2M tokens",
        "1e-3",
        "auto",
        "pass",
    ),
    *(
        "💥",
        "\u202etxt",
        "\x1b[2J",
        "\0",
        "a\nb",
        "x" * 5000,
        "a|b",
        "[bold]",
        "${HOME}",
        "{{ 1 }}",
        "../x",
        "a/b",
    ),
    *(
        "nowhere/x",
        "~nobody/x",
        "file://x",
        "http://localhost:1/x",
        "pool.jsonl",
        "m\\n",
        "%s",
        "constructor",
    ),
    *(
        "grace",
        "random",
        "loss",
        "brief",
        "steps",
        "epoch",
        "bfloat16",
        "float16",
        "LORA",
        "all-linear",
        "cosine",
    ),
]
SHAPES = [None, True, False, [], [1], ["a", "b"], [[[]]], [None], {}, {"a": 1}, {"a": {"b": [1]}}, {"": None}]
GRACE = {"method": "grace", "budget": "10%"}
ALL = spelled_out(build_coreset(GRACE, 0), GRACE)
#: Sections of a config, by their paths, and the keys that they know.
KEYS = {
    "": sorted(RunConfig.model_fields),
    "training": sorted(field_types(SFT)),
    "peft": sorted(field_types(LORA)),
    "evaluate": sorted(EvaluateSection.model_fields),
    "coreset": [*ALL, "quota"],
    **{f"coreset.{room}": sorted(ALL[room]) for room in ("refresh", "signals", "solver")},
    "coreset.method.grace": sorted(ALL["method"]["grace"]),
}
#: A large number of these is so many processes, files or bytes.
MANY = ("dataloader_num_workers", "dataloader_prefetch_factor", "dataset_num_proc", "ray_address", "engine")
#: These write where they are told: the fuzz leaves them in the working directory.
WRITES = ("output_dir", "corpus_dir", "signals_dir")
CHARACTERS = [
    *list(":{}[]&*!|>'\"%@`#,?-\t\n ~<=\\"),
    "!!int ",
    "!!binary ",
    "&a ",
    "*a ",
    "<<: ",
    "- ",
    "---\n",
    "\ufeff",
    "é",
]
OVERRIDES = [
    *(
        "a.b.c=1",
        "=",
        "x",
        "coreset=3",
        "coreset.refresh.k=",
        "coreset.k=3",
        "training=",
        "training=3",
        "training.x.y=3",
        "peft=null",
    ),
    *(
        "peft=[1",
        "coreset.quota={source: {math: 3}}",
        "coreset.quota={source: 2}",
        "coreset.budget=0",
        "seed=-1",
    ),
    *(
        "training.max_steps=!!int ''",
        "evaluate={}",
        "evaluate={metric: rouge}",
        "target_data={}",
        "columns={}",
    ),
    *(
        "columns={prompt: nobody}",
        "report=always",
        "seed=1.5",
        "coreset.refresh_every=0",
        "coreset.refresh.warmup=2",
    ),
    *("training.per_device_train_batch_size=0", "resume_from_checkpoint=true", "resume_from_checkpoint=x"),
    *(
        "training.max_steps=0",
        "training.num_train_epochs=0",
        "training.save_strategy=no",
        "training.bf16=maybe",
    ),
]
#: Arguments of the commands that read a run or stores, RUN standing for a run directory.
READING = [
    *(["report", "nowhere"], ["explain", "RUN"], ["explain", "RUN", "nobody"], ["explain", "nowhere", "x"]),
    *(
        ["explain", "RUN", "\x1b[2J"],
        ["diff", "RUN"],
        ["diff", "RUN", "nowhere"],
        ["diff", "RUN", "--rounds", "8", "9"],
    ),
    *(
        ["diff", "RUN", "--rounds", "x", "1"],
        ["diff", "RUN", "--json"],
        ["report", "RUN", "--json"],
        ["report", "."],
    ),
    *(
        ["cache", "ls", "nowhere"],
        ["cache", "verify", "RUN"],
        ["cache", "rm", "."],
        ["cache", "ls", "RUN", "--json"],
    ),
    *(["train"], ["train", "nowhere.yaml"], ["train", "."], ["nobody"], ["train", "x.yaml", "--nobody"], []),
    *(
        ["demo", "--seed", "x"],
        ["train", "/dev/null"],
        ["train", "\0"],
        ["train", "x" * 300],
        ["select", "RUN"],
    ),
]
#: Arguments of the commands beside a run.
BESIDE = [
    *(
        ["preview"],
        ["preview", "nowhere.yaml"],
        ["preview", "/dev/null"],
        ["preview", "CONFIG", "--rows", "-1"],
    ),
    *(["preview", "CONFIG", "--first", "x"], ["preview", "CONFIG", "--json"], ["preview", "CONFIG", "a=b"]),
    *(["preview", "CONFIG", "train_data=nowhere.jsonl"], ["preview", "RUN"], ["preview", "\0"]),
    *(
        ["init"],
        ["init", "--data", "nowhere.jsonl"],
        ["init", "first.yaml", "--data", "DATA", "--model", "m"],
    ),
    *(["init", "CONFIG", "--data", "DATA", "--model", "m"], ["init", "."], ["init", "no/such/folder/a.yaml"]),
    *(["init", "a.yaml", "--data", "DATA", "--model", "m", "--budget", "lots"], ["init", "\0"]),
    *(
        ["init", "a.yaml", "--data", "\x1b[2J", "--model", "m"],
        ["init", "a.yaml", "--data", "DATA", "--model", ""],
    ),
    *(["init", "a.yaml", "--data", "DATA", "--model", "m\nn: 3"], ["init", "/dev/full", "--data", "DATA"]),
    *(["schema"], ["schema", "x"], ["schema", "--nobody"]),
    *(
        ["merge"],
        ["merge", "nowhere"],
        ["merge", "."],
        ["merge", "RUN", "--output", "one"],
        ["merge", "MODEL"],
    ),
    *(["merge", "RUN", "--output", "config.yaml"], ["merge", "RUN", "--output", ""], ["merge", "\x1b[2J"]),
    *(["merge", "RUN", "--output", "\0"], ["merge", "RUN", "--output", "/proc/x"], ["merge", "CONFIG"]),
    *(["chat"], ["chat", "nowhere"], ["chat", "."], ["chat", "RUN"], ["chat", "MODEL"], ["chat", "\0"]),
    *(["chat", "RUN", "--max-new-tokens", "0"], ["chat", "RUN", "--system", "\x1b[2J"], ["chat", "CONFIG"]),
    *(["env"], ["env", "CONFIG"], ["env", "nowhere.yaml"], ["env", "--json"], ["env", "CONFIG", "--json"]),
    *(["env", "."], ["env", "/dev/null"], ["env", "\0"], ["env", "CONFIG", "x"]),
]
FOREIGN = sorted(key.replace("*", "x") for key in {*WRITE, *LEAVE})  # keys of other tools
COMPARE = [
    *(
        ["--arms", ","],
        ["--arms", "nobody"],
        ["--arms", "grace:nobody=1"],
        ["--arms", "grace:refresh.k"],
        ["--arms", "grace,grace"],
    ),
    *(
        ["--seeds", "0"],
        ["--seeds", "x"],
        ["--workers", "-1"],
        ["--arms", "full,random"],
        ["--arms", "grace:refresh.k=x"],
    ),
]


@dataclass(frozen=True)
class Mutation:
    """A command, and the text of the config that it is given."""

    what: str
    arguments: list[str]
    text: bytes


def mutation(base: dict[str, Any], rng: random.Random) -> Mutation:
    """In the arguments CONFIG is the file with the text, RUN a run directory, DATA a file, MODEL a folder."""
    if rng.random() < 0.2:
        arguments = rng.choice(rng.choice([READING, BESIDE]))
        return Mutation(f"command {arguments!r:.60}", arguments, _dumped(base).encode())
    command = rng.choice(["train"] * 6 + ["select"] * 2 + ["plan", "compare", "preview", "env"])
    arguments = [command, "CONFIG"]
    what, text = rng.choice([_values] * 5 + [_keys] * 2 + [_characters] * 2 + [_lines])(base, rng)
    if rng.random() < 0.25:
        what, text = "override", _dumped(base).encode()
        arguments += [] if command == "env" else rng.sample(OVERRIDES, rng.choice([1, 1, 2]))
    if command == "compare" and rng.random() < 0.5:
        arguments += rng.choice(COMPARE)
    return Mutation(f"{command}: {what}", arguments, text)


def _values(base: dict[str, Any], rng: random.Random) -> tuple[str, bytes]:
    """One to three settings, of those given or of those there are, with a value of any kind."""
    config, said = copy.deepcopy(base), []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        section = rng.choice(
            ["", *["training"] * 3, "peft", "evaluate", *(name for name in KEYS if "coreset" in name)]
        )
        place = _place(config, section)
        key = rng.choice(sorted(place) if place and rng.random() < 0.3 else KEYS[section])
        place[key] = _value(key, rng)
        said.append(f"{section}.{key}={place[key]!r:.30}".lstrip("."))
    return ", ".join(said), _dumped(config).encode()


def _place(config: dict[str, Any], section: str) -> dict[str, Any]:
    """The section of that path, made where there is none."""
    for name in filter(None, section.split(".")):
        if not isinstance(config.get(name), dict):
            config[name] = {}
        config = config[name]
    return config


def _value(key: str, rng: random.Random) -> Any:
    values = rng.choice([NUMBERS, TEXTS, SHAPES])
    value = copy.deepcopy(rng.choice(values))
    if key in MANY and isinstance(value, int | float):
        return rng.choice([-1, 0, 1, 0.5])
    if key in WRITES and isinstance(value, str) and value.startswith(("..", "/")):
        return "elsewhere"
    return value


def _keys(base: dict[str, Any], rng: random.Random) -> tuple[str, bytes]:
    """A key misspelt, lost, doubled, in another section, or of another kind."""
    config = copy.deepcopy(base)
    sections = [name for name in KEYS if isinstance(config.get(name), dict)]
    section = rng.choice(["", "coreset.refresh", *sections])
    place = _place(config, section)
    key = rng.choice(sorted(place))
    how: Callable[[], None] = rng.choice(
        [
            lambda: place.update({key[:-1]: place.pop(key)}),
            lambda: place.update({key + "s": place.pop(key)}),
            lambda: place.update({rng.choice([1, None, True, 2.5, "", "\x1b", "é"]): place.pop(key)}),
            lambda: config.update({key: place.pop(key)}),
            lambda: config.setdefault("training", {}).update({key: place.pop(key)}),
            lambda: place.pop(key),
            lambda: config.update({name: _value(name, rng) for name in rng.sample(FOREIGN, 2)}),
        ]
    )
    how()
    return f"key {section}.{key}", _dumped(config).encode()


def _characters(base: dict[str, Any], rng: random.Random) -> tuple[str, bytes]:
    text = _dumped(base)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(text))
        text = text[:at] + rng.choice(["", *CHARACTERS]) + text[at + rng.choice([0, 1]) :]
    raw = text.encode()
    if rng.random() < 0.2:
        at = rng.randrange(len(raw))
        raw = raw[:at] + bytes([rng.randrange(256)]) + raw[at:]
    return "characters", raw


def _lines(base: dict[str, Any], rng: random.Random) -> tuple[str, bytes]:
    lines = _dumped(base).splitlines(keepends=True)
    at = rng.randrange(len(lines))
    deep = "deep: " + "[" * rng.choice([30, 500, 20_000]) + "\n"
    laughs = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
        f"{now}: &{now} [{', '.join([f'*{was}'] * 8)}]\n"
        for was, now in zip("abcdefg", "bcdefgh", strict=True)
    )
    choices = [
        ("a line twice", [*lines[: at + 1], lines[at], *lines[at + 1 :]]),
        ("a line lost", [*lines[:at], *lines[at + 1 :]]),
        ("cut short", lines[:at]),
        ("out of order", rng.sample(lines, len(lines))),
        ("indented", [f"  {line}" if number == at else line for number, line in enumerate(lines)]),
        ("deep", [*lines, deep]),
        ("billion laughs", [*lines, laughs]),
        ("a tag", [line.replace(": ", rng.choice([": !!int ", ": !!float ", ": !!set "])) for line in lines]),
        ("no mapping", [rng.choice(["- a\n", "abc\n", "3\n", "", "[]\n", "--- a\n--- b\n"])]),
        ("large", ["x: ", "y" * rng.choice([10_000, 1_000_000])]),
    ]
    what, changed = rng.choice(choices)
    return what, "".join(changed).encode()


def _dumped(config: dict[Any, Any]) -> str:
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)

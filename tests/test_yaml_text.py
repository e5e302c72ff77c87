"""A config's text may come from anybody: what is wrong with it is one line, at once, never a traceback."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from coretune.config import load_config
from coretune.yaml_text import BYTES, ConfigError, read_file, read_text, write

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{now}: &{now} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, now in zip("abcdefgh", "bcdefghi", strict=True)
)
CHAIN = "a: &a {k: 1}\n" + "".join(
    f"b{n}: &b{n} {{k: *{'b' + str(n - 1) if n else 'a'}}}\n" for n in range(60)
)


def fault(text: str) -> str:
    began = time.process_time()
    with pytest.raises(ConfigError) as caught:
        read_text(text, "config.yaml")
    assert time.process_time() - began < 2
    message = str(caught.value)
    assert message.startswith("config.yaml is not YAML: ")
    assert "\n" not in message
    assert len(message) < 400
    return message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LAUGHS, "more than 20,000 keys and values, aliases written out"),
        (LAUGHS.replace("x, x, x", "{<<: {k: v}}, x, x"), "more than 20,000 keys and values"),
        (CHAIN, "more than 32 levels"),
        ("a: " + "[" * 500 + "]" * 500, "more than 32 levels"),
        ("a: " + "[" * 50_000, "more than 32 levels"),
        ("\n".join(" " * n + "k:" for n in range(500)), "more than 32 levels"),
        ("a: &a [*a]", "an alias holds itself"),
        ("a: &a\n  b: *a", "an alias holds itself"),
        ('seed: !!int ""', "'' is no int"),
        ("seed: !!int twelve", "'twelve' is no int"),
        ('seed: !!float ""', "'' is no float"),
        ("seed: !!bool perhaps", "'perhaps' is no bool"),
        ("seed: !!int [1]", "line 1"),
        ("a: !!timestamp 2020-99-99", "is no timestamp"),
        ("a: !!binary häh", "line 1"),
        ("a: !!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("a: !!set {b, c}", "which no setting is"),
        ("a: !!binary aGk=", "which no setting is"),
        ("a: .nan", ".nan is not a number"),
        ("a: 0x" + "f" * 5000, "more than 64 bits"),
        ("a: -99999999999999999999", "more than 64 bits"),
        ('a: "\\ud800"', "half a surrogate pair"),
        ('"\\udfff": 1', "half a surrogate pair"),
        ("a: &a {k: 1}\nb: {<<: *a, <<: *a}", "'<<' is written twice"),
        ("a: {b: {k: 1, 'k': 2}}", "'k' is written twice"),
        ("{[1]: 2}", "unhashable key"),
        ("training:\n  1: 2", "the key 1 is not text"),
        ("~: 2", "the key None is not text"),
        ("a: *nobody", "undefined alias"),
        ("<<: 3", "line 1"),
        ("a: b\n--- \nc: d", "expected a single document"),
        ("a: \x07", "special characters are not allowed"),
    ],
)
def test_hostile_text_is_one_line_at_once(text: str, expected: str) -> None:
    assert expected in fault(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: &a {k: 1}\nb: {<<: *a, l: 2}\nc: *a", {"a": {"k": 1}, "b": {"k": 1, "l": 2}, "c": {"k": 1}}),
        ("t:\n  x: &b {<<: &a {k: 1}, k: 2}\np: {<<: *b}", {"t": {"x": {"k": 2}}, "p": {"k": 2}}),
        ("a: 1e-3", {"a": 0.001}),
        ("[010, 08, -007, 0o10, 0x1f, 1_000, 0]", [10, 8, -7, 8, 31, 1000, 0]),
        ("[1:30, 1:30.5, 0b11, 0o9]", ["1:30", "1:30.5", "0b11", "0o9"]),
        ("[.5, 1., 1_0.5, -.5e3, 2E5, -.inf]", [0.5, 1.0, 10.5, -500.0, 2e5, float("-inf")]),
        ("run: 2026-01-31", {"run": "2026-01-31"}),
        ("a: .inf", {"a": float("inf")}),
        ("", None),
        ("# nothing", None),
    ],
)
def test_honest_text_reads(text: str, value: Any) -> None:
    assert read_text(text, "config.yaml") == value


TEXTS = (
    "1e3",
    "08",
    "0o10",
    "1:30",
    "010",
    "0x10",
    "yes",
    "~",
    "1_000",
    ".5",
    "2001-01-01",
    "<<",
    "=",
    "a: b",
)


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_written_reads_back_as_it_is(text: str) -> None:
    value = {"a": text, text: [text, 1e-5, 10, True, None]}
    assert read_text(write(value), "config.yaml") == value


def test_what_an_alias_shares_is_a_copy() -> None:
    """Else an override of one section would change another."""
    found = read_text("a: &a {k: 1}\nb: *a", "config.yaml")
    found["b"]["k"] = 2
    assert found["a"] == {"k": 1}


def test_a_file_too_large_for_a_config_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "pool.yaml"
    path.write_text("# " + "x" * BYTES)
    with pytest.raises(ConfigError, match=r"pool\.yaml has 131,074 bytes, and a config at most 131,072"):
        read_file(path)


def test_the_largest_config_is_read_within_two_seconds(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(("- [" + "a, " * 30 + "]\n") * (BYTES // 95), encoding="utf-8")
    began = time.process_time()
    with pytest.raises(ConfigError, match="more than 20,000 keys"):
        read_file(path)
    assert time.process_time() - began < 4  # of a busy machine


@pytest.mark.parametrize("name", ["con\0fig.yaml", "x" * 300, "nowhere/config.yaml", "."])
def test_a_path_that_is_none_is_one_line(name: str) -> None:
    with pytest.raises((ConfigError, OSError)) as caught:
        read_file(name)
    assert "\n" not in str(caught.value)


def test_overrides_are_read_with_the_same_care(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("seed: 1\n")
    for value in ("[" * 500, '!!int ""', "&a [*a]", "!!python/name:os.system"):
        with pytest.raises(ConfigError, match="is not YAML"):
            load_config(path, [f"coreset.budget={value}"])

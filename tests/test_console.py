"""What a terminal is shown: rows and files may hold what steers it, and none of it gets through."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded_run import FakeRows, fake_rows, make_run
from typer.main import get_command
from typer.testing import CliRunner

from coretune import console
from coretune.cli import app
from coretune.console import LogFormatter, guarded, print_json, print_table
from coretune.escaping import shown, shown_in_json
from coretune.storing.fingerprint import store_folder
from coretune.storing.store import Store

#: Sets the clipboard, hides what follows, turns the line around, forges a line, ends no string, tags unseen.
HOSTILE = "\x1b]52;c;aGFja2Vk\x07\x1b[8m\u202e\x9b2J\rcoretune: all is well\n\u2066\u200b\x7f\U000e0041\u2028"
HARMLESS = "naïve 日本語\u3000text 👩\u200d🔬 نمی\u200cخواهم \u00a0 ½"


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def texts_of(command: Any) -> list[Any]:
    """Its arguments and options that take a text or a path."""
    return [p for p in command.params if p.type_descriptor.annotation in (str, Path, list[str])]


EVERY = [
    pytest.param(path, command, each, id=f"{' '.join(path)} {each.opts[0]}")
    for path, command in commands(get_command(app))
    for each in texts_of(command)
]


@pytest.mark.parametrize(("path", "command", "given"), EVERY)
def test_an_empty_value_of_any_command_is_refused_in_one_line(
    path: tuple[str, ...], command: Any, given: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for empty in ("", " "):
        words = list(path)
        for each in command.params:
            if each.param_type_name == "argument" and (each.required or each is given):
                words.append(empty if each is given else "x")
        if given.param_type_name == "option":
            words += [given.opts[0], empty]
        done = CliRunner().invoke(app, words)
        assert (done.exit_code, done.stdout) == (1, ""), done.output
        name = given.opts[0] if given.param_type_name == "option" else given.metavar.strip("[]")
        assert done.stderr == f"coretune: {name} is empty: give its value, or leave it out\n"
    assert not list(tmp_path.iterdir())


def test_every_argument_of_a_command_that_is_a_text_or_a_path_is_tried() -> None:
    tried = {
        f"{' '.join(path)} {given.metavar or given.opts[0]}" for path, _, given in (p.values for p in EVERY)
    }
    assert {"merge RUN", "report RUN", "explain ID", "diff [RUN_B]", "chat RUN", "cache ls FOLDER"} <= tried
    assert {"train CONFIG.yaml", "train key=value", "demo --output-dir", "compare FOLDER"} <= tried


def steering(text: str) -> list[str]:
    """Characters of an output that no terminal should get."""
    return [hex(ord(c)) for c in text if c != "\n" and shown(c) != c]


def hostile_rows(n: int = 60) -> FakeRows:
    rows = fake_rows(n)
    texts = [(f"{prompt} {HOSTILE}", f"{answer} {HOSTILE}") for prompt, answer in rows.texts]
    return HostileRows(texts, np.array([f"{name}{HOSTILE}" for name in rows.source], dtype=object))


class HostileRows(FakeRows):
    @property
    def ids(self) -> list[str]:
        return [f"row-{row}{HOSTILE}" for row in range(len(self.texts))]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), rows=hostile_rows())


def output(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


@pytest.mark.parametrize("command", [["explain", f"row-7{HOSTILE}"], ["diff"]])
def test_reading_a_run_shows_nothing_that_steers_the_terminal(run: Path, command: list[str]) -> None:
    name, *rest = command
    code, text = output(name, str(run), *rest)
    assert (code, steering(text)) == (0, [])
    assert "\\x1b" in text
    assert "\ncoretune: all is well" not in text
    code, text = output(name, str(run), *rest, "--json")
    assert (code, steering(text)) == (0, [])
    assert "\\u001b" in text


def test_json_says_the_same_in_escapes(run: Path) -> None:
    found = json.loads(output("explain", str(run), f"row-7{HOSTILE}", "--json")[1])
    assert found["id"] == f"row-7{HOSTILE}"
    assert json.loads(shown_in_json(json.dumps([HOSTILE, HARMLESS], ensure_ascii=False))) == [
        HOSTILE,
        HARMLESS,
    ]


def test_an_error_that_names_a_row_is_one_line(run: Path) -> None:
    code, text = output("explain", str(run), f"nobody{HOSTILE}")
    assert (code, steering(text), text.count("\n")) == (1, [], 1)


def test_a_log_line_is_one_line_of_its_own() -> None:
    record = logging.LogRecord("coretune", logging.WARNING, "", 0, "left out %s", (HOSTILE,), None)
    text = LogFormatter("%(name)s: %(message)s").format(record)
    assert (steering(text), text.count("\n")) == ([], 0)


def test_tables_show_names_as_they_are_and_not_as_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("A [bold]title", [["arm", "loss"], [f"grace:scores=[loss] {HOSTILE[:9]}", "[/]"]])
    text = capsys.readouterr().out
    assert steering(text) == []
    assert "A [bold]title" in text
    assert "grace:scores=[loss] \\x1b]52" in text
    assert "[/]" in text


def test_a_shared_folder_of_stores_steers_no_terminal(tmp_path: Path) -> None:
    parts = {"weights": HOSTILE, "[/red]": "[bold]"}
    with Store.open(store_folder(tmp_path, parts), parts, 4, {"loss": ((), "<f4")}):
        pass
    for more in ([], ["--json"]):
        code, text = output("cache", "ls", str(tmp_path), *more)
        assert (code, steering(text)) == (0, [])
        assert "[/red]" in text


def test_what_people_write_is_left_alone() -> None:
    assert shown(HARMLESS) == HARMLESS
    assert shown_in_json(HARMLESS) == HARMLESS
    assert shown("\ud800") == "\\ud800"
    assert shown_in_json('"\U000e0041"') == '"\\udb40\\udc41"'


def test_json_holds_no_number_that_json_has_not(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": [float("nan"), 1.5], "b": (float("inf"),)})
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.5], "b": [None]}


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("2 bad rows:\n  a: x\n  b: y"), "coretune: 2 bad rows:\n  a: x\n  b: y\n"),
        (ValueError("a library\nspeaks\n\nlong"), "coretune: a library speaks long\n"),
        (OSError("no file\n  of that name"), "coretune: no file of that name\n"),
        (ValueError(), "coretune: ValueError:\n"),
        (ImportError("install galore"), "coretune: a package is missing: install galore\n"),
        (
            ImportError("no x", name="coretune.x"),
            "coretune: unforeseen error, whose place --traceback shows: ImportError: no x\n",
        ),
        (KeyError("x"), "coretune: unforeseen error, whose place --traceback shows: KeyError: 'x'\n"),
    ],
)
def test_every_error_is_one_line(error: Exception, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> Any:
        raise error

    with pytest.raises(BaseException, match="1"):
        guarded(work, traceback=False)
    assert capsys.readouterr().err == expected
    with pytest.raises(type(error)):
        guarded(work, traceback=True)


def test_another_process_than_the_first_lets_that_one_tell_its_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(console.time, "sleep", waited.append)
    console.print_error(ValueError("mine"))
    assert waited == []
    monkeypatch.setenv("RANK", "1")
    console.print_error(ValueError("mine"))
    assert waited == [console.OTHERS_WAIT]
    assert capsys.readouterr().err == "coretune: mine\ncoretune: mine\n"


def test_what_libraries_say_as_they_are_imported_is_not_shown(tmp_path: Path) -> None:
    """bitsandbytes names a kernel that is not installed, as soon as PEFT is imported."""
    told = "from coretune.console import no_notes_of_libraries; no_notes_of_libraries(); import bitsandbytes"
    pytest.importorskip("bitsandbytes")
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stderr == ""

"""`coretune preview`: what it shows is what training gets, and no weights are read for it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console
from tiny_run import LENGTH, model_folder, write_jsonl
from tiny_tokenizer import TEMPLATE, tiny_tokenizer
from typer.testing import CliRunner

from coretune.cli import app
from coretune.commands.layout import Turn, turns_of
from coretune.commands.pieces import pieces
from coretune.commands.preview import Preview, histogram, preview
from coretune.commands.preview_text import TRAINED, show, summary, text_of
from coretune.config import check_config
from coretune.data.corpus import Corpus
from coretune.recording.row_account import by_reason

TURNS = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "six"},
    {"role": "assistant", "content": "ten red"},
]
NO_SYSTEM_ALONE = "{% if messages|length == 1 %}{{ raise_exception('no user turn') }}{% endif %}" + TEMPLATE


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    rows: list[dict[str, Any]] = [
        {"id": f"r{n}", "prompt": f"say {n}", "completion": f"it is {n}\nyes", "source": "a", "score": n}
        for n in range(20)
    ]
    rows += [{"id": "long", "prompt": "word " * 200, "completion": "cut", "source": "b", "score": 1}]
    rows += [
        {"id": "mute", "prompt": "p", "completion": ""},
        {"id": "mute 2", "prompt": "p", "completion": " "},
    ]
    rows += [{"id": "number", "prompt": 3, "completion": "c"}]
    rows += [{"id": "kto", "prompt": "p", "completion": "c", "label": False}]
    return write_jsonl(folder / "pool.jsonl", rows)


def config_of(pool: Path, **top: Any) -> dict[str, Any]:
    return {
        "model_name_or_path": str(model_folder()),
        "train_data": str(pool),
        "output_dir": str(pool.parent / "run"),
        "coreset": {"method": "random", "budget": 5},
        **top,
    }


@pytest.fixture(scope="module")
def found(pool: Path) -> Preview:
    return preview(check_config(config_of(pool)), 25, None)


def test_a_column_that_no_row_read_has_is_named(pool: Path) -> None:
    (line,) = [
        note
        for note in preview(check_config(config_of(pool, columns={"source": "kin"})), 0, 5).notes
        if "kin" in note
    ]
    assert line == "columns.source is 'kin', and no row that was read has that column"


def test_tokens_and_mask_are_those_that_training_gets(found: Preview, pool: Path) -> None:
    corpus = Corpus.build(pool, tiny_tokenizer(), max_length=LENGTH, skip_bad_rows=True)
    assert [row.id for row in found.rows] == corpus.ids
    assert found.lengths.tolist() == corpus.length.tolist()
    for i, row in enumerate(found.rows):
        (ids,), (labels,) = corpus.tokens([i]), corpus.labels([i])
        assert "".join(text for text, _ in row.pieces) == tiny_tokenizer().decode(ids)
        assert [trained for _, trained in row.pieces] == (labels != -100).tolist()


def test_every_row_that_is_left_out_is_counted_with_its_reason(found: Preview) -> None:
    assert found.dropped == [
        (2, "pool.jsonl line 22", "empty response: `completion` holds no text"),
        (1, "pool.jsonl line 24", "`prompt` is a number, not text"),
    ]
    assert sum(found.left_out.values()) == 1
    assert found.read == 25
    assert len(found.lengths) == 21
    for skipped, does in (
        (False, "refuses them, or leaves them out with --skip-bad-rows"),
        (True, "leaves them out"),
    ):
        assert f"3 rows are bad: training {does}:" in list(summary(replace(found, skipped=skipped)))


def test_what_was_cut_is_shown_at_the_turn_that_lost_it(found: Preview) -> None:
    long = next(row for row in found.rows if row.id == "long")
    user, assistant = long.turns
    assert len(long.pieces) == LENGTH
    assert user.cut > 100
    assert user.tokens + assistant.tokens - user.cut == LENGTH
    assert (user.trained, assistant.cut) == (0, 0)
    assert assistant.trained == sum(trained for _, trained in long.pieces)
    assert found.truncated == 1
    assert all(turn.cut == 0 for row in found.rows if row.id != "long" for turn in row.turns)


def test_columns_are_listed_with_what_they_became(found: Preview) -> None:
    assert [(column, becomes) for _, column, becomes in found.columns] == [
        ("prompt", "the prompt"),
        ("completion", "the response"),
        ("id", "the row's name"),
        ("source", "the row's source, in quotas and reports"),
        ("score", "not used"),
    ]


@pytest.mark.parametrize(("train_on", "trained"), [("last", [4]), ("all", [2, 4])])
def test_the_turns_that_are_trained_are_shown(tmp_path: Path, train_on: str, trained: list[int]) -> None:
    path = write_jsonl(tmp_path / "chat.jsonl", [{"messages": TURNS}])
    (row,) = preview(check_config(config_of(path, train_on=train_on)), 3, None).rows
    assert [turn.role for turn in row.turns] == [turn["role"] for turn in TURNS]
    assert [number for number, turn in enumerate(row.turns) if turn.trained] == trained
    assert sum(turn.tokens for turn in row.turns) == len(row.pieces)


def test_turns_that_the_template_refuses_alone_go_with_the_next_one() -> None:
    tokenizer = tiny_tokenizer(NO_SYSTEM_ALONE)
    labels = np.full(len(tokenizer.apply_chat_template(TURNS)["input_ids"]), -100)
    labels[-3:] = 1
    turns = turns_of({"messages": TURNS}, labels, tokenizer, {}, "last")
    assert [turn.role for turn in turns] == ["system, user", "assistant", "user", "assistant"]
    assert turns[-1] == Turn("assistant", turns[-1].tokens, 3, 0)


def test_characters_of_several_tokens_are_one_piece() -> None:
    tokenizer = tiny_tokenizer()
    for text in ("naïve 漢字 😀 end", "  two  spaces\n", "漢"):
        ids = tokenizer(text)["input_ids"]
        found = pieces(tokenizer, ids)
        assert len(found) == len(ids)
        assert "".join(found) == tokenizer.decode(ids)
        assert not any("\ufffd" in piece for piece in found)


def test_trained_tokens_are_green_and_without_colour_in_brackets(found: Preview) -> None:
    row = next(row for row in found.rows if row.id != "long")
    text = text_of(row, marked=False)
    green = "".join(text.plain[span.start : span.end] for span in text.spans if TRAINED in str(span.style))
    trained = "".join(piece for piece, trained in row.pieces if trained)
    assert green == trained.replace("\n", "⏎\n")
    assert f"⟦{green}⟧" in text_of(row, marked=True).plain
    colours, plain = io.StringIO(), io.StringIO()
    show(found, Console(file=colours, force_terminal=True, color_system="standard", width=100))
    show(found, Console(file=plain, color_system=None, width=100))
    assert "\x1b[1;32m" in colours.getvalue()
    assert "⟦" not in colours.getvalue()
    assert "\x1b" not in plain.getvalue()
    assert "2: empty response: `completion` holds no text (first: pool.jsonl line 22)" in plain.getvalue()
    assert "1 prompts are cut from the left to 96 tokens" in plain.getvalue()


def test_the_picture_in_the_documentation_has_the_words_of_today(found: Preview) -> None:
    console = Console(
        file=io.StringIO(), record=True, force_terminal=True, color_system="truecolor", width=104
    )
    show(found, console)
    picture = (Path(__file__).parents[1] / "docs" / "preview.svg").read_text(encoding="utf-8")
    for text in (console.export_svg(), picture):
        shown = unescape(text).replace("\xa0", " ")
        for words in (
            "each second token is underlined, green: trained on",
            "rows are bad: training refuses them, or leaves them out with --skip-bad-rows:",
            ": columns that are not used: score",
            "tokens a row: median ",
        ):
            assert words in shown


def test_the_histogram_holds_every_row_once() -> None:
    lengths = np.random.default_rng(0).integers(3, 700, 500)
    bins = histogram(lengths)
    assert sum(count for _, _, count in bins) == 500
    for low, high, count in bins:
        assert count == ((lengths >= low) & (lengths <= high)).sum()
    assert histogram(np.array([5, 5])) == [(5, 5, 2)]


def test_reasons_that_differ_in_numbers_alone_are_one() -> None:
    found = by_reason([("a:1", "7 tokens and 'x'"), ("a:2", "no text"), ("a:3", "1,900 tokens and 'y'")])
    assert found == [(2, "a:1", "7 tokens and 'x'"), (1, "a:2", "no text")]


def test_the_command_reads_no_weights_and_no_trainer(pool: Path, tmp_path: Path) -> None:
    """Of a model folder that has none, in a process of its own."""
    model = tmp_path / "model"
    model.mkdir()
    for file in model_folder().iterdir():
        if file.suffix != ".safetensors":
            (model / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config_of(pool, model_name_or_path=str(model))))
    code = (
        "import sys\nfrom coretune.cli import app\n"
        f"app(['preview', {str(path)!r}, '--first', '10', '--json'], standalone_mode=False)\n"
        "print(sorted({'trl', 'peft'} & set(sys.modules)))"
    )
    known = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=known)
    assert told.returncode == 0, told.stderr
    document, _, loaded = told.stdout.rpartition("}\n")
    answer = json.loads(document + "}")
    assert loaded.strip() == "[]"
    assert (answer["rows_read"], answer["all_rows_read"], len(answer["examples"])) == (10, False, 3)


def test_a_mistake_in_the_config_is_one_line(pool: Path, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config_of(pool, train_data="/nowhere/pool.jsonl")))
    result = CliRunner().invoke(app, ["preview", str(path)])
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "train_data is /nowhere/pool.jsonl" in result.stderr

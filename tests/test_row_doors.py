"""What a row may not do: bring a template, say how one is applied, or take minutes to read."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_run import write_jsonl
from tiny_tokenizer import TEMPLATE, tiny_tokenizer

from coretune.data import template
from coretune.data.corpus import Corpus
from coretune.data.formats import BadRow
from coretune.data.raw import CorpusError
from coretune.data.template import harmless

THINKING = TEMPLATE.replace("{{ bos_token }}", "{{ bos_token }}{% if thinking %}think{% endif %}")
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}"


def row(**arguments: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    return {"messages": turns, "chat_template_kwargs": arguments}


def built(folder: Path, *rows: dict[str, Any], template: str = THINKING) -> Corpus:
    path = write_jsonl(folder / "pool.jsonl", rows)
    return Corpus.build(path, tiny_tokenizer(template), max_length=64)


def refused(folder: Path, *rows: dict[str, Any]) -> str:
    began = time.process_time()
    with pytest.raises(CorpusError) as caught:
        built(folder, *rows)
    assert time.process_time() - began < 4  # of a busy machine
    message = str(caught.value)
    assert len(message) < 500
    return message


@pytest.mark.parametrize(
    "arguments",
    [
        {"chat_template": ENDLESS},
        {"tokenize": True},
        {"return_dict": True},
        {"continue_final_message": True},
        {"add_generation_prompt": True},
        {"messages": [1]},
        {"eos_token": "x"},
        {"raise_exception": 1},
        {"tokenizer_kwargs": {"a": 1}},
        {"padding": "max_length", "max_length": 10**9},
        {"a b": 1},
    ],
)
def test_a_row_does_not_say_how_a_template_is_applied(tmp_path: Path, arguments: dict[str, Any]) -> None:
    message = refused(tmp_path, row(**arguments))
    assert f"`chat_template_kwargs` has '{next(iter(arguments))}', which is not a row's to say" in message


def test_what_the_template_reads_goes_to_it_and_what_it_does_not_read_is_named(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(THINKING)
    texts = [
        tokenizer.decode(ids)
        for ids in built(tmp_path, row(thinking=True), row(thinking=False)).tokens([0, 1])
    ]
    assert sorted("think" in text for text in texts) == [False, True]
    assert "has 'reasoning', which the tokenizer's chat template does not read" in refused(
        tmp_path, row(reasoning="high")
    )


def test_what_says_nothing_is_nothing() -> None:
    """Parquet fills in every column's keys with null."""
    assert harmless({"thinking": False, "tools_in": None, "custom": "", "xml": []}, THINKING) == {
        "thinking": False
    }
    with pytest.raises(BadRow):
        harmless({"custom": "x"}, THINKING)


@pytest.mark.parametrize(
    "long",
    [
        {"prompt": "a " * 25_000_000, "completion": "b"},
        {"prompt": "a", "completion": "b" * 50_000_000},
        {"text": "a" * 50_000_000},
        {"messages": [{"role": "user", "content": "a" * 50_000_000}, {"role": "assistant", "content": "b"}]},
    ],
    ids=["prompt", "completion", "text", "messages"],
)
def test_a_row_of_fifty_megabytes_is_one_line_at_once(tmp_path: Path, long: dict[str, Any]) -> None:
    assert "characters, and 2,000,000 is the most; cut it or leave it out" in refused(tmp_path, long)


def test_a_long_row_may_be_left_out_and_the_others_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template, "CHARACTERS", 20)
    rows = [{"prompt": "a:", "completion": "b"}, {"prompt": "a:", "completion": "b" * 20}]
    path = write_jsonl(tmp_path / "pool.jsonl", rows)
    corpus = Corpus.build(path, tiny_tokenizer(None), max_length=64, skip_bad_rows=True)
    assert len(corpus) == 1
    assert corpus.dropped[0][0] == "pool.jsonl line 2"


def test_a_template_that_fails_on_a_row_is_that_rows_fault(tmp_path: Path) -> None:
    """Whatever it raises: a sandbox's limit, a division, a missing key."""
    for fault in ("{{ 1 // 0 }}", "{% for i in range(10 ** 9) %}{% endfor %}", "{{ messages[7].content.x }}"):
        with pytest.raises(CorpusError, match="the chat template refuses the conversation"):
            built(tmp_path, row(), template=TEMPLATE + fault)


def test_values_within_arguments_are_plain_data() -> None:
    assert json.loads(json.dumps(harmless({"thinking": {"deep": [1]}}, THINKING))) == {
        "thinking": {"deep": [1]}
    }

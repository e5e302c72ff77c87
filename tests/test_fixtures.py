"""A small file of each format (tests/formats): what becomes of its rows, every one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_tokenizer import TEMPLATE, tiny_tokenizer

from coretune.data.corpus import Corpus
from coretune.data.finding import read_rows
from coretune.data.raw import CorpusError

FILES = Path(__file__).parent / "formats"
#: Writes tools and calls, and a turn of any role; marks nothing.
TOOLS = (
    "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}{% for m in messages %}<|{{ m['role'] }}|>"
    "{{ m['content'] }}{% for call in m.tool_calls or [] %}{{ call['function'] | tojson }}{% endfor %}</s>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CHOSEN = {"columns": {"prompt": "prompt", "completion": "chosen"}}
#: File -> (settings, what is learnt by id, why rows are bad, how many rows leave themselves out).
EXPECTED: dict[str, tuple[dict[str, Any], dict[str, str], list[str], int]] = {
    "messages.jsonl": (
        {},
        {"weather": "No.", "flags": "No: four.", "parts": "Red."},
        ["part 1 of the content is 'image'"],
        1,
    ),
    "prompt_completion.json": ({}, {"1": " blue.", "2": "In Norway."}, ["empty response"], 0),
    "alpaca.csv": ({}, {"2": "5", "3": "A wren."}, [], 0),
    "alpaca_history.jsonl": ({}, {"1": "Madrid.", "2": "Lima."}, ["not [[question, answer], ...]"], 0),
    "sharegpt.jsonl": ({}, {"1": "Hello!", "2": "Hello again!"}, ["is from 'narrator'; known are human"], 0),
    "sharegpt_tools.json": ({}, {"1": "21 degrees."}, ["the function_call is not valid JSON"], 0),
    "text.ndjson": ({}, {"1": "One line of text.", "2": "Another line."}, ["empty response"], 0),
    "pairs.tsv": ({}, {"2": "Rome.", "3": 'a "quoted" word'}, ["1 fields where the header has 3"], 0),
    "preference.jsonl": (CHOSEN, {"1": "Good morning!", "2": "See you soon."}, [], 0),
    "preference_turns.jsonl": ({"columns": {"messages": "chosen"}}, {"1": "Good morning!"}, [], 0),
    "kto.jsonl": ({}, {"1": "Good morning!"}, [], 2),
    "tokens.jsonl": (
        {},
        {"1": "", "2": "", "3": ""},
        ["label 1 is 71 and the token is 70", "has 2 entries"],
        0,
    ),
    "weighted.csv": ({}, {"2": "The Nile.", "3": "Box Hill."}, ["`weight` is '-1'"], 1),
    "packed.jsonl.gz": ({}, {"1": "From a packed file.", "2": "And one more."}, [], 0),
    "packed.csv.zst": ({}, {"2": "From a packed table.", "3": "And one more."}, [], 0),
}


def built(name: str, **settings: Any) -> Corpus:
    tokenizer = tiny_tokenizer(TOOLS)
    return Corpus.build(FILES / name, tokenizer, max_length=400, skip_bad_rows=True, **settings)


def learnt(corpus: Corpus) -> dict[str, str]:
    tokenizer = tiny_tokenizer(TOOLS)
    texts = (
        tokenizer.decode(row[row != -100], skip_special_tokens=True)
        for row in corpus.labels(range(len(corpus)))
    )
    names = (name.rpartition(":")[2] for name in corpus.ids)
    return {name: text.removesuffix("\n") for name, text in zip(names, texts, strict=True)}


@pytest.mark.parametrize("name", sorted(path.name for path in FILES.iterdir()))
def test_rows_in_are_rows_trained_rows_named_and_rows_that_leave_themselves_out(name: str) -> None:
    settings, texts, reasons, left_out = EXPECTED[name]
    corpus = built(name, **settings)
    rows = len(list(read_rows(FILES / name)))
    assert len(corpus) + len(corpus.dropped) + sum(corpus.left_out.values()) == rows
    assert sum(corpus.left_out.values()) == left_out
    for reason, (place, said) in zip(reasons, corpus.dropped, strict=True):
        assert place.startswith(name)
        assert reason in said
    if name == "tokens.jsonl":
        assert set(learnt(corpus)) == set(texts)
    else:
        assert learnt(corpus) == texts


def test_all_answers_of_each_format(monkeypatch: pytest.MonkeyPatch) -> None:
    assert learnt(built("messages.jsonl", train_on="all"))["weather"] == "Yes.\nNo."
    assert learnt(built("messages.jsonl", train_on="all"))["flags"] == "No: four."
    assert learnt(built("alpaca_history.jsonl", train_on="all"))["1"] == "Paris.\nRome.\nMadrid."
    called = learnt(built("sharegpt_tools.json", train_on="all"))["1"]
    assert called == '{"name": "weather", "arguments": {"city": "Rome"}}\n21 degrees.'


def test_system_tools_and_calls_are_in_the_prompt() -> None:
    corpus = built("sharegpt_tools.json")
    (ids,) = corpus.tokens([0])
    text = tiny_tokenizer(TOOLS).decode(ids)
    assert text.startswith(
        '{"name": "weather", "parameters": {"city": {"type": "string"}}}<|system|>You may call'
    )
    assert '<|tool|>{"celsius": 21}' in text


def test_token_ids_are_trained_as_their_labels_and_masks_say() -> None:
    corpus = built("tokens.jsonl")
    by_name = {name.rpartition(":")[2]: row for row, name in enumerate(corpus.ids)}
    counted = {name: corpus.labels([row])[0].tolist() for name, row in by_name.items()}
    assert counted == {
        "1": [-100, -100, 41, 42, 2],
        "2": [-100, 50, 51, 2],  # BOS, which nothing predicts, never counts
        "3": [-100, -100, -100, 2],
    }
    with pytest.raises(
        CorpusError, match="rows are token ids, whose labels say what counts; leave assistant"
    ):
        Corpus.build(FILES / "tokens.jsonl", tiny_tokenizer(), max_length=9, assistant_only_loss=True)
    cut = Corpus.build(FILES / "tokens.jsonl", tiny_tokenizer(), max_length=4, skip_bad_rows=True)
    assert sorted(map(tuple, cut.tokens(range(3)))) == [(1, 41, 42, 2), (1, 50, 51, 2), (1, 60, 61, 2)]


def test_rows_that_leave_themselves_out_need_no_skipping_and_are_counted() -> None:
    corpus = Corpus.build(FILES / "kto.jsonl", tiny_tokenizer(), max_length=99)
    assert corpus.left_out == {"`label` is false: the completion is an undesired one (KTO)": 2}
    assert corpus.dropped == []


def test_well_known_columns_that_are_not_used_are_named() -> None:
    assert built("preference.jsonl", **CHOSEN).notes == [
        "preference.jsonl: columns that are not used: rejected"
    ]
    silent = Corpus.build(
        FILES / "sharegpt_tools.json",
        tiny_tokenizer(TOOLS.replace("tools or []", "[]")),
        max_length=400,
        skip_bad_rows=True,
    )
    assert silent.notes == ["sharegpt_tools.json: columns that are not used: tools"]


def test_a_template_that_writes_no_tool_calls_refuses_rows_that_have_them() -> None:
    with pytest.raises(
        CorpusError, match=r"all 2 rows are bad, .* the tokenizer's chat template does not write them"
    ):
        Corpus.build(
            FILES / "sharegpt_tools.json", tiny_tokenizer(TEMPLATE), max_length=400, skip_bad_rows=True
        )


def test_a_share_held_out_is_of_other_content_and_the_rest_is_the_pool(tmp_path: Path) -> None:
    lines = [f'{{"text": "row {number // 2}"}}\n' for number in range(200)]  # each twice
    (tmp_path / "p.jsonl").write_text("".join(lines))
    whole = Corpus.build(tmp_path / "p.jsonl", tiny_tokenizer(), max_length=40)
    pool, held_out = whole.split(0.1)
    assert len(pool) + len(held_out) == 200
    assert 20 <= len(held_out) <= 21
    assert sorted(pool.ids + held_out.ids) == sorted(whole.ids)
    of_pool, of_held_out = (
        {row.tobytes() for row in part.tokens(range(len(part)))} for part in (pool, held_out)
    )
    assert not of_pool & of_held_out
    assert pool.dataset["example_id"][:] == list(range(len(pool)))
    for part in (pool, held_out):
        assert part.record(0)["text"] in tiny_tokenizer().decode(part.tokens([0])[0])
        assert part.length.tolist() == [len(ids) for ids in part.dataset["input_ids"]]
        assert np.array_equal(part.prompt_length, np.ones(len(part)))
    assert len({whole.fingerprint, pool.fingerprint, held_out.fingerprint}) == 3
    lines = ['{"text": "the same"}\n'] * 9
    (tmp_path / "q.jsonl").write_text("".join(lines))
    with pytest.raises(CorpusError, match=r"of 9 rows none is left to train on when 0.5 are held out"):
        Corpus.build(tmp_path / "q.jsonl", tiny_tokenizer(), max_length=40).split(0.5)


def test_preferences_that_are_whole_conversations_say_how_they_are_trained() -> None:
    with pytest.raises(
        CorpusError, match=r"`chosen` is a list, not text \(whole .* columns: {messages: chosen}\)"
    ):
        built("preference_turns.jsonl", **CHOSEN)

"""The frozen corpus: its order, its fingerprint, tool rows, and what a trainer gets from it."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_records import write
from tiny_tokenizer import TEMPLATE, tiny_tokenizer

from coretune.data.corpus import Corpus
from coretune.data.raw import CorpusError, json_line


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


def make_rows(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """n rows with ids, every fifth a copy of the one before, lengths mixed, columns of the user's own."""
    draw, rows = random.Random(seed), []
    for number in range(n):
        words = " ".join(
            draw.choice(["first", "word", "answer", "letter"]) for _ in range(draw.randint(1, 9))
        )
        row = {
            "id": f"r{number}",
            "prompt": words,
            "completion": words.split()[0],
            "source": "ab"[number % 2],
        }
        if number % 5 == 4:
            row |= {"prompt": rows[-1]["prompt"], "completion": rows[-1]["completion"]}
        rows.append({"note": {"kept": [number, None]}, **row})
    return rows


def same(a: Corpus, b: Corpus) -> bool:
    return (
        (a.fingerprint, a.ids, a.truncated, a.dropped) == (b.fingerprint, b.ids, b.truncated, b.dropped)
        and all(map(np.array_equal, a.tokens(range(len(a))), b.tokens(range(len(b)))))
        and np.array_equal(a.prompt_length, b.prompt_length)
        and np.array_equal(a.length, b.length)
        and a.source is not None
        and b.source is not None
        and a.source.tolist() == b.source.tolist()
        and [a.record(i) for i in range(len(a))] == [b.record(i) for i in range(len(b))]
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Corpus:
    """2,500 rows, so that several blocks are written, some prompts cut."""
    file = write(tmp_path_factory.mktemp("data") / "p.jsonl", make_rows(2500))
    return Corpus.build(file, tokenizer, max_length=24)


def test_members_agree_with_one_another(corpus: Corpus, tokenizer: Any) -> None:
    n = len(corpus)
    assert n == 2500 == len(set(corpus.ids))
    tokens, labels = corpus.tokens(np.arange(n)), corpus.labels(np.arange(n))
    assert {array.dtype for array in (*tokens, *labels, corpus.length, corpus.prompt_length)} == {
        np.dtype("int64")
    }
    assert corpus.length.tolist() == [len(row) for row in tokens]
    assert corpus.source is not None
    for i in range(0, n, 7):
        record = corpus.record(i)
        assert (record["id"], record["source"]) == (corpus.ids[i], corpus.source[i])
        at = corpus.prompt_length[i]
        assert tokenizer.decode(tokens[i][at:]) == record["completion"] + "</s>\n"
        assert (labels[i][:at] == -100).all()
        assert (labels[i][at:] == tokens[i][at:]).all()
    assert len(corpus.dataset.data.table["input_ids"].chunks) == 3  # a block each, not a row
    full = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
        for row in make_rows(2500)
    ]
    lengths = np.array([len(ids) for ids in tokenizer.apply_chat_template(full)["input_ids"]])
    assert 0 < corpus.truncated == (lengths > 24).sum()
    assert sorted(corpus.length) == sorted(np.minimum(lengths, 24))


def test_dataset_is_what_a_trainer_takes(corpus: Corpus) -> None:
    assert corpus.dataset.column_names == ["input_ids", "labels", "example_id"]
    assert corpus.dataset["example_id"][:] == list(range(2500))
    for i in (0, 999, 1000, 2499):
        assert corpus.dataset[i]["input_ids"] == corpus.tokens([i])[0].tolist()
        assert corpus.dataset[i]["labels"] == corpus.labels([i])[0].tolist()


def test_rows_outside_are_an_error(corpus: Corpus) -> None:
    for row in (-1, 2500):
        with pytest.raises(IndexError, match=f"row {row} is not in the corpus of 2500 rows"):
            corpus.tokens([row])
    assert corpus.tokens([]) == []
    assert corpus.labels([]) == []


def test_records_come_back_untouched(corpus: Corpus) -> None:
    given = {row["id"]: row for row in make_rows(2500)}
    for i in range(0, 2500, 50):
        assert corpus.record(i) == given[corpus.ids[i]]
        assert list(corpus.record(i)) == list(given[corpus.ids[i]])


def test_order_of_the_files_does_not_matter(tmp_path: Path, tokenizer: Any) -> None:
    rows = make_rows(300)
    one = Corpus.build(write(tmp_path / "p.jsonl", rows), tokenizer, max_length=40)
    random.Random(1).shuffle(rows)
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / "z.json", rows[:100])
    write(folder / "a.parquet", rows[100:])
    assert same(one, Corpus.build(folder, tokenizer, max_length=40))
    assert one.ids != [row["id"] for row in make_rows(300)]  # an order of its own, then


def test_copies_stand_together_in_the_order_of_their_ids(corpus: Corpus) -> None:
    tokens = [row.tobytes() for row in corpus.tokens(range(len(corpus)))]
    places: dict[bytes, list[int]] = {}
    for i, content in enumerate(tokens):
        places.setdefault(content, []).append(i)
    assert max(map(len, places.values())) > 1
    for group in places.values():
        assert group == list(range(group[0], group[0] + len(group)))
        assert [corpus.ids[i] for i in group] == sorted(corpus.ids[i] for i in group)


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1000), n=st.integers(1, 12))
def test_shuffled_file_same_corpus(tmp_path: Path, tokenizer: Any, seed: int, n: int) -> None:
    rows = make_rows(n, seed)
    shuffled = random.Random(seed).sample(rows, n)
    a, b = (
        Corpus.build(write(tmp_path / "p.jsonl", given), tokenizer, max_length=60)
        for given in (rows, shuffled)
    )
    assert same(a, b)


def test_fingerprint_changes_with_what_it_covers_and_with_nothing_else(tmp_path: Path) -> None:
    rows = make_rows(20)

    def fingerprint(rows: list[dict[str, Any]], name: str = "p.jsonl", length: int = 100, **made: Any) -> str:
        return Corpus.build(
            write(tmp_path / name, rows), tiny_tokenizer(**made), max_length=length
        ).fingerprint

    base = fingerprint(rows)
    assert fingerprint(rows) == base
    assert fingerprint(rows, name="q.parquet") == base
    assert fingerprint([{**row, "note": 0, "source": "z"} for row in rows]) == base
    others = [
        fingerprint(rows[:-1]),
        fingerprint([{**row, "id": row["id"] + "x"} for row in rows]),
        fingerprint([{**rows[0], "completion": "other"}, *rows[1:]]),
        fingerprint(rows, length=101),
        fingerprint(rows, template="{# 2 #}" + TEMPLATE),
        fingerprint(rows, template=TEMPLATE.replace("<|tool|>", "tool:")),  # shows in no row
    ]
    assert len({base, *others}) == 7


def test_names_by_place_when_there_are_no_ids(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path / "a.jsonl", [{"text": "one"}, {"text": "two"}])
    write(tmp_path / "b.csv", [{"text": "three"}])
    corpus = Corpus.build(tmp_path, tokenizer, max_length=20)
    by_text = {corpus.record(i)["text"]: corpus.ids[i] for i in range(3)}
    assert by_text == {"one": "a.jsonl:1", "two": "a.jsonl:2", "three": "b.csv:2"}
    assert corpus.source is None


def test_built_by_two_processes(tmp_path: Path, tokenizer: Any) -> None:
    file = write(tmp_path / "p.jsonl", make_rows(40))
    one, two = (Corpus.build(file, tokenizer, max_length=60, num_proc=processes) for processes in (None, 2))
    assert same(one, two)


def test_max_length_too_small_and_columns_misspelt(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(CorpusError, match="max_length is 1; a row needs 2 tokens"):
        Corpus.build(tmp_path / "unread", tokenizer, max_length=1)
    with pytest.raises(CorpusError, match="unknown key 'promt'"):
        Corpus.build(tmp_path / "unread", tokenizer, max_length=9, columns={"promt": "q"})


def test_columns_mapping_reaches_the_rows(tmp_path: Path, tokenizer: Any) -> None:
    file = write(tmp_path / "p.csv", [{"q": "Q?", "a": "A", "key": "k"}])
    corpus = Corpus.build(
        file, tokenizer, max_length=60, columns={"prompt": "q", "completion": "a", "id": "key"}
    )
    assert corpus.ids == ["k"]
    assert corpus.record(0) == {"q": "Q?", "a": "A", "key": "k"}


def test_all_cores_tokenise_many_rows_and_nothing_else_changes(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "p.jsonl", [*make_rows(30), {"text": ""}])
    alone = Corpus.build(file, tokenizer, max_length=60, skip_bad_rows=True)
    asked: list[int] = []
    through = datasets.Dataset.map

    def watched(self: Any, *given: Any, **named: Any) -> Any:
        asked.append(named["num_proc"])
        return through(self, *given, **named)

    monkeypatch.setattr(datasets.Dataset, "map", watched)
    monkeypatch.setattr("coretune.data.freeze.MANY", 31)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    together = Corpus.build(file, tokenizer, max_length=60, skip_bad_rows=True)
    assert asked == [2]
    assert same(alone, together)
    assert together.dropped == [("p.jsonl line 31", "`prompt` is missing; the row has text")]


def test_record_text_is_json_a_writer_can_extend(corpus: Corpus) -> None:
    line = json.dumps({**corpus.record(0), "coretune": {"rank": 0}})
    assert json.loads(line)["note"] == corpus.record(0)["note"]


TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"properties": {"a": {"type": "integer"}}}},
}

OTHER = {
    "type": "function",
    "function": {"name": "g", "parameters": {"properties": {"zone": {"type": "text"}}}},
}


def tool_row(number: int, tool: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": tool["function"]["name"], "arguments": arguments}}
    turns = [
        {"role": "user", "content": f"call it {number}"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "7"},
        {"role": "assistant", "content": "done"},
    ]
    asked = [{"role": "user", "content": f"and {number}"}, turns[1]]
    return {"id": str(number), "messages": turns + asked, "tools": [tool]}


ALIKE = [tool_row(number, TOOL, {"a": number}) for number in range(3)]

UNLIKE = [tool_row(0, TOOL, {"a": 1}), tool_row(1, OTHER, {"zone": "north"}), tool_row(2, TOOL, {"a": 2})]

WRITES_TOOLS = (
    "{{ bos_token }}{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}{% for m in messages %}"
    "<|{{ m['role'] }}|>{% if m.tool_calls %}{% for c in m.tool_calls %}{{ c | tojson }}{% endfor %}{% "
    "endif %}"
    "{{ m['content'] }}{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.mark.parametrize("rows", [ALIKE, UNLIKE], ids=["alike", "unlike"])
@pytest.mark.parametrize("mixed", [{}, {"on_mixed_types": "use_json"}], ids=["structs", "json"])
@pytest.mark.parametrize("kind", ["parquet", "arrow", "hub"])
def test_tool_rows_of_a_table_are_the_tokens_of_the_same_rows_as_jsonl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]], mixed: Any, kind: str
) -> None:
    tokenizer = tiny_tokenizer(WRITES_TOOLS)
    lines = Corpus.build(write(tmp_path / "p.jsonl", rows), tokenizer, max_length=2000)
    made = datasets.Dataset.from_list(rows, **mixed)
    source: Any = tmp_path / "table.parquet"
    if kind == "parquet":
        made.to_parquet(source)
    elif kind == "arrow":
        source = tmp_path / "saved"
        made.save_to_disk(source)
    else:
        source = "owner/name"
        monkeypatch.setattr(datasets, "load_dataset", lambda name, split: made)
    table = Corpus.build(source, tokenizer, max_length=2000)
    assert table.ids == lines.ids
    assert table.fingerprint == lines.fingerprint
    if mixed:
        assert [table.record(i) for i in range(3)] == [lines.record(i) for i in range(3)]


def test_a_null_that_the_user_wrote_stays(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(WRITES_TOOLS)
    row = tool_row(0, TOOL, {"a": None})
    corpus = Corpus.build(write(tmp_path / "p.jsonl", [row]), tokenizer, max_length=2000)
    assert '"a": null' in tokenizer.decode(corpus.tokens([0])[0])
    filled = Corpus.build(write(tmp_path / "p.parquet", UNLIKE), tokenizer, max_length=2000)
    at = filled.ids.index("1")
    assert "null" not in tokenizer.decode(filled.tokens([at])[0])
    assert filled.record(at)["messages"][1]["tool_calls"][0]["function"]["arguments"] == {
        "a": None,
        "zone": "north",
    }


def test_a_line_is_valid_json_and_says_what_it_could_not_hold() -> None:
    nan = float("nan")
    line, nulls = json_line({"a": nan, "b": [1.5, {"c": -float("inf")}], "d": "é"})
    assert line == '{"a": null, "b": [1.5, {"c": null}], "d": "é"}'
    assert nulls == 2

"""The frozen corpus: its order, its fingerprint, its refusals, and what a trainer gets from it."""

from __future__ import annotations

import json
import logging
import os
import random
from importlib.metadata import version
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
from coretune.data.finding import read_found
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


BAD = [
    ({"id": "1", "prompt": "Q", "completion": ""}, "p.jsonl line 2: empty response"),
    ({"id": "2", "prompt": "Q", "completion": None}, "p.jsonl line 3: `completion` is null"),
    ({"id": "3", "prompt": "Q", "completion": "word " * 50}, "p.jsonl line 4: the response alone is"),
    ({"id": "4", "prompt": "Q"}, "p.jsonl line 5: `completion` is missing; the row has id, prompt"),
    ({"id": None, "prompt": "Q", "completion": "A"}, "p.jsonl line 6: `id` is null"),
    ({"id": "6", "prompt": 6, "completion": "A"}, "p.jsonl line 7: `prompt` is a number, not text"),
]


def test_all_bad_rows_are_named_in_one_go(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"id": "0", "prompt": "Q", "completion": "A"}, *(row for row, _ in BAD)]
    file = write(tmp_path / "p.jsonl", rows)
    with file.open("ab") as end:
        end.write(b'{"broken\n')
    with pytest.raises(CorpusError) as caught:
        Corpus.build(file, tokenizer, max_length=40)
    first, *named = str(caught.value).splitlines()
    assert first == "7 bad rows; correct them or leave them out with skip_bad_rows (--skip-bad-rows):"
    for line, says in zip(named, [*(says for _, says in BAD), "p.jsonl line 8: not valid JSON"], strict=True):
        assert line.startswith(f"  {says}")

    corpus = Corpus.build(file, tokenizer, max_length=40, skip_bad_rows=True)
    assert corpus.ids == ["0"]
    assert [f"  {place}: {reason}" for place, reason in corpus.dropped] == named


def test_one_bad_row_is_one_line(tmp_path: Path, tokenizer: Any) -> None:
    file = write(tmp_path / "p.jsonl", [*make_rows(3), {"id": "x", "prompt": "Q", "completion": " "}])
    with pytest.raises(CorpusError) as caught:
        Corpus.build(file, tokenizer, max_length=60)
    assert str(caught.value) == (
        "p.jsonl line 4: empty response: `completion` holds no text"
        " (correct it or leave it out with skip_bad_rows (--skip-bad-rows))"
    )


def test_more_than_ten_bad_rows_are_counted(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"text": ""} for _ in range(13)] + [{"text": "fine"}]
    with pytest.raises(CorpusError) as caught:
        Corpus.build(write(tmp_path / "p.jsonl", rows), tokenizer, max_length=60)
    lines = str(caught.value).splitlines()
    assert len(lines) == 12
    assert lines[0].startswith("13 bad rows")
    assert lines[-1].strip() == "and 3 more"


@pytest.mark.parametrize("skip", [True, False])
def test_equal_ids_are_refused_with_both_places(tmp_path: Path, tokenizer: Any, skip: bool) -> None:
    write(tmp_path / "a.jsonl", [{"id": 7, "text": "one"}, {"id": "8", "text": "two"}])
    write(tmp_path / "b.jsonl", [{"id": "7", "text": "three"}])
    with pytest.raises(CorpusError) as caught:
        Corpus.build(tmp_path, tokenizer, max_length=60, skip_bad_rows=skip)
    assert str(caught.value) == (
        "b.jsonl line 1: id '7' is already that of a.jsonl line 1 (give every row its own id)"
    )


def test_a_skipped_row_holds_no_id(tmp_path: Path, tokenizer: Any) -> None:
    file = write(tmp_path / "p.jsonl", [{"id": "7", "text": ""}, {"id": "7", "text": "one"}])
    assert Corpus.build(file, tokenizer, max_length=60, skip_bad_rows=True).ids == ["7"]


def test_nothing_left(tmp_path: Path, tokenizer: Any) -> None:
    file = write(tmp_path / "p.jsonl", [{"text": ""}, {"text": " "}])
    with pytest.raises(CorpusError, match=r"all 2 rows are bad, the first: p.jsonl line 1: empty response"):
        Corpus.build(file, tokenizer, max_length=60, skip_bad_rows=True)
    (tmp_path / "q.jsonl").write_text("not json\n")
    with pytest.raises(CorpusError, match=r"all 1 rows are bad, the first: q.jsonl line 1: not valid JSON"):
        Corpus.build(tmp_path / "q.jsonl", tokenizer, max_length=60, skip_bad_rows=True)


def test_what_skipping_bad_rows_does_not_forgive(tmp_path: Path, tokenizer: Any) -> None:
    cases = [
        (
            write(tmp_path / "wrong.csv", [{"question": "Q", "answer": "A"}]),
            tokenizer,
            r"no known format in its columns",
        ),
        (
            write(tmp_path / "p.jsonl", [{"messages": []}]),
            tiny_tokenizer(None),
            "tokenizer has no chat template",
        ),
        (tmp_path / "none.jsonl", tokenizer, "no such file or folder"),
    ]
    write(
        tmp_path / "p.jsonl",
        [{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}],
    )
    for file, given_tokenizer, says in cases:
        with pytest.raises(CorpusError, match=says):
            Corpus.build(file, given_tokenizer, max_length=60, skip_bad_rows=True)


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


def test_cache_is_used_and_never_for_other_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, cache = tmp_path / "data", tmp_path / "cache"
    data.mkdir()
    file, rows = data / "p.jsonl", make_rows(30)
    tokenizer = tiny_tokenizer()

    def build(tokenizer: Any = tokenizer, **given: Any) -> Corpus:
        return Corpus.build(file, tokenizer, cache_dir=cache, **{"max_length": 60, **given})

    write(file, rows)
    first = build()
    stamp = os.stat(file)
    assert [path.name for path in data.iterdir()] == ["p.jsonl"]
    assert len(list(cache.iterdir())) == 1  # nothing half-made stays behind
    with monkeypatch.context() as patched:
        patched.setattr("coretune.data.freeze._freeze", lambda *_: pytest.fail("tokenised again"))
        assert same(build(), first)

    write(file, [{**row, "prompt": row["prompt"][::-1]} for row in rows])
    os.utime(file, (stamp.st_atime, stamp.st_mtime))  # same name, size and date; other content
    assert build().fingerprint != first.fingerprint
    write(file, rows)
    assert build(max_length=61).fingerprint != first.fingerprint
    assert build(tokenizer=tiny_tokenizer("{# 2 #}" + TEMPLATE)).fingerprint != first.fingerprint
    assert len(list(cache.iterdir())) == 4


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _other_fingerprint(file: Path) -> None:
    file.write_text(file.read_text().replace('"fingerprint": "', '"fingerprint": "0'))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("corpus.arrow", _flip),
        ("corpus.arrow", _cut),
        ("corpus.arrow", Path.unlink),
        ("account.json", _cut),
        ("account.json", _other_fingerprint),
    ],
)
def test_a_damaged_cache_is_named_and_made_again(
    tmp_path: Path, tokenizer: Any, name: str, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    file, cache = write(tmp_path / "p.jsonl", make_rows(20)), tmp_path / "cache"
    first = Corpus.build(file, tokenizer, max_length=60)
    Corpus.build(file, tokenizer, max_length=60, cache_dir=cache)
    (kept,) = cache.iterdir()
    whole = (kept / name).read_bytes()
    damage(kept / name)
    with caplog.at_level(logging.WARNING, logger="coretune"):
        again = Corpus.build(file, tokenizer, max_length=60, cache_dir=cache)
    assert f"{kept / name} is damaged and made again" in caplog.text
    assert same(again, first)
    assert (kept / name).read_bytes() == whole
    assert list(cache.iterdir()) == [kept]
    caplog.clear()
    Corpus.build(file, tokenizer, max_length=60, cache_dir=cache)
    assert not caplog.records


@pytest.mark.parametrize("package", ["transformers", "datasets", "jinja2"])
def test_a_cache_of_another_version_is_not_taken(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    file = write(tmp_path / "p.jsonl", make_rows(4))
    Corpus.build(file, tokenizer, max_length=60, cache_dir=tmp_path / "cache")
    monkeypatch.setattr(
        "coretune.data.freeze.version", lambda name: "9" if name == package else version(name)
    )
    Corpus.build(file, tokenizer, max_length=60, cache_dir=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2


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


def test_a_file_that_is_written_to_while_it_is_read_is_refused(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "p.jsonl", make_rows(5))

    def reading(every: Any, tell: Any) -> Any:
        yield from read_found(every, tell)
        with file.open("a") as opened:
            opened.write("{}")

    monkeypatch.setattr("coretune.data.gather.read_found", reading)
    with pytest.raises(CorpusError, match="was written to while it was read"):
        Corpus.build(file, tokenizer, max_length=60, cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_cached_bad_rows_are_still_refused_and_listed(tmp_path: Path, tokenizer: Any) -> None:
    file = write(tmp_path / "p.jsonl", [{"text": "fine"}, {"text": ""}])
    kept = tmp_path / "cache"
    for _ in range(2):
        corpus = Corpus.build(file, tokenizer, max_length=60, skip_bad_rows=True, cache_dir=kept)
        assert corpus.dropped == [("p.jsonl line 2", "empty response: `text` holds no text")]
    with pytest.raises(CorpusError, match=r"p.jsonl line 2: empty response"):
        Corpus.build(file, tokenizer, max_length=60, cache_dir=kept)


def test_refused_data_leaves_nothing_behind(tmp_path: Path, tokenizer: Any) -> None:
    file = write(tmp_path / "p.jsonl", [{"text": ""}])
    with pytest.raises(CorpusError):
        Corpus.build(file, tokenizer, max_length=60, cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_record_text_is_json_a_writer_can_extend(corpus: Corpus) -> None:
    line = json.dumps({**corpus.record(0), "coretune": {"rank": 0}})
    assert json.loads(line)["note"] == corpus.record(0)["note"]


# ----------------------------------------------------------------------- nothing is lost without a word


MIXED = [
    {"id": "0", "prompt": "Q", "completion": "A"},
    {"id": "1", "prompt": "Q", "completion": ""},
    {"id": "2", "prompt": "Q?", "completion": "B"},
    {"id": "", "prompt": "Q", "completion": "A"},
    {"id": "4", "prompt": "Q", "completion": "word " * 60},
    {"id": "5", "prompt": "word " * 60, "completion": "A"},
]


@pytest.mark.parametrize(
    "name", ["p.jsonl", "p.json", "p.csv", "p.parquet", "p.arrow", "p.file.arrow", "hub"]
)
def test_rows_in_are_rows_trained_and_rows_named_in_every_format(
    tmp_path: Path, tokenizer: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "hub":
        rows = datasets.Dataset.from_list(MIXED)
        monkeypatch.setattr(datasets, "load_dataset", lambda name, split: rows)
        source: Any = "owner/name"
    else:
        source = write(tmp_path / name, MIXED)
    if name == "p.jsonl":
        with source.open("ab") as end:
            end.write(b'{"id": "6", "id": "7", "prompt": "Q", "completion": "A"}\n[]\n\xff\n\n')
    if name == "p.json":
        text = source.read_text(encoding="utf-8").rstrip()[:-1]
        source.write_text(text + ', 5, {"id": 6, "id": 7, "prompt": "Q", "completion": "A"}]')
    if name == "p.csv":
        with source.open("ab") as end:
            end.write(b'8,Q\n9,"Q"x,A\n10,Q,caf\xe9\n')
    more = {"p.jsonl": 3, "p.json": 2, "p.csv": 3}.get(name, 0)
    corpus = Corpus.build(source, tokenizer, max_length=40, skip_bad_rows=True)
    assert sorted(corpus.ids) == ["0", "2", "5"]
    assert len(corpus) + len(corpus.dropped) == len(MIXED) + more
    assert len({place for place, _ in corpus.dropped}) == len(corpus.dropped)
    with pytest.raises(CorpusError, match=f"{len(corpus.dropped)} bad rows"):
        Corpus.build(source, tokenizer, max_length=40)


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


def test_half_a_character_is_named_where_it_matters_and_kept_where_not(
    tmp_path: Path, tokenizer: Any
) -> None:
    row = {"id": "a", "prompt": "Q", "completion": "A"}
    rows = [{**row, "note": "cut \ud83d"}, {**row, "id": "\udc00"}, {**row, "id": "b", "source": "\ud800"}]
    corpus = Corpus.build(
        write_ascii(tmp_path / "p.jsonl", rows), tokenizer, max_length=60, skip_bad_rows=True
    )
    assert corpus.ids == ["a"]
    assert [(place, reason[:30]) for place, reason in corpus.dropped] == [
        ("p.jsonl line 2", "`id` holds half a surrogate pa"),
        ("p.jsonl line 3", "`source` holds half a surrogat"),
    ]
    line, nulls = json_line(corpus.record(0))
    assert json.loads(line.encode()) == corpus.record(0)
    assert nulls == 0


def write_ascii(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="ascii")
    return path


def test_a_line_is_valid_json_and_says_what_it_could_not_hold() -> None:
    nan = float("nan")
    line, nulls = json_line({"a": nan, "b": [1.5, {"c": -float("inf")}], "d": "é"})
    assert line == '{"a": null, "b": [1.5, {"c": null}], "d": "é"}'
    assert nulls == 2


def test_columns_and_files_that_are_not_used_are_named(tmp_path: Path, tokenizer: Any) -> None:
    row = {"prompt": "Q", "completion": "A"}
    write(tmp_path / "train-a.jsonl", [{**row, "score": 1}, {**row, "rank\x1b": 2}])
    write(tmp_path / "train-b.csv", [{**row, "score": "1", "rank\x1b": "2"}])
    write(tmp_path / "train-c.csv", [row])
    write(tmp_path / "test.jsonl", [row])
    corpus = Corpus.build(tmp_path, tokenizer, max_length=60, cache_dir=tmp_path.parent / "cache")
    assert len(corpus) == 4
    assert corpus.notes == [
        f"{tmp_path}: not read: test.jsonl",
        "train-a.jsonl and 1 more: columns that are not used: rank\\x1b, score",
    ]
    again = Corpus.build(tmp_path, tokenizer, max_length=60, cache_dir=tmp_path.parent / "cache")
    assert again.notes == corpus.notes


@pytest.mark.parametrize(
    ("name", "labels", "kept", "named"),
    [
        ("p.jsonl", [0, 1], 2, True),
        ("p.parquet", [0, 1], 2, True),
        ("p.csv", ["0", "1"], 2, True),
        ("p.jsonl", [False, True], 1, False),
        ("p.parquet", [False, True], 1, False),
        ("p.csv", ["False", "true"], 1, False),
        ("p.jsonl", [None, True], 2, False),
    ],
)
def test_a_label_that_is_a_number_is_a_column_that_is_not_used(
    tmp_path: Path, tokenizer: Any, name: str, labels: list[Any], kept: int, named: bool
) -> None:
    rows = [{"prompt": f"Q{label}", "completion": "A", "label": label} for label in labels]
    corpus = Corpus.build(write(tmp_path / name, rows), tokenizer, max_length=60, skip_bad_rows=True)
    assert len(corpus) == kept
    assert corpus.notes == ([f"{name}: columns that are not used: label"] if named else [])


def test_a_column_without_a_name_is_named_as_that(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "p.csv").write_text(",prompt,completion\n0,Q,A\n")
    corpus = Corpus.build(tmp_path / "p.csv", tokenizer, max_length=60)
    assert corpus.notes == ["p.csv: columns that are not used: (one without a name)"]


def test_a_mapped_column_that_no_row_has_is_known(tmp_path: Path, tokenizer: Any) -> None:
    file = write(tmp_path / "p.jsonl", [{"prompt": "Q", "completion": "A", "kind": "k"}])
    for columns, absent in (({"source": "kind"}, []), ({"source": "kin", "tools": "t"}, ["source", "tools"])):
        assert Corpus.build(file, tokenizer, max_length=60, columns=columns).absent == absent


def test_the_loss_decides_labels_prompt_lengths_and_the_cache(tmp_path: Path, tokenizer: Any) -> None:
    turns = [{"role": role, "content": role[0]} for role in ("user", "assistant", "user", "assistant")]
    file, cache = write(tmp_path / "p.jsonl", [{"messages": turns}]), tmp_path / "cache"
    built = [
        Corpus.build(file, tokenizer, max_length=60, cache_dir=cache, **loss)
        for loss in ({}, {"completion_only_loss": False}, {"assistant_only_loss": True})
    ]
    assert len({corpus.fingerprint for corpus in built}) == 3
    for corpus in built:
        (ids,), (labels,) = corpus.tokens([0]), corpus.labels([0])
        begin = int(corpus.prompt_length[0])
        assert corpus.dataset[0]["labels"] == labels.tolist()
        assert (labels[:begin] == -100).all()
        assert labels[begin] == ids[begin]
    counted = [int((corpus.labels([0])[0] != -100).sum()) for corpus in built]
    assert counted == [3, int(built[1].length[0]) - 1, 4]


def test_the_first_rows_alone_are_a_corpus_of_their_own(tmp_path: Path, tokenizer: Any) -> None:
    rows = [*make_rows(20), {"prompt": "no answer", "completion": ""}]
    path = write(tmp_path / "pool.jsonl", rows)
    head = Corpus.build(path, tokenizer, max_length=64, cache_dir=tmp_path / "kept", first=8)
    assert sorted(head.ids) == sorted(f"r{number}" for number in range(8))
    with pytest.raises(CorpusError, match="line 21"):  # no cache of the first rows is taken for the whole
        Corpus.build(path, tokenizer, max_length=64, cache_dir=tmp_path / "kept")

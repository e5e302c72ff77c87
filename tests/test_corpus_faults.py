"""Nothing of the data is lost without a word: bad rows, equal ids, columns and files that are not used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from test_corpus import make_rows
from test_records import write
from tiny_tokenizer import tiny_tokenizer

from coretune.data.corpus import Corpus
from coretune.data.raw import CorpusError, json_line


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


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

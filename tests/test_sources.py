"""What train_data may say: several files, patterns, slices, shares, configs and splits of hub data sets."""

from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from test_records import write
from tiny_tokenizer import tiny_tokenizer

from coretune.config import ConfigError, check_config, refuse_absent
from coretune.data.corpus import Corpus
from coretune.data.finding import found, read_found, read_rows
from coretune.data.raw import CorpusError
from coretune.data.sources import sources_of
from coretune.storing.inputs import contents


def texts(prefix: str, count: int) -> list[dict[str, str]]:
    return [{"text": f"{prefix}{number}"} for number in range(count)]


def read(given: Any) -> list[str]:
    return [row.record["text"] for row in read_rows(given) if row.record is not None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """a/p.jsonl of ten rows, b/p.jsonl of four, c.csv of two."""
    for name, count in (("a", 10), ("b", 4)):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "p.jsonl", texts(name, count))
    write(tmp_path / "c.csv", texts("c", 2))
    return tmp_path


def test_several_files_are_read_in_their_order_under_names_that_differ(folder: Path) -> None:
    given = [str(folder / "b"), folder / "a" / "p.jsonl", str(folder / "c.csv")]
    assert read(given) == [
        f"{name}{at}" for name, count in (("b", 4), ("a", 10), ("c", 2)) for at in range(count)
    ]
    assert {row.file for row in read_rows(given)} == {"a/p.jsonl", "b/p.jsonl", "c.csv"}
    corpus = Corpus.build(given, tiny_tokenizer(), max_length=40)
    assert len(corpus) == 16
    assert {"a/p.jsonl:1", "b/p.jsonl:1", "c.csv:2"} <= set(corpus.ids)


def test_a_pattern_names_its_files(folder: Path) -> None:
    assert read(str(folder / "*" / "p.jsonl")) == read([str(folder / "a"), str(folder / "b")])
    assert read(str(folder / "**" / "*.jsonl")) == read([str(folder / "a"), str(folder / "b")])
    with pytest.raises(CorpusError, match=r"no such file or folder: .*\*\.parquet"):
        read(str(folder / "*.parquet"))
    (folder / "[1].jsonl").write_text('{"text": "a file of that very name"}\n')
    assert read(str(folder / "[1].jsonl")) == ["a file of that very name"]


@pytest.mark.parametrize(
    ("split", "places"),
    [("train[:10%]", [0]), ("train[2:4]", [2, 3]), ("train[-3:]", [7, 8, 9]), ("train[85%:]", [8, 9])],
)
def test_a_slice_takes_the_rows_that_datasets_takes(folder: Path, split: str, places: list[int]) -> None:
    source = {"path": str(folder / "a" / "p.jsonl"), "split": split}
    assert read(source) == [f"a{place}" for place in places]
    files = {"train": str(folder / "a" / "p.jsonl")}
    rule = datasets.ReadInstruction.from_spec(split).to_absolute({"train": 10})[0]
    assert list(range(10))[rule.from_ : rule.to] == places
    assert files  # the same file as load_dataset would be given
    said: list[str] = []
    list(read_found(found(source), said.append))
    assert said == [f"p.jsonl: {len(places)} of 10 rows taken (split {split})"]


def test_a_slice_runs_over_all_files_of_its_folder_and_keeps_their_lines(folder: Path) -> None:
    write(folder / "b" / "q.jsonl", texts("q", 3))
    rows = list(read_rows({"path": str(folder / "b"), "split": "train[3:5]"}))
    assert [row.place for row in rows] == ["p.jsonl line 4", "q.jsonl line 1"]


def test_slices_of_one_file_are_two_entries_and_the_whole_twice_is_refused(folder: Path) -> None:
    path = str(folder / "a")
    halves = [{"path": path, "split": split} for split in ("train[:50%]", "train[50%:]")]
    assert read(halves) == read(path)
    for twice in ([path, path], [path, f"{path}/p.jsonl"], [path, halves[0]], [f"{path}/*.jsonl", path]):
        with pytest.raises(CorpusError, match="twice"):
            read(twice)


def test_fractions_are_the_shares_of_trl(folder: Path) -> None:
    """The first rows of each, as many as the largest mixture allows in which no row comes twice."""
    from trl import DatasetMixtureConfig, get_dataset
    from trl.scripts.utils import DatasetConfig

    files = [str(folder / name / "p.jsonl") for name in ("a", "b")]
    for shares in ((3, 1), (0.5, 0.5), (0.2, 0.8)):
        ours = [{"path": file, "fraction": share} for file, share in zip(files, shares, strict=True)]
        theirs = [
            DatasetConfig(path="json", data_files=file, fraction=share)
            for file, share in zip(files, shares, strict=True)
        ]
        mixture = get_dataset(DatasetMixtureConfig(datasets=theirs))["train"]
        assert read(ours) == mixture["text"][:]
    with pytest.raises(CorpusError, match=r"b/p.jsonl has no fraction and .*a/p.jsonl has; give all one"):
        read([ours[0], files[1]])
    with pytest.raises(CorpusError, match=r"it is alone; for a part of it write split: \"train\[:10%\]\""):
        read(ours[:1])
    with pytest.raises(CorpusError, match=r"fraction of .*a/p.jsonl is less than one row"):
        read([{**ours[0], "fraction": 0.1}, ours[1]])
    corpus = Corpus.build(ours, tiny_tokenizer(), max_length=40)
    assert "b/p.jsonl: 4 of 4 rows taken (fraction 0.8)" in corpus.notes


def test_entries_with_columns_of_their_own(folder: Path) -> None:
    write(folder / "q.csv", [{"question": "Q?", "reply": "A"}])
    write(folder / "r.csv", [{"ask": "R?", "tell": "B"}])
    given = [
        {"path": str(folder / "q.csv"), "columns": {"prompt": "question", "completion": "reply"}},
        str(folder / "r.csv"),
        str(folder / "c.csv"),
    ]
    with pytest.raises(CorpusError, match=r"c.csv: no known format"):
        Corpus.build(given, tiny_tokenizer(), max_length=60, columns={"prompt": "ask", "completion": "tell"})
    mapping = {"prompt": "ask", "completion": "tell"}
    corpus = Corpus.build(given[:2], tiny_tokenizer(), max_length=60, columns=mapping)
    assert sorted(corpus.ids) == ["q.csv:2", "r.csv:2"]
    assert (corpus.notes, corpus.absent) == ([], [])
    for row in range(2):
        assert set(corpus.columns(row).values()) == set(corpus.record(row))


def test_a_split_that_the_files_named_are_not_of_is_refused(folder: Path) -> None:
    """However they are named: by a pattern, one by one, or by the builder of their kind."""
    write(folder / "a" / "test.jsonl", texts("t", 3))
    pattern = {"path": str(folder / "*" / "test.jsonl"), "split": "test[:2]"}
    assert (
        read(pattern)
        == read({**pattern, "path": str(folder / "a"), "data_files": "t*.jsonl"})
        == ["t0", "t1"]
    )
    for given in (
        {"path": str(folder / "*" / "p.jsonl")},
        {"path": str(folder / "a"), "data_files": ["test.jsonl", "p.jsonl"]},
        {"path": "json", "data_files": str(folder / "b" / "p.jsonl")},
    ):
        with pytest.raises(CorpusError, match=r"p.jsonl is one file, and not of a split 'test'"):
            read({**given, "split": "test"})


@pytest.mark.parametrize("name", ["weight", "source"])
def test_a_column_that_an_entry_names_and_its_rows_have_not_is_refused(folder: Path, name: str) -> None:
    entry = {"path": str(folder / "a"), "columns": {name: "gone"}}
    with pytest.raises(
        CorpusError, match=rf"columns.{name} of .*a is 'gone', and no row of it has that column"
    ):
        Corpus.build([entry, str(folder / "c.csv")], tiny_tokenizer(), max_length=60)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """gsm8k with a config that must be named, ultrachat with splits of its own; what is asked of them."""
    asked: list[dict[str, Any]] = []
    splits = {
        ("openai/gsm8k", "main"): {"train": 20, "test": 5},
        ("HuggingFaceH4/ultrachat_200k", None): {"train_sft": 8, "test_sft": 3},
    }

    def load_dataset(path: str, *, split: str, name: str | None = None, **more: Any) -> datasets.Dataset:
        asked.append({"path": path, "split": split, "name": name, **more})
        if (path, name) not in splits:
            raise ValueError("Config name is missing. Please pick one among the available configs: ['main']")
        counts = splits[path, name]
        try:
            (part,) = datasets.ReadInstruction.from_spec(split).to_absolute(counts)
        except ValueError as error:
            raise ValueError(f'Unknown split "{split}". Should be one of {list(counts)}.') from error
        rows = datasets.Dataset.from_list(texts(f"{part.splitname} ", counts[part.splitname]))
        return rows.select(range(part.from_, part.to))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_configs_splits_and_slices_of_hub_data_sets(hub: list[dict[str, Any]], folder: Path) -> None:
    gsm8k = {"path": "openai/gsm8k", "name": "main", "split": "train[:10%]"}
    chats = {"path": "HuggingFaceH4/ultrachat_200k", "split": "train_sft", "data_dir": "d", "data_files": "f"}
    assert read(gsm8k) == ["train 0", "train 1"]
    assert read(chats)[7] == "train_sft 7"
    assert hub[1] == {**chats, "name": None, "data_files": ["f"]}
    rows = list(read_rows([gsm8k, str(folder / "c.csv")]))
    assert [row.place for row in rows][1:3] == ["openai/gsm8k/main:train[:10%] row 2", "c.csv line 2"]
    shares = [{**gsm8k, "split": "train", "fraction": 1}, {"path": str(folder / "c.csv"), "fraction": 1}]
    assert read(shares) == ["train 0", "train 1", "c0", "c1"]
    corpus = Corpus.build([gsm8k, chats], tiny_tokenizer(), max_length=60)
    assert len(corpus) == 10


def test_a_config_or_split_that_is_missing_is_named_with_those_there_are(hub: list[dict[str, Any]]) -> None:
    with pytest.raises(CorpusError, match=r"available configs: \['main'\].*name: …, split: …"):
        read("openai/gsm8k")
    with pytest.raises(
        CorpusError, match=r"gave no split 'train' .*Should be one of \['train_sft', 'test_sft'\]"
    ):
        read("HuggingFaceH4/ultrachat_200k")


def test_a_folder_with_configs_as_folders_is_read_by_name(folder: Path) -> None:
    assert read({"path": str(folder), "name": "b"}) == read(str(folder / "b"))
    with pytest.raises(CorpusError, match=r"name is 'main', and .* has no such folder"):
        read({"path": str(folder), "name": "main"})
    assert read({"path": str(folder), "data_files": ["b/*.jsonl", "c.csv"]}) == read(
        [str(folder / "b"), str(folder / "c.csv")]
    )
    assert read({"path": "json", "data_files": str(folder / "b" / "p.jsonl")}) == read(str(folder / "b"))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "the data is an empty list"),
        ([3], "3 is no data: give a path"),
        ({"split": "train"}, "has no path"),
        ({"path": "a", "spilt": "train"}, r"unknown key 'spilt', did you mean 'split'\?"),
        ({"path": "a", "split": 3}, "split is 3; give text"),
        ({"path": "a", "columns": ["text"]}, "columns is .* need no list: they are left alone"),
        ([{"path": "a", "fraction": True}, "b"], "fraction is True; give a number above 0"),
        ([{"path": "a", "fraction": 0}, "b"], "fraction is 0; give a number above 0"),
        ([{"path": "a", "fraction": float("inf")}, "b"], "fraction is inf; give a number above 0"),
        ([{"path": "a", "fraction": float("nan")}, "b"], "fraction is nan; give a number above 0"),
        ({"path": "a", "data_files": {"train": "p.jsonl"}}, "data_files takes a file or a list of files"),
        ({"path": "a", "data_files": 3}, "data_files takes a file or a list of files"),
        ({"path": "json", "data_files": "p.jsonl", "name": "b"}, "json with data_files has no use for name"),
        (
            {"path": "csv", "data_files": ["p"], "data_dir": "b"},
            "csv with data_files has no use for data_dir",
        ),
    ],
)
def test_entries_that_say_nothing_are_refused_in_python_and_in_a_config(given: Any, says: str) -> None:
    with pytest.raises(CorpusError, match=says):
        sources_of(given)
    raw = {"model_name_or_path": "m", "output_dir": "o", "coreset": {"method": "random", "budget": 2}}
    if given != [3]:
        with pytest.raises(ConfigError, match=f"train_data: .*{says}"):
            check_config({**raw, "train_data": given})


@pytest.mark.parametrize(
    ("split", "says"),
    [
        ("train[:x]", "write it as train"),
        ("train[:2]+test", "several slices as several entries"),
        ("train[20:]", "has 10 rows, and none in split"),
    ],
)
def test_a_slice_that_takes_nothing_is_refused(folder: Path, split: str, says: str) -> None:
    with pytest.raises(CorpusError, match=says):
        read({"path": str(folder / "a"), "split": split})


def test_a_config_takes_entries_and_names_what_is_not_there(folder: Path) -> None:
    raw = {"model_name_or_path": "m", "output_dir": "o", "coreset": {"method": "random", "budget": 2}}
    entry = {"path": str(folder / "a"), "split": "train[:50%]"}
    config = check_config({**raw, "train_data": [entry, str(folder / "*.csv")], "eval_data": entry})
    refuse_absent(config)
    for missing in ({"path": "./gone"}, str(folder / "*.gz"), "gone.jsonl.gz"):
        with pytest.raises(ConfigError, match=r"train_data is .*, and there is no such file or folder"):
            refuse_absent(check_config({**raw, "train_data": [entry, missing]}))
    with pytest.raises(ConfigError, match="datasets → train_data"):
        check_config({**raw, "datasets": [entry]})


def test_content_of_entries_is_what_a_run_stands_on(folder: Path) -> None:
    given = {"train_data": [{"path": str(folder), "name": "b"}, str(folder / "*.csv")]}
    before = list(contents(given))
    assert [(setting, Path(value).name) for setting, value, _ in before] == [
        ("train_data", "b"),
        ("train_data", "c.csv"),
    ]
    write(folder / "c.csv", texts("d", 2))
    assert [old[2] == new[2] for old, new in zip(before, contents(given), strict=True)] == [True, False]


def packed(path: Path, data: bytes) -> Path:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(data[:9]) + gzip.compress(data[9:]))  # as `cat` joins such files
    elif path.suffix == ".bz2":
        path.write_bytes(bz2.compress(data))
    else:
        with pa.output_stream(str(path), compression="zstd") as file:
            file.write(data)
    return path


@pytest.mark.parametrize(
    "name", ["p.jsonl.gz", "p.ndjson.zst", "p.json.bz2", "p.csv.gz", "p.tsv.zst", "p.tsv"]
)
def test_packed_text_gives_the_rows_of_the_text(tmp_path: Path, name: str) -> None:
    rows = [{"id": "1", "text": "say “hé”, \n\tthen"}, {"id": "2", "text": 'a "quote"'}]
    inner = {"ndjson": "jsonl", "tsv": "csv"}.get(name.split(".")[1], name.split(".")[1])
    plain = write(tmp_path / f"p.{inner}", rows).read_text(encoding="utf-8")
    if ".tsv" in name:
        plain = plain.replace('1,"', '1\t"').replace('2,"', '2\t"').replace("id,text", "id\ttext")
    path = tmp_path / "packed" / name
    path.parent.mkdir()
    if name.endswith("tsv"):
        path.write_text(plain, encoding="utf-8")
    else:
        packed(path, plain.encode())
    assert [row.record for row in read_rows(path)] == rows
    assert [row.place.split()[0] for row in read_rows(path.parent)] == [name, name]


@pytest.mark.parametrize("name", ["p.jsonl.gz", "p.csv.zst"])
def test_a_packed_file_that_is_cut_is_named(tmp_path: Path, name: str) -> None:
    path = packed(tmp_path / name, b"text\n" + json.dumps(texts("a", 400)).encode())
    path.write_bytes(path.read_bytes()[:-6])
    with pytest.raises(CorpusError, match=rf"{name} cannot be unpacked \(.*\); write it anew"):
        list(read_rows(path))

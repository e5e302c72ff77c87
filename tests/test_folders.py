"""Which files of a folder are read: the train split by the hub's rules; what is left is named, never passed
over."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
from datasets.data_files import DataFilesList, get_data_patterns
from test_records import ROWS, write

from coretune.data.finding import read_rows
from coretune.data.folders import files_of, split_of
from coretune.data.raw import CorpusError

LINE = '{"text": "a"}\n'


def folder_of(tmp_path: Path, *names: str) -> Path:
    for name in names:
        (tmp_path / name).write_text(LINE, encoding="utf-8")
    return tmp_path


def read(folder: Path) -> list[str]:
    return [file.name for file in files_of(folder).read]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (("train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-00000-of-00001.parquet"), 2),
        (("train.jsonl", "validation.jsonl"), 1),
        (("my_training.csv", "my_dev.csv", "my_eval.csv"), 1),
        (("a.jsonl", "b.jsonl"), 2),
        (("contest.jsonl", "latest.jsonl", "trainer.jsonl"), 3),
        (("test-0.jsonl", "test-1.jsonl"), 2),
        (("train.jsonl", "notes.jsonl"), 1),
    ],
)
def test_splits_are_named_as_on_the_hub(tmp_path: Path, names: tuple[str, ...], chosen: int) -> None:
    folder = folder_of(tmp_path, *names)
    patterns = get_data_patterns(str(folder))
    split = "train" if "train" in patterns else next(iter(patterns))
    theirs = {Path(file).name for file in DataFilesList.from_patterns(patterns[split], str(folder))}
    assert set(read(folder)) == theirs
    assert len(theirs) == chosen


def test_files_of_other_splits_are_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "train.jsonl", "test.jsonl", "readme.txt")
    (folder / "more").mkdir()
    assert files_of(folder).note == f"{folder}: not read: more/, readme.txt, test.jsonl"
    assert files_of(folder / "train.jsonl").note is None
    assert [row.place for row in read_rows(folder)] == ["train.jsonl line 1"]


@pytest.mark.parametrize("names", [("pool.jsonl", "eval.jsonl"), ("test.jsonl", "validation.jsonl")])
def test_a_folder_of_several_splits_without_train_is_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(CorpusError, match=r"several splits and none of train: .*name the file that is meant"):
        read(folder_of(tmp_path, *names))


def test_words_that_only_begin_like_a_split_tell_none() -> None:
    assert [split_of(name) for name in ("trainer.jsonl", "attest.csv", "devices.json", "x-val.json")] == [
        None,
        None,
        None,
        "validation",
    ]


@pytest.mark.parametrize("names", [("TRAIN.jsonl", "TEST.jsonl"), ("Pool-Train.csv", "Pool-Dev.csv")])
def test_capitals_tell_splits_too(tmp_path: Path, names: tuple[str, ...]) -> None:
    assert read(folder_of(tmp_path, *names)) == [names[0]]


def test_of_a_dict_of_saved_splits_the_one_asked_for_is_read(tmp_path: Path) -> None:
    splits = {name: datasets.Dataset.from_list([{"text": name}]) for name in ("train", "test", "extra")}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "all")
    for split in splits:
        (row,) = read_rows({"path": str(tmp_path / "all"), "split": split})
        assert row.record == {"text": split}
    assert files_of(tmp_path / "all").note == f"{tmp_path / 'all'}: not read: test/, extra/"
    with pytest.raises(
        CorpusError, match=r"DatasetDict of train, test, extra, without 'dev'; .* split: train"
    ):
        files_of(tmp_path / "all", "dev")


def test_a_clone_of_a_hub_data_set_is_read_as_the_hub_reads_it(tmp_path: Path) -> None:
    """Its files are in `data`, where all before the numbers is the split."""
    (tmp_path / "data").mkdir()
    (tmp_path / "README.md").write_text("about")
    names = [f"{split}-00000-of-00001.jsonl" for split in ("train_sft", "train_gen", "test_sft")]
    folder_of(tmp_path / "data", *names)
    found = files_of(tmp_path, "train_sft")
    assert [file.name for file in found.read] == names[:1]
    assert found.note == (
        f"{tmp_path}: not read: README.md; {tmp_path / 'data'}: not read: {names[2]}, {names[1]}"
    )
    with pytest.raises(CorpusError, match=r"several splits and none of train: .*\(train_sft\).* set split"):
        files_of(tmp_path)
    theirs = get_data_patterns(str(tmp_path))
    assert {str(split) for split in theirs} == {"train_sft", "train_gen", "test_sft"}


def test_a_split_that_the_files_are_not_of_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a.jsonl")
    with pytest.raises(CorpusError, match=r"holds files of none of test: a.jsonl \(no split\)"):
        files_of(folder, "test")
    with pytest.raises(CorpusError, match=r"a.jsonl is one file, and not of a split 'test'"):
        files_of(folder / "a.jsonl", "test")
    folder_of(tmp_path, "x-test.jsonl")
    assert [file.name for file in files_of(folder, "test").read] == ["x-test.jsonl"]
    assert len(files_of(folder / "x-test.jsonl", "test").read) == 1


def test_what_save_to_disk_says_is_read_and_no_cache_beside_it(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    write(tmp_path / "saved" / "cache-0123.arrow", ROWS)
    rows = list(read_rows(tmp_path / "saved"))
    assert [row.record for row in rows] == ROWS
    assert files_of(tmp_path / "saved").note == f"{tmp_path / 'saved'}: not read: cache-0123.arrow"
    (tmp_path / "saved" / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(
        CorpusError, match=r"state.json in .* names data-00000-of-00001.arrow, which is not there"
    ):
        read(tmp_path / "saved")


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json", "dataset_dict.json"])
def test_rows_in_a_file_with_the_name_of_one_about_the_data_are_read(tmp_path: Path, name: str) -> None:
    folder = folder_of(tmp_path, "a.jsonl")
    (folder / name).write_text(json.dumps([{"text": "in it"}]), encoding="utf-8")
    assert read(folder) == sorted(["a.jsonl", name])


@pytest.mark.parametrize("name", ["b.jsonl", "b.parquet"])
def test_a_broken_link_is_named(tmp_path: Path, name: str) -> None:
    folder = folder_of(tmp_path, "a.jsonl")
    (folder / name).symlink_to(tmp_path / "gone")
    with pytest.raises(CorpusError, match=f"{name} in .* is a link to nothing; restore its target"):
        read(folder)
    with pytest.raises(CorpusError, match="is a link to nothing"):
        read(folder / name)


def test_a_folder_with_the_name_of_a_file_is_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a.jsonl")
    (folder / "parts.parquet").mkdir()
    with pytest.raises(CorpusError, match=r"parts.parquet in .* is a folder with the name of a file"):
        read(folder)

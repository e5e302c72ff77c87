"""Which files of a folder are read: those of one split by the hub's rules, and what is left is named.

pool.jsonl                          the file
train-0.parquet test-0.parquet      a name's words tell its split (train, test, validation, …)
data/train_sft-00000-of-00003.…     in a folder `data` all before the numbers is the split
state.json data-0.arrow             what `datasets.Dataset.save_to_disk` says is the data
dataset_dict.json train/ test/      a DatasetDict: a folder for each split
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets.data_files import NON_WORDS_CHARS, SPLIT_KEYWORDS

from coretune.data.raw import COMPRESSIONS, EXTENSIONS, CorpusError, is_data
from coretune.data.sources import TRAIN

COMPRESSED = re.compile(rf"({'|'.join(map(re.escape, EXTENSIONS))})\.(gz|zst|bz2|xz|zip|7z|lz4)")
SHARD = re.compile(r"(.+)-\d{5}-of-\d{5,}\b.*")  # of a split with a name of its own
DATA = "data"  # the folder of a hub data set's repository that holds its files
SHOWN = 8  # names in a message


@dataclass(frozen=True)
class Files:
    """The files that are read, by name; none for a hub id. `note` names those of their folder that are
    not."""

    read: list[Path] = field(default_factory=list)
    note: str | None = None


def files_of(source: str | Path, split: str = TRAIN) -> Files:
    """CorpusError for a folder without data, and where it is unclear which of its files is meant."""
    path = Path(source).expanduser()
    if path.is_dir():
        return _files_of(path, split)
    if path.is_symlink() and not path.exists():
        raise CorpusError(f"{path} is a link to nothing; restore its target, or name another file")
    if path.is_file() and split not in (TRAIN, split_of(path.name)):
        raise CorpusError(
            f"{path} is one file, and not of a split {split!r}; leave split out, or name another"
        )
    return Files([path]) if path.is_file() else Files()


def _files_of(folder: Path, split: str) -> Files:
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    if isinstance(splits := _object(folder / "dataset_dict.json").get("splits"), list):
        return _of_dict(folder, [str(name) for name in splits], split)
    _refuse_unreadable(folder, entries)
    about, saved = _saved(folder, entries)
    data = [e for e in entries if e.is_file() and is_data(e.name) and e.name not in about]
    if not data and saved is None and (folder / DATA).is_dir():
        inner = _files_of(folder / DATA, split)
        return Files(inner.read, _note(folder, [e.name for e in entries if e.name != DATA], inner.note))
    files = _of_split(folder, data, split) if saved is None else saved
    if not files:
        found = ", ".join(entry.name for entry in entries[:5]) or "nothing"
        raise CorpusError(
            f"folder {folder} holds no data file (found {found}); put {', '.join(EXTENSIONS)} files"
            " directly into it, or name the folder inside it that has them"
        )
    left = [f"{e.name}/" if e.is_dir() else e.name for e in entries if e not in files and e.name not in about]
    return Files(files, _note(folder, left))


def _of_dict(folder: Path, splits: list[str], split: str) -> Files:
    if split not in splits:
        raise CorpusError(
            f"{folder} is a DatasetDict of {listed(splits)}, without {split!r}; name one with "
            f"split: {splits[0]}"
        )
    inner = _files_of(folder / split, TRAIN)
    return Files(inner.read, _note(folder, [f"{name}/" for name in splits if name != split], inner.note))


def _note(folder: Path, left: Sequence[str], more: str | None = None) -> str | None:
    lines = [f"{folder}: not read: {listed(left)}"] if left else []
    return "; ".join([*lines, *([more] if more else [])]) or None


def _refuse_unreadable(folder: Path, entries: Sequence[Path]) -> None:
    """CorpusError for what would be passed over although it may hold rows."""
    for entry in entries:
        if COMPRESSED.fullmatch("".join(entry.suffixes[-2:]).lower()) and not is_data(entry.name):
            raise CorpusError(
                f"{entry.name} in {folder} is compressed in a way that is not read; unpack it, compress "
                f"text as {' or '.join(COMPRESSIONS)}, or move it away"
            )
        if not is_data(entry.name):
            continue
        if entry.is_symlink() and not entry.exists():
            raise CorpusError(
                f"{entry.name} in {folder} is a link to nothing; restore its target or remove it"
            )
        if entry.is_dir():
            raise CorpusError(
                f"{entry.name} in {folder} is a folder with the name of a file; name that folder itself, or "
                "move it "
                "away"
            )


def _saved(folder: Path, entries: Sequence[Path]) -> tuple[set[str], list[Path] | None]:
    """Names of what `datasets` wrote about the data, and the files that it says are the data; None: it says
    nothing."""
    about = set()
    if "features" in _object(folder / "dataset_info.json"):
        about.add("dataset_info.json")
    named = _object(folder / "state.json").get("_data_files")
    if not isinstance(named, list):
        return about, None
    files = [
        folder / str(entry["filename"]) for entry in named if isinstance(entry, dict) and "filename" in entry
    ]
    for file in files:
        if file not in entries:
            raise CorpusError(f"state.json in {folder} names {file.name}, which is not there; restore it")
    return about | {"state.json"}, files


def _object(path: Path) -> dict[str, Any]:
    """The JSON object of a small file; {} when it is none."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _of_split(folder: Path, data: list[Path], split: str) -> list[Path]:
    """The files of the split; of train all, where no name holds a split or all hold the same."""
    splits: dict[str | None, list[Path]] = {}
    for file in data:
        splits.setdefault(split_of(file.name, folder.name == DATA), []).append(file)
    if split in splits:
        return splits[split]
    if len(splits) < 2 and split == TRAIN:
        return data
    splits_found = ", ".join(f"{files[0].name} ({name or 'no split'})" for name, files in splits.items())
    several = "several splits and " if len(splits) > 1 else ""
    raise CorpusError(
        f"folder {folder} holds files of {several}none of {split}: {splits_found}; name the file that is "
        "meant, set split, or put its files into a folder of their own"
    )


def split_of(name: str, shards: bool = False) -> str | None:
    """The split in a file's name, as `datasets` reads it, capitals too; None: none.

    shards  all before `-00000-of-00003` is the split
    """
    if shards and (shard := SHARD.fullmatch(name)):
        return shard[1]
    for split, words in SPLIT_KEYWORDS.items():
        named = rf"(^|[{NON_WORDS_CHARS}])({'|'.join(words)})[{NON_WORDS_CHARS}]"
        if re.search(named, name, re.IGNORECASE):
            return str(split)
    return None


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = [f"and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return ", ".join([*names[:SHOWN], *more])

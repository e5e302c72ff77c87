"""Which files of a folder are read: those of its `train` split by the hub's rules, and what is left is named.

pool.jsonl                          the file
train-0.parquet test-0.parquet      the first: a name's words tell its split (train, test, validation, …)
state.json data-0.arrow             what `datasets.Dataset.save_to_disk` says is the data
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets.data_files import NON_WORDS_CHARS, SPLIT_KEYWORDS

from coretune.data.raw import EXTENSIONS, CorpusError

COMPRESSED = re.compile(r"\.(json|jsonl|csv|parquet|arrow)\.(gz|zst|bz2|xz|zip)")
TRAIN = "train"
SHOWN = 8  # names in a message


@dataclass(frozen=True)
class Files:
    """The files that are read, by name; none for a hub id. `note` names those of their folder that are
    not."""

    read: list[Path] = field(default_factory=list)
    note: str | None = None


def files_of(source: str | Path) -> Files:
    """CorpusError for a folder without data, and where it cannot be told which of its files is meant."""
    path = Path(source).expanduser()
    if path.is_dir():
        return _files_of(path)
    if path.is_symlink() and not path.exists():
        raise CorpusError(f"{path} is a link to nothing; restore its target, or name another file")
    return Files([path]) if path.is_file() else Files()


def _files_of(folder: Path) -> Files:
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    _refuse_unreadable(folder, entries)
    if isinstance(splits := _object(folder / "dataset_dict.json").get("splits"), list):
        raise CorpusError(
            f"{folder} is a DatasetDict of {_listed([str(split) for split in splits])}; name the folder of "
            "the one that is meant"
        )
    about, saved = _saved(folder, entries)
    data = [e for e in entries if e.is_file() and e.suffix.lower() in EXTENSIONS and e.name not in about]
    files = _of_split(folder, data) if saved is None else saved
    if not files:
        found = ", ".join(entry.name for entry in entries[:5]) or "nothing"
        raise CorpusError(
            f"folder {folder} holds no data file (found {found}); put {', '.join(EXTENSIONS)} files"
            " directly into it, or name the folder inside it that has them"
        )
    left = [f"{e.name}/" if e.is_dir() else e.name for e in entries if e not in files and e.name not in about]
    return Files(files, f"{folder}: not read: {_listed(left)}" if left else None)


def _refuse_unreadable(folder: Path, entries: Sequence[Path]) -> None:
    """CorpusError for what would be passed over although it may hold rows."""
    for entry in entries:
        if COMPRESSED.fullmatch("".join(entry.suffixes[-2:]).lower()):
            raise CorpusError(f"{entry.name} in {folder} is compressed; unpack it or move it away")
        if entry.suffix.lower() not in EXTENSIONS:
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


def _of_split(folder: Path, data: list[Path]) -> list[Path]:
    """The files of the train split; all, where no name tells a split or all tell the same."""
    splits: dict[str | None, list[Path]] = {}
    for file in data:
        splits.setdefault(split_of(file.name), []).append(file)
    if len(splits) < 2:
        return data
    if TRAIN in splits:
        return splits[TRAIN]
    told = ", ".join(f"{files[0].name} ({split or 'no split'})" for split, files in splits.items())
    raise CorpusError(
        f"folder {folder} holds files of several splits and none of train: {told}; name the file that is "
        "meant, or "
        "put its files into a folder of their own"
    )


def split_of(name: str) -> str | None:
    """The split that a file's name tells, as `datasets` reads it, capitals too; None: none."""
    for split, words in SPLIT_KEYWORDS.items():
        told = rf"(^|[{NON_WORDS_CHARS}])({'|'.join(words)})[{NON_WORDS_CHARS}]"
        if re.search(told, name, re.IGNORECASE):
            return str(split)
    return None


def _listed(names: Sequence[str]) -> str:
    more = [f"and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return ", ".join([*names[:SHOWN], *more])

"""What `train_data` and `eval_data` may say: a file, a folder, a pattern, a hub id, or several of them.

    train_data: pool.jsonl
    train_data: [a.jsonl, data/*.parquet, {path: openai/gsm8k, name: main, split: "train[:10%]"}]

The keys of an entry are those of TRL's `datasets`. Nothing is read here, and no library is needed.
"""

from __future__ import annotations

import glob
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from coretune.data.raw import CorpusError, is_data
from coretune.other_tools import answer_entry

BUILDERS = ("json", "csv", "parquet", "arrow")  # `path` of load_dataset where data_files names the files
TRAIN = "train"


@dataclass(frozen=True)
class Source:
    """One entry.

    path        a file, a folder, a pattern (data/*.jsonl) or a hub id
    name        of a hub data set's config; of a folder on this machine: the folder in it
    split       with a slice, if wanted: train[:10%], test[100:200]
    data_dir, data_files  as `datasets.load_dataset` has them
    columns     {our name: this data's column}; left out: the `columns` of the config
    fraction    TRL's: this data's share of the mixture; all entries have one, or none
    """

    path: str
    name: str | None = None
    split: str = TRAIN
    data_dir: str | None = None
    data_files: tuple[str, ...] = ()
    columns: Mapping[str, str] | None = None
    fraction: float | None = None

    @property
    def label(self) -> str:
        """How a hub id's rows are named."""
        name = f"{self.path}/{self.name}" if self.name else self.path
        return name if self.split == TRAIN else f"{name}:{self.split}"


@dataclass(frozen=True)
class Sources:
    """What is read, in this order; `given` is how a message names it."""

    every: tuple[Source, ...]
    given: str = field(compare=False)


def sources_of(given: Any) -> Sources:
    """Of a path, an entry, or a list of both. Raises CorpusError."""
    if isinstance(given, Sources):
        return given
    entries = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    every = tuple(source for entry in entries for source in _sources_of(entry))
    if not every:
        raise CorpusError("the data is an empty list; name a file, a folder or a hub id")
    _refuse_shares(every)
    for number, source in enumerate(every):
        if source in every[:number]:
            raise CorpusError(
                f"{source.path} is named twice; its rows would be trained on twice: name it once"
            )
    return Sources(every, described(given))


def described(given: Any) -> str:
    """The data in few words, for a message."""
    entries = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    names = [str(entry.get("path")) if isinstance(entry, Mapping) else str(entry) for entry in entries]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def absent(given: Any) -> str | None:
    """The first path of these that is plainly one of this machine, and not there."""
    for source in sources_of(given).every:
        path = Path(source.path).expanduser()
        if (is_path(source.path) or is_data(source.path)) and not path.exists() and not matches(source.path):
            return source.path
    return None


def is_path(name: str) -> bool:
    """Whether a name can only be a path, and no hub id."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def matches(pattern: str) -> list[str]:
    """The files that a pattern names, sorted; none where it is no pattern."""
    if not glob.has_magic(pattern):
        return []
    found = glob.glob(str(Path(pattern).expanduser()), recursive=True)
    return sorted(name for name in found if Path(name).is_file())


def _sources_of(entry: Any) -> list[Source]:
    if isinstance(entry, (str, Path)):
        return [Source(str(entry))]
    if not isinstance(entry, Mapping):
        raise CorpusError(f"{entry!r:.80} is no data: give a path, or {{path: ..., split: ...}}")
    known = [each.name for each in fields(Source)]
    if said := answer_entry(str(key) for key in entry if key not in known):
        raise CorpusError(f"{entry!r:.80} has keys of another tool: {said} (docs/coming-from.md)")
    for key in entry:
        if key not in known:
            near = get_close_matches(str(key), known, 1)
            hint = f", did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
            raise CorpusError(f"{entry!r:.80} has the unknown key {key!r}{hint}")
    given = {key: value for key, value in entry.items() if value is not None}
    _refuse_kinds(given)
    files = given.pop("data_files", ())
    source = Source(**given, data_files=tuple([files] if isinstance(files, str) else files))
    if source.path in BUILDERS and source.data_files:
        for key in ("name", "data_dir"):
            if key in given:
                raise CorpusError(
                    f"{source.path} with data_files has no use for {key}: leave it out, and write the files "
                    "with their folders"
                )
        more = {"split": source.split, "columns": source.columns, "fraction": source.fraction}
        if source.fraction is not None and len(source.data_files) > 1:
            raise CorpusError(f"{entry!r:.80} has a fraction of several files; give each file an entry")
        return [Source(path, **more) for path in source.data_files]  # type: ignore[arg-type]
    return [source]


def _refuse_kinds(given: Mapping[str, Any]) -> None:
    """CorpusError for a value of another kind than its key takes."""
    if "path" not in given:
        raise CorpusError(f"{dict(given)!r:.80} has no path: give the file, folder or hub id")
    for key in ("path", "name", "split", "data_dir"):
        if key in given and not (isinstance(given[key], str) and given[key].strip()):
            raise CorpusError(f"{key} is {given[key]!r:.80}; give text")
    files = given.get("data_files", "")
    several = isinstance(files, Sequence) and all(isinstance(file, str) and file.strip() for file in files)
    if not (isinstance(files, str) or several):
        raise CorpusError("data_files takes a file or a list of files; choose a split with split")
    columns = given.get("columns", {})
    if not isinstance(columns, Mapping) or not all(isinstance(name, str) for name in columns.values()):
        raise CorpusError(
            f"columns is {columns!r:.80}; give {{prompt: its column, ...}}. Columns that are not used need "
            "no list: they are left alone"
        )
    share = given.get("fraction")
    number = isinstance(share, (int, float)) and not isinstance(share, bool)
    if share is not None and not (number and 0 < share < math.inf):
        raise CorpusError(f"fraction is {share!r:.80}; give a number above 0")


def _refuse_shares(every: Sequence[Source]) -> None:
    """CorpusError for fractions that say no mixture."""
    with_share = [source for source in every if source.fraction is not None]
    if with_share and len(with_share) < len(every):
        other = next(source for source in every if source.fraction is None)
        raise CorpusError(f"{other.path} has no fraction and {with_share[0].path} has; give all one, or none")
    if with_share and len(every) == 1:
        raise CorpusError(
            f"fraction is {every[0].path}'s share of a mixture, and it is alone; for a part of it write "
            'split: "train[:10%]"'
        )

"""The files behind the entries of `train_data`, under names that tell them apart, and the rows taken of them.

Sources ─► found ─► Found(files, labels) ─► read_found ─► rows of the splits, slices and shares asked for
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from coretune.data.folders import files_of, listed
from coretune.data.raw import CorpusError, Row, is_data
from coretune.data.records import HUB_ID, hub_rows, read_file
from coretune.data.sources import Source, Sources, is_path, matches, sources_of

Tell = Callable[[str], object]


@dataclass(frozen=True)
class Found:
    """An entry with its files on this machine, none for a hub id.

    labels  one for each file: its name, with as many of its folders as tell it from the others
    note    names the files of its folder that are not read
    """

    source: Source
    files: tuple[Path, ...]
    labels: tuple[str, ...]
    note: str | None = None

    @property
    def slice(self) -> str | None:
        """`[:10%]` of train[:10%]; None where all is read, or the hub's library slices."""
        return _slice(self.source) if self.files else None

    def rows(self) -> Iterator[Row]:
        """All rows, before any slice."""
        if not self.files:
            yield from hub_rows(self.source)
            return
        for file, label in zip(self.files, self.labels, strict=True):
            for row in read_file(file):
                yield row if row.file == label else replace(row, file=label)


def found(given: Any) -> list[Found]:
    """Of what `train_data` says. Raises CorpusError for what is not there, or is meant twice."""
    sources = sources_of(given)
    files = [_files(source) for source in sources.every]
    _refuse_twice(sources, [paths for paths, _ in files])
    labels = iter(_labels([path for paths, _ in files for path in paths]))
    every = []
    for source, (paths, note) in zip(sources.every, files, strict=True):
        names = tuple(itertools.islice(labels, len(paths))) or (source.label,)
        every.append(Found(source, tuple(paths), names, note))
    return every


def read_found(every: Sequence[Found], tell: Tell = lambda line: None) -> Iterator[Row]:
    """The rows asked for; `tell` gets a line for each entry of which not all rows are taken."""
    for each, (begin, end, total) in zip(every, _takes(every), strict=True):
        if total is None:
            yield from each.rows()
            continue
        tell(f"{listed(each.labels)}: {end - begin:,} of {total:,} rows taken ({_asked(each.source)})")
        yield from itertools.islice(each.rows(), begin, end)


def read_rows(given: Any) -> Iterator[Row]:
    """All rows of what `train_data` may say. Raises CorpusError for what concerns a file as a whole."""
    return read_found(found(given))


def _asked(source: Source) -> str:
    share = "" if source.fraction is None else f"fraction {source.fraction:g}"
    return ", ".join(part for part in (f"split {source.split}" if _slice(source) else "", share) if part)


def _takes(every: Sequence[Found]) -> list[tuple[int, int, int | None]]:
    """(first, end, rows there are) of each entry; rows None where all are taken uncounted.

    Fractions are TRL's: shares that are made to sum to one of the largest mixture that takes no row twice,
    each the first rows of its data.
    """
    shared = any(each.source.fraction is not None for each in every)
    takes: list[tuple[int, int, int | None]] = []
    for each in every:
        if each.slice is None and not shared:
            takes.append((0, 0, None))
            continue
        total = sum(1 for _ in each.rows())
        begin, end = (0, total) if each.slice is None else _span(each.source, total)
        if begin >= end:
            raise CorpusError(f"{each.source.path} has {total} rows, and none in split {each.source.split}")
        takes.append((begin, end, total))
    if not shared:
        return takes
    fractions = [each.source.fraction or 0.0 for each in every]
    shares = [fraction / sum(fractions) for fraction in fractions]
    size = min((end - begin) / share for (begin, end, _), share in zip(takes, shares, strict=True))
    rows = [
        min(end - begin, round(share * size)) for (begin, end, _), share in zip(takes, shares, strict=True)
    ]
    for each, count in zip(every, rows, strict=True):
        if not count:
            raise CorpusError(
                f"the fraction of {each.source.path} is less than one row; raise it or leave it out"
            )
    return [(begin, begin + count, total) for (begin, _, total), count in zip(takes, rows, strict=True)]


def _span(source: Source, total: int) -> tuple[int, int]:
    """Of a slice, counted as `datasets` counts it."""
    import datasets

    split = _split(source)
    try:
        (part,) = datasets.ReadInstruction.from_spec(source.split).to_absolute({split: total})
    except (ValueError, AssertionError) as error:
        raise CorpusError(
            f"split of {source.path} is {source.split!r} ({error}); write it as train[:10%] or train[9:99], "
            "and several slices as several entries"
        ) from None
    return part.from_, part.to


def _split(source: Source) -> str:
    return source.split.partition("[")[0].strip()


def _slice(source: Source) -> str | None:
    _, bracket, rest = source.split.partition("[")
    return bracket + rest or None


def _files(source: Source) -> tuple[list[Path], str | None]:
    """The files of an entry and the line about others; none for a hub id."""
    path = Path(source.path).expanduser()
    if named := matches(source.path) if not path.exists() else []:
        _refuse_unused_keys(source, "a pattern")
        return [file for name in named for file in files_of(name, _split(source)).read], None
    if path.is_dir():
        return _in_folder(source, path)
    read = files_of(path, _split(source))
    if read.read:
        _refuse_unused_keys(source, "a file")
        return read.read, read.note
    if is_data(source.path) or is_path(source.path) or not HUB_ID.fullmatch(source.path):
        raise CorpusError(
            f"no such file or folder: {source.path}; check train_data and the working directory"
        )
    return [], None


def _in_folder(source: Source, path: Path) -> tuple[list[Path], str | None]:
    for key, inner in (("name", source.name), ("data_dir", source.data_dir)):
        if inner is not None:
            path /= inner
            if not path.is_dir():
                raise CorpusError(f"{key} is {inner!r}, and {path.parent} has no such folder; correct it")
    if not source.data_files:
        read = files_of(path, _split(source))
        return read.read, read.note
    files = []
    for name in source.data_files:
        inside = [str(path / name)] if (path / name).is_file() else matches(str(path / name))
        if not inside:
            raise CorpusError(f"data_files has {name!r}, and {path} has no such file; correct it")
        files += [file for one in inside for file in files_of(one, _split(source)).read]
    return files, None


def _refuse_unused_keys(source: Source, what: str) -> None:
    """CorpusError for keys that a file has no use for."""
    for key in ("name", "data_dir", "data_files"):
        if getattr(source, key):
            raise CorpusError(f"{source.path} is {what}, which has no {key}; leave it out")


def _refuse_twice(sources: Sources, files: Sequence[Sequence[Path]]) -> None:
    """CorpusError for a file that two entries take, other than two slices of it."""
    before: dict[Path, Source] = {}
    for source, paths in zip(sources.every, files, strict=True):
        for path in {path.resolve() for path in paths}:
            first = before.setdefault(path, source)
            if first is not source and (_slice(source) is None or _slice(first) is None):
                raise CorpusError(f"{path.name} is meant twice in the data ({sources.given}); name it once")


def _labels(paths: Sequence[Path]) -> list[str]:
    """Names that differ wherever the files do."""
    places = list({path.resolve(): path.resolve() for path in paths})
    depth = dict.fromkeys(places, 1)
    while True:
        names = {path: "/".join(path.parts[-depth[path] :]) for path in places}
        count = Counter(names.values())
        alike = [path for path in places if count[names[path]] > 1 and depth[path] < len(path.parts)]
        if not alike:
            return [path.name if depth[path.resolve()] == 1 else names[path.resolve()] for path in paths]
        for path in alike:
            depth[path] += 1

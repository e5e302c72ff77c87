"""What a config reads, by content: files, folders and hub ids that it names, and the packages that run it.

A path says nothing: what lies there is changed in place. So every value of a config that names a file or a
folder is known by its bytes, whichever setting it is of; a hub id for the revision it has now.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from coretune.installed import versions_of
from coretune.storing.fingerprint import checksum, fingerprint_of_file

#: Whose versions decide what a run comes to, where they are installed.
PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "tokenizers",
    "pyarrow",
    "jinja2",
    "numpy",
    "scipy",
    "numba",
    "faiss-cpu",
    "lm-eval",
    "bitsandbytes",
    "flash-attn",
    "liger-kernel",
    "kernels",
)
#: Settings that name where something is written or kept: what lies there is made by runs.
WRITTEN = ("output_dir", "signals_dir", "corpus_dir", "logging_dir", "resume_from_checkpoint", "provenance")
MODEL, DATA = ("model_name_or_path",), ("train_data", "eval_data", "target_data", "file")
_known: dict[tuple[Path, bool], tuple[tuple[tuple[int, ...], ...], str]] = {}


def inputs(config: Mapping[str, Any]) -> dict[str, str]:
    """`setting value` -> hex of the content, or the revision, of all that the config names; versions."""
    found = {f"{setting} {value}": content for setting, value, content in contents(config)}
    return found | versions_of(PACKAGES)


def contents(value: Any, setting: str = "") -> Iterator[tuple[str, str, str]]:
    """(setting, what it says, hex of the content or the revision) of each file, folder and hub id."""
    if isinstance(value, Mapping) and setting in DATA and "path" in value:  # an entry of several
        inner = [part for key in ("name", "data_dir") if (part := value.get(key)) is not None]
        path = Path(str(value["path"])).expanduser().joinpath(*map(str, inner))
        yield from contents(str(path) if inner and path.is_dir() else value["path"], setting)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in WRITTEN:
                if setting in DATA:  # target_data: {file: share}
                    yield from contents(key, setting)
                yield from contents(inner, setting if setting in DATA else str(key))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from contents(inner, setting)
    elif isinstance(value, str) and value and value.isprintable() and len(value) < 4096:
        path = Path(value).expanduser()
        if path.is_file() or path.is_dir():
            yield setting, value, _content(path.resolve(), _is_deep(setting, path))
        elif setting in DATA and glob.has_magic(value):
            for name in sorted(glob.glob(str(path), recursive=True)):
                if Path(name).is_file():
                    yield setting, name, _content(Path(name).resolve(), deep=False)
        elif setting in (*MODEL, *DATA):
            yield setting, value, _revision(value, "model" if setting in MODEL else "dataset")


def _is_deep(setting: str, path: Path) -> bool:
    """Of data, whether its files are in folders of it: those of a DatasetDict, or of a hub data set."""
    if setting in DATA:
        return (path / "dataset_dict.json").is_file() or (path / "data").is_dir()
    return setting not in MODEL


def _content(path: Path, deep: bool) -> str:
    """Of a file, or of all files in a folder (deep: and below it).

    Hashed once as long as no file has been touched since: the time of a change (ctime) is the kernel's own,
    and no program sets it back.
    """
    inside = path.rglob("*") if deep else path.glob("*")
    files = sorted(one for one in inside if one.is_file()) if path.is_dir() else [path]
    stats = [one.stat() for one in files]
    touched = tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for stat in stats)
    if (path, deep) not in _known or _known[path, deep][0] != touched:
        parts = [(one.relative_to(path).as_posix(), fingerprint_of_file(one)) for one in files]
        _known[path, deep] = (touched, checksum(json.dumps(parts).encode()))
    return _known[path, deep][1]


@cache
def _revision(name: str, kind: str) -> str:
    """The commit that a hub id stands for: the hub's answer, else that of the last download, or unknown."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.file_download import repo_folder_name

    try:
        return str(HfApi().repo_info(name, repo_type=kind, timeout=10).sha)
    except Exception:  # offline, no such id, no access: the run will say which
        try:
            kept = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type=kind), "refs/main")
            return kept.read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return "unknown"

"""What an output_dir holds before a run begins or goes on in it: its own, another's, or what a kill left."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from coretune.recording.run_files import CONFIG, CORESET, LEDGER, SELECTING, SELECTION, checkpoints_of
from coretune.training.checkpoints import STOCK_LAST


def holds_run(output_dir: str | os.PathLike[str], finished: bool = False) -> bool:
    """Whether a run has selected or saved here; finished: something that would be lost with it."""
    folder = Path(output_dir)
    # The ledger is written with every selection, before `select` has written its coreset.
    done = (CORESET,) if (folder / SELECTING).exists() else (LEDGER, CORESET)
    files = done if finished else (SELECTION, LEDGER, CORESET)
    return any((folder / name).exists() for name in files) or bool(checkpoints_of(folder))


def refuse_foreign(output_dir: str | os.PathLike[str], asked: str | os.PathLike[str]) -> None:
    """ValueError where a checkpoint of elsewhere would go on in a folder that holds a run of its own."""
    here, path = Path(output_dir).resolve(), Path(asked)
    # A checkpoint that was moved to another disk and left a link behind is the folder's own.
    if here not in (path.resolve().parent, path.absolute().parent.resolve()) and holds_run(output_dir):
        raise ValueError(
            f"{os.fspath(output_dir)} holds a run, and {os.fspath(asked)} is a checkpoint of another folder, "
            "which would overwrite it: give an output_dir of its own, or a checkpoint that lies in output_dir"
        )


def refuse_to_begin_anew(output_dir: str | os.PathLike[str], passed_over: Sequence[tuple[Path, str]]) -> None:
    """ValueError unless a run was cut here before its first checkpoint, so that nothing is lost with it.

    A checkpoint that was once complete is named with the reason why it cannot be gone on from: its weights
    may be worth keeping.
    """
    complete = [f"{path}: {reason}" for path, reason in passed_over if not _cut_short(path)]
    if complete:
        raise ValueError(
            f"no checkpoint in {os.fspath(output_dir)} can be gone on from ({'; '.join(complete)}): restore "
            "what is missing, or give another output_dir"
        )
    refuse_nothing_to_go_on_with(output_dir)


def refuse_nothing_to_go_on_with(output_dir: str | os.PathLike[str]) -> None:
    """ValueError where no run began, as under a name that was mistyped."""
    if not ((Path(output_dir) / CONFIG).is_file() or holds_run(output_dir)):
        raise ValueError(
            f"no checkpoint in {os.fspath(output_dir)} that is whole; train without resume_from_checkpoint, "
            "from the beginning"
        )


def remove_checkpoint(folder: Path) -> None:
    """All of it; of a link, which leads to a user's copy, the link alone."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def drop_old(output_dir: str | os.PathLike[str], limit: int | None, kept: Sequence[str | None]) -> None:
    """Remove the oldest checkpoints down to `limit` of them, `kept` ones spared.

    In place of transformers' own (5.23), which takes every folder whose name begins with checkpoint- for one
    of its checkpoints, a user's backup too.
    """
    if not limit or limit <= 0:
        return
    found = checkpoints_of(output_dir)
    spared = {Path(path).resolve() for path in kept if path is not None}
    old = [path for path in sorted(found, key=_written_at) if path.resolve() not in spared]
    for path in old[: max(0, len(found) - max(limit, len(spared)))]:
        remove_checkpoint(path)


def _written_at(path: Path) -> tuple[float, int]:
    return path.stat().st_mtime, int(path.name.rpartition("-")[2])


def _cut_short(checkpoint: Path) -> bool:
    """A kill while it was written: the stock trainer's last file is not there, or not all of it."""
    try:
        json.loads((checkpoint / STOCK_LAST).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return True
    except OSError:  # it is there, and something keeps it from being read
        return False
    return False

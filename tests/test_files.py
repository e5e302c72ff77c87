"""Files that appear whole or not at all, and locks that name who holds them."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from coretune import locks
from coretune.files import PART, atomic_write, disk_full, write_json, write_text, writing
from coretune.storing.manifest import MANIFEST, StoreError
from coretune.storing.store import Store


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing reaches the disk any more."""

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        yield


def test_a_file_is_the_old_one_until_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "made" / "on the way.json"
    write_json(path, [1])
    with atomic_write(path) as file:
        file.write(b"[2")
        file.flush()
        assert path.read_text() == "[1]"
        file.write(b"]")
    assert path.read_text() == "[2]"
    with pytest.raises(ZeroDivisionError), atomic_write(path) as file:
        file.write(b"[3]" * (1 // 0))
    assert path.read_text() == "[2]"
    assert os.listdir(path.parent) == [path.name]


def test_a_full_disk_keeps_the_old_file_leaves_no_part_and_names_path_and_need(
    tmp_path: Path, full: None
) -> None:
    (tmp_path / "page.html").write_text("old")
    with pytest.raises(
        OSError, match=r"disk full: .*/page\.html needs more than 5,000 bytes, [\d,]+ are free"
    ):
        write_text(tmp_path / "page.html", "x" * 5000)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_failed_write_names_its_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=rf"Input/output error: '{tmp_path}/a'"), atomic_write(tmp_path / "a"):
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("planted", ["symlink_to", "hardlink_to"])
def test_a_link_planted_at_the_part_file_is_not_written_through(tmp_path: Path, planted: str) -> None:
    (tmp_path / "theirs").write_text("precious")
    getattr(tmp_path / "a.json.part", planted)(tmp_path / "theirs")
    write_json(tmp_path / "a.json", 1)
    assert (tmp_path / "theirs").read_text() == "precious"
    assert (tmp_path / "a.json").read_text() == "1"


def test_a_link_at_the_file_itself_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("precious")
    (tmp_path / "a.json").symlink_to(tmp_path / "theirs")
    write_json(tmp_path / "a.json", 1)
    assert (tmp_path / "theirs").read_text() == "precious"


def _link(place: Path, theirs: Path) -> None:
    place.symlink_to(theirs)


def _hard_link(place: Path, theirs: Path) -> None:
    place.hardlink_to(theirs)


def _pipe(place: Path, theirs: Path) -> None:
    os.mkfifo(place)


def _store(folder: Path, measured: bool) -> Store:
    store = Store.open(folder, {"of": "nothing"}, rows=4, signals={"loss": ((), "<f4")})
    if measured and store.missing():
        store.write(0, {"loss": np.ones(4, np.float32)})
    return store


@pytest.mark.parametrize("planted", [_link, _hard_link, _pipe])
@pytest.mark.parametrize("name", ["lock", "loss.npy", MANIFEST])
@pytest.mark.parametrize("measured", [True, False])
def test_a_store_follows_nothing_planted_in_a_shared_folder(
    tmp_path: Path, planted: Callable[[Path, Path], None], name: str, measured: bool
) -> None:
    """Neither a link to a file of ours, which it would write, nor a pipe, which it would wait for."""
    _store(tmp_path / "store", measured).close()
    theirs = tmp_path / "theirs"
    theirs.write_bytes((tmp_path / "store" / name).read_bytes())
    before = theirs.read_bytes()
    (tmp_path / "store" / name).unlink()
    planted(tmp_path / "store" / name, theirs)
    with pytest.raises(
        OSError, match=rf"{name} is a link, a pipe or a device, which nobody here made: remove"
    ):
        _store(tmp_path / "store", measured)
    assert theirs.read_bytes() == before


def test_a_folder_planted_as_a_link_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "store").symlink_to(tmp_path / "theirs")
    with pytest.raises(StoreError, match="store is a link"):
        _store(tmp_path / "store", measured=False)
    assert not any((tmp_path / "theirs").iterdir())


def test_a_part_file_planted_beside_the_manifest_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    theirs = tmp_path / "theirs"
    theirs.write_text("precious")
    (tmp_path / "store" / (MANIFEST + PART)).symlink_to(theirs)
    _store(tmp_path / "store", measured=True).close()
    assert theirs.read_text() == "precious"


def test_of_two_writers_of_one_file_the_later_wins_and_the_other_gets_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="is being written by another process"), atomic_write(tmp_path / "a"):
        write_text(tmp_path / "a", "second")
    assert (tmp_path / "a").read_text() == "second"
    assert os.listdir(tmp_path) == ["a"]


def _break_safetensors(folder: Path) -> None:
    save_file({"a": torch.zeros(2)}, folder / "no folder" / "a.safetensors")


def _break_torch(folder: Path) -> None:
    with Path("/dev/full").open("wb") as file:
        torch.save(torch.zeros(2**20), file)


def _break_json(folder: Path) -> None:
    with Path("/dev/full").open("w") as file:
        file.write("x" * 2**20)


@pytest.mark.parametrize("work", [_break_safetensors, _break_torch, _break_json])
def test_what_other_libraries_cannot_write_is_one_line_with_the_folder(tmp_path: Path, work: object) -> None:
    line = rf"^[^\n]*{re.escape(str(tmp_path))}[^\n]*: make room$"
    with pytest.raises(OSError, match=line), writing(tmp_path, 100, "make room"):
        work(tmp_path)  # type: ignore[operator]


def test_other_errors_and_lines_of_our_own_pass(tmp_path: Path) -> None:
    for error in (
        RuntimeError("CUDA error"),
        disk_full(tmp_path, "12 bytes"),
        PermissionError(13, "no", "f"),
    ):
        with pytest.raises(type(error), match=re.escape(str(error))), writing(tmp_path, 1, "make room"):
            raise error


HOLDER = "import sys, time; from pathlib import Path; from coretune import locks\n"
HOLDER += "locks.acquire(Path(sys.argv[1]), locks.EXCLUSIVE); print('held', flush=True)\n"


def holding(path: Path, then: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER + then, str(path)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    assert running.stdout.readline() == "held\n"
    return running


def test_a_lock_goes_with_its_process_and_not_with_processes_forked_from_it(tmp_path: Path) -> None:
    fork = "import os\nif os.fork() == 0:\n    print('forked', flush=True)\ntime.sleep(60)"
    running = holding(tmp_path / "lock", fork)
    assert running.stdout is not None
    assert running.stdout.readline() == "forked\n"
    with pytest.raises(locks.Held, match=rf"pid {running.pid} on {os.uname().nodename}"):
        locks.acquire(tmp_path / "lock", locks.EXCLUSIVE)
    child = int(subprocess.check_output(["pgrep", "-P", str(running.pid)], text=True))
    running.kill()
    running.wait()
    locks.release(locks.acquire(tmp_path / "lock", locks.EXCLUSIVE))
    os.kill(child, signal.SIGKILL)


def test_a_full_disk_is_named_with_the_path_where_a_library_knows_it(tmp_path: Path) -> None:
    path = tmp_path / "corpora" / "rows.arrow"
    said = rf"disk full: {path} needs more room, [\d,]+ are free: go on"
    with pytest.raises(OSError, match=said), writing(tmp_path, None, "go on"):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))


def test_a_lock_that_cannot_be_signed_is_let_go_and_named(tmp_path: Path) -> None:
    path = tmp_path / "lock"

    def refuse(*given: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwrite", refuse)
        with pytest.raises(OSError, match=str(path)):
            locks.acquire(path, locks.EXCLUSIVE)
    locks.release(locks.acquire(path, locks.EXCLUSIVE))

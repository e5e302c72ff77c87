"""`coretune cache`: stores are listed, verified, removed."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import pytest
from stored_rows import PARTS, damage, filled, measure, opened
from typer.testing import CliRunner

from coretune.reading.cache_command import app
from coretune.storing.manifest import MANIFEST, StoreError
from coretune.storing.store import LOCK


@pytest.fixture(autouse=True)
def unflushed(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy disk a flush takes long."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def command(*arguments: object, answer: str = "") -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=answer)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, " ".join(result.output.split())


def test_ls_shows_what_stores_are_of(tmp_path: Path) -> None:
    assert command("ls", tmp_path) == (0, f"no store in {tmp_path}")
    filled(tmp_path / "aaa")
    with opened(tmp_path / "deep" / "bbb", fingerprint={"weights": "other"}) as store:
        store.write(0, measure(store.rows_of(0)))
        code, text = command("ls", tmp_path)  # also while it is written
    assert code == 0
    for shown in ("aaa", "100 %", "bbb", "20 %", "23", "loss", "gradient", "weights", "abc", "other"):
        assert shown in text
    (tmp_path / "aaa" / MANIFEST).write_bytes(b"?")
    code, text = command("ls", tmp_path)
    assert (code, "damaged" in text, "bbb" in text) == (0, True, True)


def test_verify_names_damaged_blocks(tmp_path: Path) -> None:
    filled(tmp_path / "aaa")
    assert command("verify", tmp_path)[0] == 0
    damage(tmp_path / "aaa" / "loss.npy", 128 + 4 * 6)
    code, text = command("verify", tmp_path)
    assert code == 1
    assert f"{tmp_path / 'aaa'}: damaged blocks: 1" in text
    (told,) = json.loads(command("verify", tmp_path, "--json")[1])
    assert (told["store"], told["damaged"]) == (str(tmp_path / "aaa"), [1])
    (listed,) = json.loads(command("ls", tmp_path, "--json")[1])
    assert listed == {key: value for key, value in told.items() if key != "damaged"}
    (tmp_path / "aaa" / MANIFEST).write_bytes(b"?")
    assert command("verify", tmp_path / "aaa")[0] == 1
    code, text = command("verify", tmp_path / "nothing")
    assert (code, text) == (1, f"coretune: no store in {tmp_path / 'nothing'}")


def test_rm_asks_and_leaves_what_is_not_its_own(tmp_path: Path) -> None:
    filled(tmp_path / "aaa")
    filled(tmp_path / "bbb")
    (tmp_path / "bbb" / "notes.txt").write_text("mine")
    assert command("rm", tmp_path / "aaa", answer="n\n")[0] == 1
    assert (tmp_path / "aaa" / MANIFEST).exists()
    with opened(tmp_path / "aaa"):
        code, text = command("rm", tmp_path / "aaa", "--yes")
        assert (code, f"last opened by pid {os.getpid()}" in text) == (1, True)
    assert command("rm", tmp_path / "aaa", answer="y\n")[0] == 0
    assert not (tmp_path / "aaa").exists()
    code, text = command("rm", tmp_path / "bbb", "--yes")
    assert (code, "holds notes.txt" in text) == (1, True)
    assert (tmp_path / "bbb" / "loss.npy").exists()


def test_the_lock_of_a_removed_store_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Removed between opening the lock file and locking it: the new file is locked, not the lost one."""
    take, lost = fcntl.flock, []

    def removed_first(descriptor: int, how: int) -> None:
        if not lost:
            lost.append(os.fstat(descriptor).st_ino)
            (tmp_path / "store" / LOCK).rename(tmp_path / "gone")
        take(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", removed_first)
    with opened(tmp_path / "store"), pytest.raises(StoreError, match="is in use"):
        opened(tmp_path / "store")
    assert json.loads((tmp_path / "store" / MANIFEST).read_bytes().splitlines()[0])["fingerprint"] == PARTS

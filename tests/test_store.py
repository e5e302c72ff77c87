from __future__ import annotations

import errno
import inspect
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from stored_rows import BLOCK, PARTS, ROWS, SIGNALS, damage, filled, measure, opened

from coretune.storing import store as store_module
from coretune.storing.fingerprint import fingerprint_of_file, fingerprint_of_folder, store_folder
from coretune.storing.manifest import DTYPES, MANIFEST, Manifest, StoreError
from coretune.storing.store import Store, fill
from coretune.types import Array, Rows


def arrays(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.npy")}


@pytest.fixture(autouse=True)
def unflushed(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy disk a flush takes long, and only a power cut shows whether there was one."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    """The bytes of a pass that was never cut."""
    return arrays(filled(tmp_path / "uninterrupted"))


def test_rows_come_back_as_measured(tmp_path: Path) -> None:
    filled(tmp_path / "store")
    with opened(tmp_path / "store") as store:
        assert store.finished
        assert store.missing() == []
        for name, expected in measure(np.arange(ROWS)).items():
            found = store.read(name)
            assert isinstance(found, np.memmap)
            assert not found.flags.writeable
            np.testing.assert_array_equal(found, expected, strict=True)  # NaN rows too
            np.testing.assert_array_equal(np.load(tmp_path / "store" / f"{name}.npy"), expected, strict=True)


@given(data=st.data())
@settings(max_examples=25)
def test_any_shape_dtype_and_block(data: st.DataObject) -> None:
    rows, block = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 14))
    dtypes = st.sampled_from(DTYPES) | st.sampled_from([">f4", ">i2"])
    one = st.tuples(hnp.array_shapes(min_dims=0, max_dims=3, max_side=3), dtypes.map(np.dtype))
    signals = data.draw(st.dictionaries(st.sampled_from(["a", "b_c", "d2"]), one, min_size=1))
    values = {n: data.draw(hnp.arrays(dtype, (rows, *shape))) for n, (shape, dtype) in signals.items()}
    with tempfile.TemporaryDirectory() as folder:
        with Store.open(folder, PARTS, rows, signals, block) as store:
            order = data.draw(st.permutations(store.missing()))
            for number, this in enumerate(order):
                assert store.missing() == sorted(order[number:])
                store.write(this, {n: array[store.rows_of(this)] for n, array in values.items()})
        with Store.open(folder, PARTS, rows, signals, block) as store:
            for name, array in values.items():
                assert store.read(name).dtype == array.dtype
                assert store.read(name).tobytes() == array.tobytes()
                assert np.load(store.folder / f"{name}.npy").tobytes() == array.tobytes()


def test_a_pass_goes_on_where_it_was(tmp_path: Path, whole: dict[str, bytes]) -> None:
    with opened(tmp_path / "store") as store:
        for block in (0, 3):
            store.write(block, measure(store.rows_of(block)))
    seen: list[int] = []

    def counted(rows: Rows) -> Mapping[str, Array]:
        seen.extend(rows)
        return measure(rows)

    with opened(tmp_path / "store", block=9) as store:  # an existing store keeps its own blocks
        with pytest.raises(StoreError, match=r"3 of 5 blocks of .* are missing"):
            store.read("loss")
        assert store.missing() == [1, 2, 4]
        fill(store, counted)
    assert seen == [*range(5, 15), *range(20, 23)]
    assert arrays(tmp_path / "store") == whole


def test_sizes_may_be_numpys(tmp_path: Path, whole: dict[str, bytes]) -> None:
    sizes = {"loss": ((), "<f4"), "gradient": (np.array([4]), np.float16)}
    with opened(tmp_path / "store", rows=np.int64(ROWS), block=np.int64(BLOCK), signals=sizes) as store:
        fill(store, measure)
    assert arrays(tmp_path / "store") == whole


PASS = f"""
from __future__ import annotations
import sys, time
import numpy as np
from coretune.storing.store import Store, fill

{inspect.getsource(measure)}

def slow(rows):
    time.sleep(0.05)
    return measure(rows)

with Store.open(sys.argv[1], {PARTS}, {ROWS}, {SIGNALS}, {BLOCK}) as store:
    print("open", flush=True)
    fill(store, slow)
"""


def start_pass(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PASS, str(folder)]
    return subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True)


def test_killed_passes_end_in_the_same_bytes(tmp_path: Path, whole: dict[str, bytes]) -> None:
    folder, draw = tmp_path / "store", random.Random(0)
    for _ in range(3):
        running = start_pass(folder)
        assert running.stdout is not None
        assert running.stdout.readline() == "open\n"
        time.sleep(draw.uniform(0, 0.12))  # five blocks take a quarter of a second
        running.send_signal(signal.SIGKILL)
        running.communicate()
        assert running.returncode == -signal.SIGKILL
    assert arrays(filled(folder)) == whole


def test_one_process_writes_and_the_other_gets_its_name(tmp_path: Path) -> None:
    running = start_pass(tmp_path / "store")
    assert running.stdout is not None
    assert running.stdout.readline() == "open\n"
    with pytest.raises(
        StoreError, match=rf"is in use, last opened by pid {running.pid} on {os.uname().nodename}"
    ):
        opened(tmp_path / "store")
    running.communicate()
    assert running.returncode == 0
    assert arrays(tmp_path / "store") == arrays(filled(tmp_path / "other"))


def test_any_number_may_read_what_is_finished(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as writer:
        fill(writer, measure)
        with opened(tmp_path / "store") as first, opened(tmp_path / "store") as second:
            assert first.read("loss").tobytes() == second.read("loss").tobytes()
            damage(tmp_path / "store" / "loss.npy", 140)
            with pytest.raises(StoreError, match=f"last opened by pid {os.getpid()}"):
                opened(tmp_path / "store")  # it is not mended under those who read it
    with opened(tmp_path / "store") as store:
        assert not store.finished


@pytest.mark.parametrize(
    ("name", "harm", "blocks"),
    [
        ("loss.npy", lambda path: damage(path, 128 + 4 * 7), [1]),
        ("gradient.npy", lambda path: damage(path, 128 + 8 * 22), [4]),
        ("gradient.npy", lambda path: os.truncate(path, 128 + 8 * 11), [2, 3, 4]),
        ("loss.npy", lambda path: damage(path, 20), [0, 1, 2, 3, 4]),  # the header
        ("loss.npy", lambda path: path.unlink(), [0, 1, 2, 3, 4]),
    ],
)
def test_damaged_blocks_are_measured_again_and_named(
    tmp_path: Path,
    whole: dict[str, bytes],
    caplog: pytest.LogCaptureFixture,
    name: str,
    harm: Callable[[Path], None],
    blocks: list[int],
) -> None:
    folder = filled(tmp_path / "store")
    with opened(folder) as store:
        assert store.verify() == []
        harm(folder / name)
        assert store.verify() == blocks
    with caplog.at_level(logging.WARNING), opened(folder) as store:
        assert store.missing() == blocks
        assert [f"block {block} (rows" in text for block, text in zip(blocks, caplog.messages, strict=True)]
        fill(store, measure)
    assert arrays(folder) == whole


def test_a_block_cut_off_while_it_is_mended_is_damaged_still(tmp_path: Path, whole: dict[str, bytes]) -> None:
    folder = filled(tmp_path / "store")
    damage(folder / "loss.npy", 130)
    opened(folder).close()
    with opened(folder) as store:  # what was taken back stays taken back, though nobody measured
        assert store.missing() == [0]
        fill(store, measure)
    assert arrays(folder) == whole


def test_a_manifest_cut_anywhere_costs_only_the_lines_cut(tmp_path: Path, whole: dict[str, bytes]) -> None:
    folder = filled(tmp_path / "store")
    full = (folder / MANIFEST).read_bytes()
    ends = [position for position, byte in enumerate(full) if byte == ord("\n")]
    for cut in sorted(
        {*range(ends[2], ends[3], 13), *(end + shift for end in ends[:3] for shift in (0, 1, 2))} - {ends[0]}
    ):
        (folder / MANIFEST).write_bytes(full[:cut])
        with opened(folder) as store:
            assert store.missing() == list(range(full[:cut].count(b"\n") - 1, 5))
            fill(store, measure)
        assert arrays(folder) == whole
        assert Manifest.read(folder).unreadable == 0


def test_a_damaged_line_costs_its_block_and_a_damaged_head_the_store(tmp_path: Path) -> None:
    folder = filled(tmp_path / "store")
    head, *lines = (folder / MANIFEST).read_bytes().splitlines(keepends=True)
    (folder / MANIFEST).write_bytes(
        head + lines[0] + b"\xff\x00" + b"".join(lines[1:]) + b'{"block": 99}\n[]\n'
    )
    with opened(folder) as store:
        assert store.missing() == [1]
    for wrong in (b"", head[:-1], head.replace(b"abc", b"abd"), b"[]\n"):
        (folder / MANIFEST).write_bytes(wrong)
        with pytest.raises(StoreError, match="is damaged or not of format 1"):
            opened(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fingerprint": {**PARTS, "weights": "xyz"}}, "weights is abc there and xyz here"),
        ({"fingerprint": {"weights": "abc"}}, r'settings is \{"dimension": 4\} there and not given here'),
        ({"fingerprint": {**PARTS, "adapter": "none"}}, "adapter is not given there and none here"),
        ({"rows": 24}, "number of rows is 23 there and 24 here"),
        ({"signals": {"loss": ((), "<f4")}}, r"signal gradient is \(4,\) <f2 there and not given here"),
        (
            {"signals": {**SIGNALS, "gradient": ((8,), "<f4")}},
            r"signal gradient is \(4,\) <f2 there and \(8,\) <f4",
        ),
    ],
)
def test_another_fingerprint_or_layout_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    before = arrays(filled(tmp_path / "store"))
    with pytest.raises(StoreError, match=message):
        opened(tmp_path / "store", **changes)
    assert arrays(tmp_path / "store") == before
    opened(tmp_path / "store").close()  # and the lock is free


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fingerprint": {}}, "one or more texts"),
        ({"fingerprint": {"seed": 1}}, "one or more texts"),
        ({"rows": 0}, "asked for 0 rows"),
        ({"block": 0}, "0 in a block"),
        ({"signals": {}}, "0 signals"),
        ({"signals": {"../loss": ((), "<f4")}}, "names are words"),
        ({"signals": {"loss": ((0,), "<f4")}}, "sizes 1 or more"),
        ({"signals": {"loss": ((), object)}}, "is object; a store holds plain numbers"),
        ({"rows": 10**17}, "needs .* bytes, .* are free"),
    ],
)
def test_a_store_that_cannot_be(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StoreError, match=message):
        opened(tmp_path / "store", **changes)
    opened(tmp_path / "store").close()  # nothing is left behind that would be in the way


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "loss.npy").write_bytes(b"mine")
    with pytest.raises(StoreError, match=r"is no store, but holds loss\.npy"):
        opened(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["loss.npy"]


def test_a_block_of_another_form_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as store:
        good = dict(measure(store.rows_of(0)))
        for wrong, message in [
            ({"loss": good["loss"]}, r"holds \['gradient', 'loss'\], but was given \['loss'\]"),
            ({**good, "more": good["loss"]}, "but was given"),
            (
                {**good, "loss": good["loss"].astype(float)},
                r"of float32 in the store, but was given as \(5,\) of",
            ),
            ({**good, "loss": good["loss"][:4]}, r"is \(5,\) of float32"),
        ]:
            with pytest.raises(StoreError, match=message):
                store.write(0, wrong)
        store.write(0, good)
        for block in (0, -1, 5):
            with pytest.raises(StoreError, match=f"block {block} is not among the missing"):
                store.write(block, good)
        with pytest.raises(StoreError, match=r"no signal 'los'; it has \['gradient', 'loss'\]"):
            store.read("los")
    with pytest.raises(StoreError, match="is closed"):
        store.write(1, measure(store.rows_of(1)))


@pytest.mark.parametrize("call", range(3))  # of the two arrays' and the manifest's flush
def test_a_full_disk_costs_nothing_committed(
    tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    with opened(tmp_path / "store") as store:
        store.write(0, measure(store.rows_of(0)))
        calls = iter(range(99))

        def full(descriptor: int) -> None:
            if next(calls) >= call:
                raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(StoreError, match="The 1 of 5 blocks committed"):
                store.write(1, measure(store.rows_of(1)))
        assert Manifest.read(tmp_path / "store").commits.keys() == {0}
        assert Manifest.read(tmp_path / "store").unreadable == 0
        fill(store, measure)
    assert arrays(tmp_path / "store") == whole


def test_a_disk_that_is_really_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/full takes no byte: a write to it fails as a write to a full disk does."""
    with opened(tmp_path / "store") as store:
        store.write(0, measure(store.rows_of(0)))
        with monkeypatch.context() as patch:
            patch.setattr(store_module, "open_in_place", lambda path, how: os.open("/dev/full", how))
            with pytest.raises(StoreError, match=r"disk full: block 1 of .* needs 60 bytes"):
                store.write(1, measure(store.rows_of(1)))
    with opened(tmp_path / "store") as store:
        assert store.missing() == [1, 2, 3, 4]


def test_bytes_reach_the_disk_before_their_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a power cut may take is what was not flushed: no line may be on disk before its bytes are."""
    events: list[str] = []
    handed: list[tuple[Path, int, bytes]] = []
    write_at = store_module._write_at

    def recorded(descriptor: int) -> None:
        path, offset, data = handed[-1]
        assert os.path.samestat(os.fstat(descriptor), path.stat())
        assert path.read_bytes()[offset:][: len(data)] == data  # the system has it, not only a buffer here
        events.append(f"flushed {path.name}")

    def writing(path: Path, offset: int, data: Any) -> None:
        events.append(f"writes {path.name}")
        handed.append((path, offset, bytes(data)))
        write_at(path, offset, data)

    with opened(tmp_path / "store") as store, monkeypatch.context() as patch:
        patch.setattr(os, "fsync", recorded)
        patch.setattr(store_module, "_write_at", writing)
        store.write(2, measure(store.rows_of(2)))
    files = ["loss.npy", "gradient.npy", MANIFEST]
    assert events == [event for name in files for event in (f"writes {name}", f"flushed {name}")]


def test_fingerprints_follow_content_alone(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        (folder / "deep").mkdir(parents=True)
        (folder / "a.bin").write_bytes(b"weights")
        (folder / "deep" / "b.txt").write_bytes(b"x")
    assert fingerprint_of_folder(one) == fingerprint_of_folder(two)
    stamp = (one / "a.bin").stat()
    (one / "a.bin").write_bytes(b"weighty")  # as long, and as old
    os.utime(one / "a.bin", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert fingerprint_of_file(one / "a.bin") != fingerprint_of_file(two / "a.bin")
    assert fingerprint_of_folder(one) != fingerprint_of_folder(two)
    assert fingerprint_of_folder(one, "*.txt") == fingerprint_of_folder(two, "*.txt")
    with pytest.raises(ValueError, match=r"holds no file '\*\.bim'"):
        fingerprint_of_folder(one, "*.bim")


def test_a_folder_is_named_by_every_part() -> None:
    named = store_folder("cache", PARTS)
    assert store_folder("cache", dict(reversed(PARTS.items()))) == named
    others = [{**PARTS, "weights": "abd"}, {**PARTS, "adapter": ""}, {"weights": "abc"}, {"abc": "weights"}]
    assert len({named, *(store_folder("cache", other) for other in others)}) == 5

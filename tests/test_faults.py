"""The fault injector itself: that its kills, full disks and failures are what it says they are."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMPILER = shutil.which("cc")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="faults.c needs a C compiler")
WORK = """
import ctypes, os, sys
library, folder, how, at = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
shared = ctypes.create_string_buffer(1 << 17)
ctypes.CDLL(library).faults_arm(shared, os.fsencode(folder), how, ctypes.c_long(at))
try:
    file = os.open(f"{folder}/a", os.O_WRONLY | os.O_CREAT)
    os.write(file, b"x" * 100)
    os.fsync(file)
    os.rename(f"{folder}/a", f"{folder}/b")
    print(int.from_bytes(shared[:8], "little"))
except OSError as error:
    print(error.errno)
    try:
        os.mkdir(f"{folder}/c")
    except OSError as error:
        print(error.errno)
    os.mkdir(f"{folder}-elsewhere")
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("faults") / "faults.so"
    source = ROOT / "bench" / "faults.c"
    assert COMPILER is not None
    subprocess.run([COMPILER, "-shared", "-fPIC", "-Wall", "-Werror", "-o", made, source, "-ldl"], check=True)
    return made


KILL, FULL, BROKEN = 1, 2, 3


@pytest.mark.parametrize(
    ("how", "at", "code", "said", "left"),
    [
        (KILL, 99, 0, "4", {"b": 100}),  # open, write, fsync, rename
        (KILL, 0, -signal.SIGKILL, "", {}),
        (KILL, 1, -signal.SIGKILL, "", {"a": 50}),
        (KILL, 3, -signal.SIGKILL, "", {"a": 100}),
        (FULL, 1, 0, "28 28", {"a": 0}),
        (BROKEN, 1, 0, "5", {"a": 0, "c": None}),
        (BROKEN, 3, 0, "5", {"a": 100, "c": None}),
    ],
)
def test_a_fault_strikes_the_operation_it_is_meant_for(
    tmp_path: Path, library: Path, how: int, at: int, code: int, said: str, left: dict[str, int | None]
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    command = [sys.executable, "-c", WORK, library, folder, str(how), str(at)]
    ended = subprocess.run(command, env={"LD_PRELOAD": str(library)}, capture_output=True, text=True)
    assert (ended.returncode, " ".join(ended.stdout.split())) == (code, said), ended.stderr
    sizes = {path.name: path.stat().st_size if path.is_file() else None for path in folder.iterdir()}
    assert sizes == left

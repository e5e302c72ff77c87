"""The trainers' tests under the last three minor versions of transformers and of TRL.

    python bench/matrix.py                 makes scratch environments beside .venv; about 3 minutes a cell
    python bench/matrix.py --tests tests/test_train.py --check

Each cell has the packages of this environment, seen through a path file, and in front of them the version it
is about. Prints the table of docs/trainer.md.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from command import parser_of
from rich.console import Console
from rich.table import Table
from scratch import ROOT, environment

TESTS = [
    "test_train.py",
    "test_train_plain.py",
    "test_resume.py",
    "test_joined.py",
    "test_processes.py",
    "test_run.py::test_a_push_takes_the_model_and_its_card_and_no_text_of_the_pool",
]
SEAMS = ["tests/test_train.py", "-k", "methods_we_override_are_there"]
# TRL 1.15's own SFTTrainer trains nothing where torch has no Triton, as on CPUs; 1.16 does again.
NEEDS_TRITON = "1.15."
MINORS = 3


def minors(package: str) -> list[str]:
    """The newest release of each of the last minor versions, newest first, as the index knows them."""
    told = subprocess.run(
        [sys.executable, "-m", "pip", "index", "versions", package],
        capture_output=True,
        text=True,
        check=True,
    )
    listed = re.search(r"Available versions: (.*)", told.stdout)
    if listed is None:
        raise RuntimeError(f"the package index names no versions of {package}: {told.stdout}{told.stderr}")
    newest: dict[tuple[str, ...], str] = {}
    for release in listed[1].split(", "):
        newest.setdefault(tuple(release.split(".")[:2]), release)
    return list(newest.values())[:MINORS]


def run_tests(python: Path, tests: list[str]) -> tuple[bool, str]:
    known = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [python, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *tests]
    told = subprocess.run(command, cwd=ROOT, env=known, capture_output=True, text=True)
    lines = told.stdout.strip().splitlines() or [told.stderr.strip()[-200:]]
    failed = [line.split(" - ")[0] for line in lines if line.startswith("FAILED")]
    return told.returncode == 0, "; ".join([lines[-1].strip("= "), *failed[:3]])


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--tests", nargs="+", default=[f"tests/{name}" for name in TESTS])
    parser.add_argument("--quick", action="store_true", help="the seams alone: which methods are there")
    parser.add_argument("--check", action="store_true", help="exit 1 when a cell fails")
    options = parser.parse_args()
    tests = SEAMS if options.quick else options.tests
    console, table, failed = Console(width=160), Table(), []
    for name in ("transformers", "trl", "result"):
        table.add_column(name)
    here = {name: version(name) for name in ("transformers", "trl")}
    with tempfile.TemporaryDirectory(prefix="coretune-matrix-") as home:
        for package in here:
            for release in minors(package):
                lame = package == "trl" and release.startswith(NEEDS_TRITON) and find_spec("triton") is None
                folder = Path(home) / f"{package}-{release}"
                python = environment(folder, f"{package}=={release}", alone=True)
                good, told = run_tests(python, SEAMS if lame else tests)
                told += " (the seams alone: it needs Triton)" if lame else ""
                cell = {**here, package: release}
                console.print(f"transformers {cell['transformers']}, trl {cell['trl']}: {told}")
                table.add_row(cell["transformers"], cell["trl"], told)
                if not good:
                    failed.append(cell)
    console.print(table)
    return 1 if options.check and failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Wheel and sdist: every file that the package needs is in them, and works from where it is unpacked."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from email import message_from_string
from pathlib import Path

import pytest
import yaml

HOME = Path(__file__).parents[1]
#: What no import asks for, and the commands would miss: weights, rows, page, types.
DATA = (
    "coretune/playground/base/model.safetensors",
    "coretune/playground/base/tokenizer.json",
    "coretune/playground/real/rows.jsonl",
    "coretune/playground/real/held_out.jsonl",
    "coretune/playground/real/LICENSES.md",
    "coretune/py.typed",
)
#: Run from nowhere near the repository; prints what it has found.
USED = """
import sys
import coretune, coretune.cli
from coretune.playground import BASE_MODEL, make_pool
from coretune.playground.real_pool import make_real_pool
from coretune.report.page import render
assert BASE_MODEL.is_dir() and len(make_pool(0, rows=20).records) == 20
assert len(make_real_pool(0).records) > 1000
print(coretune.__file__)
"""


def hatchling(folder: Path, out: Path, *targets: str) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(out), *targets]
    told = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    hatchling(HOME, out)
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


def packaged(names: Iterable[str]) -> set[str]:
    return {name for name in names if ".dist-info/" not in name and not name.endswith("/")}


def test_the_wheel_holds_every_file_of_the_package_and_no_other(wheel: Path) -> None:
    files = (path for path in (HOME / "coretune").rglob("*") if path.is_file())
    here = {str(path.relative_to(HOME)) for path in files if "__pycache__" not in path.parts}
    assert packaged(zipfile.ZipFile(wheel).namelist()) == here
    assert here.issuperset(DATA)
    assert any(name.startswith("coretune/report/template/") for name in here)


def test_the_wheel_says_what_pip_installs(wheel: Path) -> None:
    opened = zipfile.ZipFile(wheel)
    (info,) = {name.split("/")[0] for name in opened.namelist() if ".dist-info/" in name}
    about = message_from_string(opened.read(f"{info}/METADATA").decode())
    assert about["Requires-Python"] == ">=3.10"
    assert {"real", "quantization", "ray", "lm-eval"} <= set(about.get_all("Provides-Extra"))
    assert any(re.match(r"gguf.*extra == 'real'", need) for need in about.get_all("Requires-Dist"))
    assert "coretune = coretune.cli:main" in opened.read(f"{info}/entry_points.txt").decode()
    assert f"{info}/licenses/LICENSE" in opened.namelist()


def test_the_unpacked_wheel_is_imported_with_its_data(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    known = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    told = subprocess.run(
        [sys.executable, "-c", USED], cwd=tmp_path, env=known, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    assert told.stdout.strip() == str(tmp_path / "site" / "coretune" / "__init__.py")


def test_a_wheel_made_of_the_sdist_is_the_same_wheel(built: Path, wheel: Path, tmp_path: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as opened:
        opened.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    top = {path.name for path in folder.iterdir()}
    assert {"coretune", "tests", "docs", "README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml"} <= top
    assert not top & {".venv", "results", "runs", "shared", ".hypothesis", "LOG.md"}
    hatchling(folder, tmp_path / "again", "-t", "wheel")
    again = zipfile.ZipFile(tmp_path / "again" / wheel.name)
    first = zipfile.ZipFile(wheel)
    assert sorted(again.namelist()) == sorted(first.namelist())
    assert all(again.read(name) == first.read(name) for name in packaged(first.namelist()))


def test_the_release_builds_and_tries_what_it_publishes() -> None:
    text = (HOME / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    assert jobs["publish"]["needs"] == "build"
    assert jobs["publish"]["permissions"] == {"id-token": "write"}  # trusted publishing: no token is kept
    assert "password" not in text
    steps = "\n".join(step.get("run", "") for step in jobs["build"]["steps"])
    assert "make wheel" in steps  # the target that installs into an empty environment
    assert re.search(r"^wheel:", (HOME / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)

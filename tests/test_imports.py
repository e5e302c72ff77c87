from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import coretune

ROOT = Path(__file__).parents[1]
HEAVY = {"accelerate", "datasets", "peft", "torch", "transformers", "trl"}
NUMBERS_ONLY = [
    "coretune",
    "coretune.types",
    "coretune.budget",
    "coretune.select",
    "coretune.graph",
    "coretune.refresh",
    "coretune.approximation",
    "coretune.dynamic",
    "coretune.ledger",
    "coretune.audit",
]


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=True)


def loaded_by(statement: str) -> set[str]:
    """Top-level names of all modules that a fresh interpreter holds after the statement."""
    code = f"{statement}\nimport sys; print(' '.join({{name.partition('.')[0] for name in sys.modules}}))"
    return set(python("-c", code).stdout.split())


@pytest.mark.parametrize("module", NUMBERS_ONLY)
def test_what_works_on_numbers_loads_no_model_library(module: str) -> None:
    assert not HEAVY & loaded_by(f"import {module}")


def test_the_package_alone_loads_nothing_that_is_installed() -> None:
    assert not {"numpy", "numba", "pyarrow", "scipy", "faiss"} & loaded_by("import coretune")


def test_every_public_name_is_found_and_an_unknown_one_is_refused() -> None:
    assert dir(coretune) == sorted(coretune.__all__)
    for name in coretune.__all__:
        assert getattr(coretune, name) is not None
    with pytest.raises(AttributeError, match="coretune has no 'Corset'; it has Budget, Coreset"):
        _ = coretune.Corset


def test_the_version_is_one() -> None:
    assert importlib.metadata.version("coretune") == coretune.__version__
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.+)$", citation, re.MULTILINE)[1] == coretune.__version__


def test_help_answers_at_once() -> None:
    """The best of three, since other work may hold the processor during one of them."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        answer = python("-m", "coretune", "--help")
        seconds.append(time.perf_counter() - start)
        assert "train" in answer.stdout
    assert min(seconds) < 1.5

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import coretune

ROOT = Path(__file__).parents[1]
HEAVY = {"accelerate", "datasets", "peft", "torch", "transformers", "trl"}
NUMBERS_ONLY = [
    "coretune",
    "coretune.types",
    "coretune.rounds.budget",
    "coretune.select",
    "coretune.neighbors.graph",
    "coretune.policies.update",
    "coretune.policies.approximation",
    "coretune.rounds.coreset_config",
    "coretune.rounds.state",
    "coretune.refresh",
    "coretune.ledger",
    "coretune.recording.audit",
    "coretune.storing.store",
]


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=True)


def test_what_works_on_numbers_loads_no_model_library() -> None:
    """One fresh interpreter for all; a module is charged with what came in while it was imported."""
    code = f"""
import json, sys
loaded = {{}}
for module in {NUMBERS_ONLY}:
    before = set(sys.modules)
    __import__(module)
    loaded[module] = sorted({{name.partition(".")[0] for name in set(sys.modules) - before}})
print(json.dumps(loaded))
"""
    loaded = json.loads(python("-c", code).stdout)
    assert {module: HEAVY & set(names) for module, names in loaded.items() if HEAVY & set(names)} == {}
    # The package alone loads nothing that has to be installed.
    assert not {"faiss", "numba", "numpy", "pyarrow", "scipy"} & set(loaded["coretune"])


def test_one_refresh_is_on_one_screen() -> None:
    assert len((ROOT / "coretune" / "refresh.py").read_text(encoding="utf-8").splitlines()) < 150


def test_every_public_name_is_found_and_an_unknown_one_is_refused() -> None:
    assert dir(coretune) == sorted(coretune.__all__)
    for name in coretune.__all__:
        assert getattr(coretune, name) is not None
    with pytest.raises(AttributeError, match="coretune has no 'Corset'; it has AnchorRefresh, Budget"):
        _ = coretune.Corset


def test_the_version_is_one() -> None:
    assert importlib.metadata.version("coretune") == coretune.__version__
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.+)$", citation, re.MULTILINE)[1] == coretune.__version__


def test_help_answers_at_once() -> None:
    """Seconds of processor time, the best of three: other work on the machine does not count."""
    seconds = []
    for _ in range(3):
        before = os.times()
        answer = python("-m", "coretune", "--help")
        after = os.times()
        user, system = (after[i] - before[i] for i in (2, 3))  # of the children that have ended
        seconds.append(user + system)
        assert "train" in answer.stdout
    assert min(seconds) < 1.5

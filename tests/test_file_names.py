"""Files that docs, docstrings and messages name are there."""

from __future__ import annotations

import re
from pathlib import Path

HOME = Path(__file__).parents[1]
PLACES = ("coretune", "docs", "bench", "examples", "tests", "dev")
OF_TRANSFORMERS, OF_TRL = ("training_args.py", "trainer_utils.py"), ("base_config.py", "sft_config.py")
OTHERS = (*OF_TRANSFORMERS, *OF_TRL, "rows.py", "tool.py")
NAMED = re.compile(r"\b\w+\.py\b")


def texts() -> list[Path]:
    found = [HOME / "README.md", HOME / "CONTRIBUTING.md"]
    for place in ("coretune", "docs", "bench", "examples"):
        found += [*(HOME / place).rglob("*.py"), *(HOME / place).rglob("*.md")]
    return [path for path in found if path.is_file()]


def test_every_python_file_that_a_text_names_is_there() -> None:
    there = {path.name for place in PLACES for path in (HOME / place).rglob("*.py")}
    missing = {
        f"{path.relative_to(HOME)}: {name}"
        for path in texts()
        for name in NAMED.findall(path.read_text(encoding="utf-8"))
        if name not in there and name not in OTHERS
    }
    assert not missing

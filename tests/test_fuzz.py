"""A share of `bench/fuzz.py`: whatever is wrong with a command or its config is one line, at once."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
from fuzz import fuzz

from coretune.escaping import shown

MUTATIONS = 24


def test_a_wrong_command_or_config_is_one_line_and_soon() -> None:
    ends: dict[str, int] = {}
    faults = []
    for number, one, found in fuzz(MUTATIONS, seed=0):
        ends[found.end] = ends.get(found.end, 0) + 1
        if found.fault:
            faults.append(f"python bench/fuzz.py --only {number}: {shown(one.what)}: {shown(found.end)}")
    assert not faults, "\n".join(faults)
    assert ends["refused"] >= MUTATIONS // 2
    assert ends["begun"] >= 1  # not everything is refused

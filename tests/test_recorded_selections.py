"""What methods choose on fixed pools, as it was recorded: moving code must not move a coreset.

python tests/test_recorded_selections.py     # records anew, after a change that is meant to move them
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coretune.select import SELECTORS
from coretune.testing import synthetic_pool
from coretune.types import Budget, Coreset

FILE = Path(__file__).parent / "recorded_selections.json"
#: The published objective alone, by the settings that change it.
GRACE = {
    "coverage": {"lambda_": 0.0, "demand": "equal"},
    "both": {"lambda_": 0.5, "demand": "equal"},
    "dense": {"lambda_": 0.3, "demand": "loss", "similarity": "dense"},
}
POOLS = {
    "plain": synthetic_pool(60, 8, 3),
    "copies": synthetic_pool(80, 8, 4, copies=0.4, unusable=0.1),
}
BUDGETS = {"rows": Budget(12), "tokens": Budget(260, "tokens")}
BARE: dict[str, Any] = {}


def cases() -> dict[str, Coreset]:
    methods = {name: method() for name, method in SELECTORS.items() if name != "grace"}
    methods |= {f"grace {name}": SELECTORS["grace"](**BARE, **given) for name, given in GRACE.items()}
    found = {}
    for name, method in methods.items():
        for pool_name, pool in POOLS.items():
            for unit, budget in BUDGETS.items():
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of IFD: how many rows are not helped
                    chosen = method.select(pool, budget, np.random.default_rng(7))
                found[f"{name}, {pool_name}, {unit}"] = chosen
    return found


CASES = cases()


@pytest.mark.parametrize("case", CASES)
def test_a_method_chooses_what_it_chose_when_it_was_recorded(case: str) -> None:
    recorded, chosen = json.loads(FILE.read_text(encoding="utf-8"))[case], CASES[case]
    assert chosen.indices.tolist() == recorded["indices"]
    assert chosen.weights.tolist() == pytest.approx(recorded["weights"], rel=1e-6)
    assert chosen.gains.tolist() == pytest.approx(recorded["gains"], rel=1e-6, abs=1e-9)


if __name__ == "__main__":
    lines = {
        case: {name: getattr(chosen, name).tolist() for name in ("indices", "weights", "gains")}
        for case, chosen in CASES.items()
    }
    text = ",\n".join(f"{json.dumps(case)}: {json.dumps(line)}" for case, line in lines.items())
    FILE.write_text(f"{{\n{text}\n}}\n", encoding="utf-8")

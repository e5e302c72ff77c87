"""`bench/architectures.py`: the gradients of rows of many architectures are right; what is a fault."""

from __future__ import annotations

from pathlib import Path

import pytest

RIGHT = 1e-3


@pytest.fixture(autouse=True)
def _bench(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))


@pytest.mark.parametrize(
    ("name", "adapted"),
    [
        *(
            (name, False)
            for name in ("gemma2", "phi3", "gpt_neox", "falcon", "cohere", "mixtral", "mamba2", "llama4_text")
        ),
        *((name, True) for name in ("qwen3", "gpt2", "falcon_h1")),
    ],
)
def test_a_rows_gradient_is_that_of_the_row_alone(name: str, adapted: bool) -> None:
    from architecture_models import make
    from architectures import adapter, gap

    found = gap(name, adapter(make(name), attention=True) if adapted else None)
    assert found is not None
    assert found < RIGHT


def test_gradients_that_cannot_be_read_are_no_gap() -> None:
    from architectures import gap

    assert gap("rwkv", None) is None


def test_what_is_neither_a_run_nor_a_refusal_is_a_fault() -> None:
    from architectures import FAULT, REFUSED, RUNS, Found, table

    found = Found("llama", "LlamaForCausalLM", True)
    for method in ("grace", "brief", "gtp"):
        found.cells |= {f"{trained}, {method}": RUNS for trained in ("all weights", "LoRA")}
    found.cells |= {"all weights, less": REFUSED, "LoRA, less": FAULT}
    found.reasons |= {"all weights, less": "LlamaForCausalLM cannot", "LoRA, less": "KeyError: x"}
    found.gradients |= {"all weights": 1e-7, "LoRA": 0.5}
    assert found.faults == ["llama, LoRA, less: KeyError: x", "llama, LoRA: gradients differ by 5.0e-01"]
    found.gradients["LoRA"] = float("nan")
    assert len(found.faults) == 2
    line = table([found]).splitlines()[2]
    assert "grace, brief, gtp; less: refused [1] | grace, brief, gtp; less: FAULT [2]" in line
    assert "1. the model cannot" in table([found])

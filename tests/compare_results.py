"""A result of a comparison, as made up."""

from __future__ import annotations

from typing import Any

from coretune.comparing.compare import Result


def result(
    arm: str, seed: int, flops: float, once: float = 0.0, loss: float = 1.0, steps: int = 10, **more: Any
) -> Result:
    curve = [[5, flops / 2, loss + 1], [steps, flops, loss]]
    prices = {"once": once, "step": (flops - once) / steps, "refresh": 0.0, "warm": 0, "every": 0}
    return {
        "arm": arm,
        "seed": seed,
        "steps": steps,
        "metrics": {"loss": loss, "exact_match": 0.5},
        "flops": flops,
        "prices": prices | more,
        "seconds": 3.0,
        "choosing": 1.0,
        "curve": curve,
        "folder": f"{arm}-{seed}",
    }

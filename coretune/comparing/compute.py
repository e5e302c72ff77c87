"""Equal compute: how many steps of a run a given number of FLOPs affords, choosing included."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from coretune.planning.workload import counted

if TYPE_CHECKING:
    from coretune.training.mixin import CoresetMixin

#: Phases that are not charged: scoring is the same for all arms.
UNCHARGED = ("evaluation",)


def affordable_steps(trainer: CoresetMixin, config: Any, flops: float) -> int:
    """The most steps of this trainer that are predicted to cost at most `flops`; 0 when none are.

    trainer  built and not trained yet; its max_steps is changed while counting, so set it afterwards
    """

    def cost(steps: int) -> float:
        trainer.args.max_steps = steps
        phases = counted(trainer, config)["phases"]
        return sum(found["flops"] or 0.0 for name, found in phases.items() if name not in UNCHARGED)

    return most(cost, flops)


def most(cost: Callable[[int], float], limit: float) -> int:
    """The largest number of steps with cost(steps) ≤ limit, 0 when there is none; cost never falls."""
    low, high = 0, 1
    while cost(high) <= limit:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= limit else (low, middle)
    return low


def charged_flops(trainer: CoresetMixin) -> float:
    """What the run has cost so far, scoring left out."""
    costs = trainer.ledger.by_phase()
    return sum(cost.flops or 0.0 for name, cost in costs.items() if name not in UNCHARGED)

"""Warm-ups on a target's examples alone: for `target_loss`, made before the training.

RUN/_coretune/warmup/target-0/checkpoint-N/   the model after a few passes over the first target
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from coretune.ledger import Ledger
from coretune.measure.snapshots import Snapshot, read_snapshots
from coretune.rounds.sampler import PoolRows
from coretune.rounds.targets import Target
from coretune.training.model_cost import ModelCost
from coretune.training.processes import Processes
from coretune.training.warmup_run import Setup, WarmupPlan, warmup_checkpoints
from coretune.types import Array


@dataclass
class TargetWarmups:
    """A warm-up for each target, and the checkpoints once they are there."""

    targets: Sequence[Target]
    plans: tuple[WarmupPlan, ...]
    folders: list[Path] = field(default_factory=list)

    @classmethod
    def of(cls, selector: Any, targets: Sequence[Target], batch: int) -> TargetWarmups:
        """selector: says how many passes, `target_epochs`. batch: rows a step."""
        epochs = selector.target_epochs
        return cls(targets, tuple(WarmupPlan.of_target(len(t.rows.length), batch, epochs) for t in targets))

    def prepare(
        self, setup: Setup, folder: Path, ledger: Ledger, cost: ModelCost, processes: Processes
    ) -> None:
        """Have the checkpoints: found, gone on with, or made, each from the base model. Booked as warm-up."""
        self.folders = []
        for number, (target, plan) in enumerate(zip(self.targets, self.plans, strict=True)):
            own = replace(setup, dataset=_dataset(target.rows), rows=target.rows)
            self.folders += warmup_checkpoints(
                own, plan, folder / f"target-{number}", ledger, cost, processes
            )

    @property
    def lengths(self) -> Array:
        """Tokens of every row that is trained on, as often as it is."""
        pairs = zip(self.targets, self.plans, strict=True)
        return np.concatenate([target.rows.length[plan.rows] for target, plan in pairs])

    def snapshots(self, model: Any) -> list[Snapshot]:
        """One a target, in their order."""
        return [read_snapshots([folder], model)[0] for folder in self.folders]


def _dataset(rows: PoolRows) -> Any:
    """As a stock trainer takes it."""
    everyone = np.arange(len(rows.length), dtype=np.int64)
    columns = {"input_ids": rows.tokens(everyone), "labels": rows.labels(everyone)}
    return datasets.Dataset.from_dict(
        {name: [v.tolist() for v in values] for name, values in columns.items()}
    )

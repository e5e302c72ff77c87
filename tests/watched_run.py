"""A run whose states are kept, round by round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_run import Spy, trainer
from transformers import TrainerCallback


class States(TrainerCallback):
    """The state of every round, taken when its epoch has begun."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.seen: list[Any] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if not self.seen or self.seen[-1].round != self.trainer.coreset_state.round:
            self.seen.append(self.trainer.coreset_state)


def watched(folder: Path, *args: Any, **settings: Any) -> tuple[Spy, list[Any]]:
    states = States()
    states.trainer = made = trainer(folder, *args, callbacks=[states], **settings)
    made.train()
    return made, states.seen


def names(made: Spy, rows: Any) -> list[str]:
    return [made.pool_rows.ids[row] for row in rows]

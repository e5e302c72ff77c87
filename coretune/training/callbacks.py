"""What the Trainer's own callbacks sets off, and how selections show on the console."""

from __future__ import annotations

import sys
from typing import Any, Protocol

from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from coretune.recording import selection_log


class Stepped(Protocol):
    """What goes by rounds and steps."""

    def begin_round(self, global_step: int) -> Any: ...

    def begin_step(self) -> None: ...

    def end_step(self, global_step: int) -> bool:
        """Whether training ends here."""
        ...


class Rounds(TrainerCallback):
    """Turns the Trainer's callbacks into rounds and steps."""

    def __init__(self, stepped: Stepped) -> None:
        self.stepped = stepped

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.stepped.begin_round(state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.stepped.begin_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.stepped.end_step(state.global_step):
            control.should_training_stop = True


class _Readable(TrainerCallback):
    """Selections as a line for people; all else as the stock console shows it."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not selection_log.is_selection(logs):
            super().on_log(args, state, control, logs=logs, **kwargs)
        elif state.is_world_process_zero:
            tqdm.write(selection_log.line(logs, state.global_step))


class _Progress(_Readable, ProgressCallback):
    """The stock bar with the run's totals behind it."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        super().on_log(args, state, control, logs=logs, **kwargs)
        if state.is_world_process_zero and self.training_bar is not None and "cost/seconds" in logs:
            self.training_bar.set_postfix_str(selection_log.so_far(logs))


class _Printer(_Readable, PrinterCallback):
    pass


def make_readable(trainer: Any) -> None:
    """Put ours in the place of the stock console callbacks the trainer has; no bar without a terminal."""
    for stock, ours in ((ProgressCallback, _Progress), (PrinterCallback, _Printer)):
        if trainer.pop_callback(stock) is not None:
            trainer.add_callback(ours if sys.stderr.isatty() else _Printer)

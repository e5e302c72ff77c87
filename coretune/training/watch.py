"""The page of a run that is still going: written anew after selections."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from coretune.ledger import Ledger
from coretune.recording.run_files import REPORT
from coretune.recording.selection_log import is_selection
from coretune.report import write_report
from coretune.training.saving import side_product

SHARE = 0.02  # of the run's time that writing may take


class ReportWriter(TrainerCallback):
    """Writes the run's page after a selection, unless that took too large a share of the time since.

    [choice] The page's cost grows with the number of selections and hardly with the pool; a run that selects
    every few seconds would spend its time on pages that nobody opens. So a page is due when SHARE of the time
    since the last one covers what the last one took; the first is always due. The seconds are the ledger's
    "other". A page that cannot be written is a warning, since the run is worth more than its page.
    """

    def __init__(self, folder: Path, ledger: Callable[[], Ledger]) -> None:
        self.folder, self.ledger = folder, ledger  # a run that goes on takes another ledger
        self._due = 0.0

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        began = time.monotonic()
        if not state.is_world_process_zero or not is_selection(logs) or began < self._due:
            return
        with side_product(self.folder / REPORT), self.ledger().phase("other"):
            write_report(self.folder, state.log_history)
        took = time.monotonic() - began
        self._due = began + took / SHARE

"""The HTML page of a run: what was chosen over time, why, and what it cost.

    write_report("runs/skills")      # -> runs/skills/_coretune/report.html

details.py, facts.py   a run directory -> numbers and texts, bounded whatever the pool
page.py, template/     those -> one file: jinja2, plotly.js inline, nothing from the network
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coretune.files import write_text
from coretune.recording.run_files import REPORT, RunFiles
from coretune.report.facts import gather
from coretune.report.page import render


def write_report(run: str | os.PathLike[str], history: Sequence[Mapping[str, Any]] | None = None) -> Path:
    """Write RUN/_coretune/report.html; its path. Works on a run that is still going, or that was cut.

    history  the trainer's log lines; None = as the run directory has them
    Raises FileNotFoundError where the folder holds no selection yet.
    """
    files = RunFiles.of(run)
    path = files.path / REPORT
    write_text(path, render(gather(files, history)))
    return path

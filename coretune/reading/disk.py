"""What a run takes on disk, by what it is."""

from __future__ import annotations

import os
from pathlib import Path

from coretune.recording.run_files import POOL, SELECTION, SIGNALS, WARMUP_RUN

KINDS = {SIGNALS: "signals", WARMUP_RUN: "warmup", POOL: "records", SELECTION: "records"}
WEIGHTS = (".safetensors", ".bin", ".pt")


def disk_bytes(folder: str | os.PathLike[str]) -> dict[str, int]:
    """{"checkpoints", "weights", "signals", "warmup", "records", "other"}: bytes, without holes."""
    found = dict.fromkeys(("checkpoints", "weights", "signals", "warmup", "records", "other"), 0)
    root = Path(folder)
    for path in root.rglob("*"):
        if path.is_file():
            found[_kind(path.relative_to(root))] += path.stat().st_blocks * 512
    return found


def _kind(path: Path) -> str:
    top = path.parts[0]
    if top.startswith("checkpoint-"):
        return "checkpoints"
    own = "/".join(path.parts[:2])
    return KINDS.get(own, "weights" if path.suffix in WEIGHTS and len(path.parts) == 1 else "other")

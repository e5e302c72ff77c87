"""Scratch environments: this one's packages, seen through a path file, behind those that are asked for."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[1]


def environment(folder: Path, *packages: str, alone: bool = False) -> Path:
    """Its python; alone: without what the packages depend on."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    command = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    (Path(site) / "beside.pth").write_text(f"{sysconfig.get_path('purelib')}\n{ROOT}\n", encoding="utf-8")
    install = [python, "-m", "pip", "install", "--quiet", *(["--no-deps"] if alone else [])]
    for package in packages:  # one after the other: a build may need the one before
        subprocess.run([*install, "--no-build-isolation", package], check=True)
    return python

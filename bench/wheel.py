"""Does what is published run where nothing else is? `make wheel`, before a release.

    python bench/wheel.py     dist/: wheel and sdist; each installed, the demo run; about 2 GB, some minutes
    python bench/wheel.py --demo-real     and half of demo-real: ten minutes more

An empty environment in a temporary folder, the versions of constraints.txt, a working directory with nothing
in it. Installed is the wheel with `[real]`, by pip; then the sdist over it, without its dependencies.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

from command import parser_of
from scratch import ROOT

#: That demo-real has its rows, and what reads the weights that it fetches; it takes a quarter of an hour.
REAL = """
from coretune.playground.real_pool import make_real_pool
from coretune.playground.smollm2 import make_model
import gguf
print(f"demo-real: {len(make_real_pool(0).records):,} rows")
"""


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="where wheel and sdist go")
    parser.add_argument("--demo-real", action="store_true", help="run half of demo-real too")
    asked = parser.parse_args()
    wheel, sdist = build(asked.dist.resolve())
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder) / "env" / "bin" / "python"
        nowhere = Path(folder) / "nowhere"
        nowhere.mkdir()
        venv.create(Path(folder) / "env", with_pip=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt"]
        timed("wheel installed", [*pip, f"{wheel}[real]"], nowhere)
        timed("coretune demo", [python.with_name("coretune"), "demo"], nowhere)
        timed("what demo-real needs", [python, "-c", REAL], nowhere)
        if asked.demo_real:
            short = [python.with_name("coretune"), "demo-real", "--epochs", "0.5", "--quiet"]
            timed("coretune demo-real", short, nowhere)
        timed("sdist installed", [*pip, "--no-deps", "--force-reinstall", sdist], nowhere)
        timed("coretune --help", [python.with_name("coretune"), "--help"], nowhere)


def build(dist: Path) -> tuple[Path, Path]:
    """Anew; what an earlier build left is removed."""
    for old in dist.glob("coretune-*"):
        old.unlink()
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", dist], cwd=ROOT, check=True)
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    for path in (wheel, sdist):
        print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")
    return wheel, sdist


def timed(what: str, command: list[object], folder: Path) -> None:
    """One line; a failure ends it with what the command said."""
    began = time.perf_counter()
    known = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    told = subprocess.run(list(map(str, command)), cwd=folder, env=known, capture_output=True, text=True)
    if told.returncode:
        sys.exit(f"{what}: exit code {told.returncode}\n{told.stdout}\n{told.stderr}")
    print(f"{what}: {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()

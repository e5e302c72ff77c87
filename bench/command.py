"""What the benchmarks' commands share: their help is their docstring, and each target missed is named."""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Sequence

from coretune.console import no_notes_of_libraries

no_notes_of_libraries()  # before they are imported, in workers too, which import the command anew


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def quiet() -> None:
    """In a worker: one thread, nothing on the console but errors."""
    import torch

    from coretune import run

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    run.quiet()


def tell_missed(misses: Sequence[str], check: bool = True) -> int:
    """The exit code: 1 where targets are missed and that is asked for."""
    for miss in misses:
        print(f"missed: {miss}")
    return 1 if misses and check else 0

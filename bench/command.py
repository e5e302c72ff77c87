"""What the benchmarks' commands share: their help is their docstring, and each target missed is named."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def tell_missed(misses: Sequence[str], check: bool = True) -> int:
    """The exit code: 1 where targets are missed and that is asked for."""
    for miss in misses:
        print(f"missed: {miss}")
    return 1 if misses and check else 0

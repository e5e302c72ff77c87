"""A place to try coretune without data or network: a generated pool and a tiny model that fits it."""

from __future__ import annotations

from pathlib import Path

from coretune.playground.pool import Playground, make_pool

#: The shipped model with its tokenizer, in the folder layout of transformers.
BASE_MODEL = Path(__file__).parent / "base"

__all__ = ["BASE_MODEL", "Playground", "make_pool"]

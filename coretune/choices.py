"""Settings that are one of a few words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


def refuse_other(name: str, value: object, known: Sequence[Any]) -> None:
    """ValueError for a value that is none of those known."""
    if value not in known:
        words = [json.dumps(one).strip('"') for one in known]
        raise ValueError(f"{name} is {value!r}: give one of {', '.join(words)}")

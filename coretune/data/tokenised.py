"""Rows that come as token ids.

    input_ids           the tokens
    labels              a token, or -100 where the loss does not count; or else
    completion_mask, assistant_masks   TRL's: 1 where it counts; of both, where both are 1
    attention_mask      all 1: rows are not padded

Without labels and masks all tokens count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coretune.data.raw import BadRow, CorpusError, kind
from coretune.types import IGNORED

LARGEST = 2**31  # ids are kept as int32
MASKS = ("completion_mask", "assistant_masks")


@dataclass(frozen=True)
class Tokenised:
    """ids, and of each whether the loss counts it."""

    ids: list[int]
    counted: list[bool]


def tokenised(record: Mapping[str, Any], columns: Mapping[str, str]) -> Tokenised:
    """Raises BadRow."""
    ids = _numbers(record, columns, "input_ids")
    if ids is None or not ids:
        raise BadRow("`input_ids` holds no tokens")
    if not all(0 <= token < LARGEST for token in ids):
        raise BadRow("`input_ids` holds a number that is no token id")
    if (seen := _aligned(record, columns, "attention_mask", ids)) is not None and not all(seen):
        raise BadRow("`attention_mask` has zeros: rows are not padded; write them without padding")
    labels = _aligned(record, columns, "labels", ids)
    masks = [mask for name in MASKS if (mask := _aligned(record, columns, name, ids)) is not None]
    if labels is None:
        return Tokenised(
            ids, [all(part) for part in zip(*masks, strict=True)] if masks else [True] * len(ids)
        )
    if masks:
        raise BadRow("`labels` and a mask both say which tokens count; keep one of them")
    for place, (token, label) in enumerate(zip(ids, labels, strict=True)):
        if label not in (IGNORED, token):
            raise BadRow(
                f"label {place} is {label} and the token is {token}: a label is its token, not the next, or "
                f"{IGNORED}"
            )
    return Tokenised(ids, [label != IGNORED for label in labels])


def refuse_loss(loss: Any) -> None:
    """CorpusError for settings that say what counts in text, which these rows are not."""
    given = {"assistant_only_loss": loss.assistant_only or None, "completion_only_loss": loss.completion_only}
    for key, value in given.items():
        if value is not None:
            raise CorpusError(f"the rows are token ids, whose labels say what counts; leave {key} out")


def _aligned(
    record: Mapping[str, Any], columns: Mapping[str, str], name: str, ids: Sequence[int]
) -> list[int] | None:
    values = _numbers(record, columns, name)
    if values is not None and len(values) != len(ids):
        raise BadRow(
            f"`{columns.get(name, name)}` has {len(values)} entries and `input_ids` {len(ids)} tokens"
        )
    return values


def _numbers(record: Mapping[str, Any], columns: Mapping[str, str], name: str) -> list[int] | None:
    column = columns.get(name, name)
    value = record.get(column)
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(part, int) for part in value):
        raise BadRow(f"`{column}` is {kind(value)}, not a list of whole numbers")
    return value

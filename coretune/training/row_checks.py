"""Rows that the model cannot be trained on, named before the first step.

A token without an embedding, or a row longer than a learnt table of positions, is an IndexError (on a GPU a
device-side assert) in the step that meets it, which may be hours away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
from torch import nn

from coretune.measure.parameters import full_shape
from coretune.rounds.sampler import BLOCK, PoolRows, PreparedRows
from coretune.rounds.targets import Target
from coretune.types import IGNORED, Array, Rows

Tell = Callable[..., object]  # of one process alone
NAMED = 10  # rows named in a warning


def warn_of_dropped(given: int, prepared: int, args: Any, tell: Tell) -> None:
    """A warning of how many rows TRL has left out of train_dataset, which it does silently.

    ValueError where no row is left.
    """
    if not prepared:
        raise ValueError(
            f"no row of train_dataset is left: after truncation to max_length {args.max_length} none of the "
            f"tokens of its {given} rows has a label; raise max_length, or set truncation_mode to keep_end"
        )
    if prepared < given:
        tell(
            "left out %d of %d rows of train_dataset: after truncation to max_length %s none of their tokens "
            "has a label; raise max_length, or set truncation_mode to keep_end",
            given - prepared,
            given,
            args.max_length,
        )


def with_response(rows: PreparedRows, tell: Tell) -> PreparedRows:
    """The rows of which the loss counts a token; a warning says how many are left out, and which.

    ValueError where it counts none of any row.
    """
    kept = np.flatnonzero(rows.response_length > 0)
    out = np.flatnonzero(rows.response_length == 0)
    if not len(out):
        return rows
    if not len(kept):
        raise ValueError(
            f"no row of train_dataset has a token that the loss counts: the labels of all {len(out)} are "
            f"{IGNORED} (the first token of a row never counts); label the responses"
        )
    more = f" and {len(out) - NAMED} more" if len(out) > NAMED else ""
    tell(
        "left out %d of %d rows of train_dataset, none of their tokens has a label: %s%s",
        len(out),
        len(rows.ids),
        ", ".join(rows.ids[row] for row in out[:NAMED]),
        more,
    )
    return rows.keep(kept)


def refuse_without_response(rows: PoolRows, what: str) -> None:
    """ValueError names the rows of which the loss counts no token."""
    out = np.flatnonzero(rows.response_length == 0)
    if len(out):
        more = f", nor {len(out) - 1} more" if len(out) > 1 else ""
        raise ValueError(
            f"row {rows.ids[out[0]]} of {what} has no token that the loss counts{more}: label the "
            "responses, or leave such rows out"
        )


def refuse_strange_rows(model: Any, rows: PoolRows, what: str) -> None:
    """ValueError names a row with a token or a label that the model has not, or of too many positions."""

    def read(block: Rows) -> tuple[Sequence[Array], Sequence[Array]]:
        return rows.tokens(block), rows.labels(block)

    _refuse_strange(model, len(rows.length), rows.ids, read, what)


def refuse_strange(model: Any, rows: PoolRows, targets: Sequence[Target], held_out: Any) -> None:
    """ValueError for rows that the model cannot be trained on, evaluated on or measured with."""
    for what, given in [("train_dataset", rows), *(("target", target.rows) for target in targets)]:
        refuse_without_response(given, what)
        refuse_strange_rows(model, given, what)
    refuse_strange_datasets(model, held_out, "eval_dataset")


def refuse_strange_datasets(model: Any, given: Any, what: str) -> None:
    """The same of a prepared dataset, or of several by name. A stream cannot be searched."""
    if isinstance(given, Mapping):
        for name, dataset in given.items():
            refuse_strange_datasets(model, dataset, f"{what}[{name!r}]")
    elif isinstance(given, datasets.Dataset) and "input_ids" in given.column_names:
        names = [name for name in ("input_ids", "labels") if name in given.column_names]
        columns = given.with_format(None).select_columns(names)  # as stored

        def read(block: Rows) -> tuple[Sequence[Array], Sequence[Array]]:
            found = columns[block]
            tokens = [np.asarray(row, np.int64) for row in found["input_ids"]]
            return tokens, [np.asarray(row, np.int64) for row in found.get("labels", tokens)]

        _refuse_strange(model, len(given), range(len(given)), read, what)


def _refuse_strange(
    model: Any,
    n: int,
    names: Sequence[Any],
    read: Callable[[Rows], tuple[Sequence[Array], Sequence[Array]]],
    what: str,
) -> None:
    inputs, head = model.get_input_embeddings(), model.get_output_embeddings()
    known = _entries(inputs)
    predicted = known if head is None else _entries(head)
    positions = learnt_positions(model)
    for begin in range(0, n, BLOCK):
        block = np.arange(begin, min(n, begin + BLOCK), dtype=np.int64)
        tokens, labels = read(block)
        _refuse_beyond(tokens, known, names[begin:], f"token {{}} in {what}", "an embedding of", model)
        targets = [row[row != IGNORED] for row in labels]
        _refuse_beyond(targets, predicted, names[begin:], f"label {{}} in {what}", "an output head of", model)
        length = np.array([len(row) for row in tokens])
        if positions is not None and (length > positions).any():
            row = int(np.argmax(length > positions))
            raise ValueError(
                f"row {names[begin + row]} of {what} has {length[row]} tokens, and the model has learnt "
                f"{positions} positions: set max_length to at most {positions}"
            )


def _refuse_beyond(
    rows: Sequence[Array], entries: int, names: Sequence[Any], found: str, table: str, model: Any
) -> None:
    flat = np.concatenate([*rows, np.zeros(0, np.int64)])
    strange = (flat < 0) | (flat >= entries)
    if strange.any():
        at = int(np.argmax(strange))
        row = int(np.searchsorted(np.cumsum([len(row) for row in rows]), at, side="right"))
        raise ValueError(
            f"row {names[row]}: {found.format(flat[at])}, and {type(model).__name__} has {table} {entries} "
            "entries: take the tokenizer of this model, or model.resize_token_embeddings(len(tokenizer))"
        )


def _entries(layer: nn.Module) -> int:
    """Of an embedding, or of a head, whatever adapter is around it."""
    inner = next((m for m in layer.modules() if isinstance(m, (nn.Embedding, nn.Linear))), layer)
    return full_shape(inner, "weight")[0]


def learnt_positions(model: Any) -> int | None:
    """Rows of a table of position embeddings; None where positions are computed, or written otherwise."""
    longest = model.config.get_text_config().to_dict().get("max_position_embeddings")
    longest = longest or model.config.get_text_config().to_dict().get("n_positions")
    if longest is None:
        return None
    words = model.get_input_embeddings()
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding) and m is not words]
    # OPT and its kin keep two entries more.
    return longest if any(table.num_embeddings - longest in (0, 2) for table in tables) else None

"""The rows a trainer draws from, and how a round's share of them reaches its batches.

prepared dataset ─► PreparedRows   what measuring reads
               └──► RoundSampler ─► collator (+ example_id) ─► the loss knows which row is which
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from coretune.rounds.order import Order
from coretune.types import IGNORED, Array, Rows

EXAMPLE_ID = "example_id"  # column: the row's position in the pool
BLOCK = 4096  # rows held at once
Collate = Callable[[list[dict[str, Any]]], dict[str, Any]]


class PoolRows(Protocol):
    """Tokenised rows of a pool; `Corpus` is one.

    ids              n texts
    prompt_length    (n,) int64  tokens before the first one that the loss counts
    response_length  (n,) int64  tokens that the loss counts, never the first of a row, which nothing predicts
    length           (n,) int64
    source           (n,) object, text or None: where a row is from; None when no row says
    weight           (n,) float64, above 0: what multiplies a row's loss in training; None when of all it is 1
    """

    @property
    def ids(self) -> list[str]: ...

    @property
    def prompt_length(self) -> Array: ...

    @property
    def response_length(self) -> Array: ...

    @property
    def length(self) -> Array: ...

    @property
    def source(self) -> Array | None: ...

    @property
    def weight(self) -> Array | None: ...

    def tokens(self, rows: Rows) -> Sequence[Array]: ...

    def labels(self, rows: Rows) -> Sequence[Array]:
        """Targets of each of `rows`: IGNORED where the loss does not count, also between two turns."""
        ...


@dataclass(frozen=True)
class PreparedRows:
    """The rows of a prepared dataset; members as in `PoolRows`."""

    dataset: Any
    ids: list[str]
    prompt_length: Array
    response_length: Array
    length: Array
    source: Array | None = None
    weight: Array | None = None

    @classmethod
    def of(cls, dataset: Any) -> PreparedRows:
        """From a dataset with input_ids and labels, as SFTTrainer leaves it; with `id`, `source` and `weight`
        if there.

        ValueError: no such columns; a row whose labels are not as many as its tokens; a weight that is none.
        """
        columns = dataset.column_names
        if "input_ids" not in columns or "labels" not in columns:
            raise ValueError(f"a prepared dataset has input_ids and labels, this one has {columns}")
        ids = [str(name) for name in (dataset["id"] if "id" in columns else range(len(dataset)))]
        facts = [_facts(dataset[at : at + BLOCK], ids[at:]) for at in range(0, len(dataset), BLOCK)]
        first, counted, length = np.concatenate([*facts, np.zeros((0, 3), np.int64)]).T.copy()
        source = np.array(dataset["source"], dtype=object) if "source" in columns else None
        weight = _weights(dataset["weight"][:], ids) if "weight" in columns else None
        return cls(dataset, ids, first, counted, length, source, weight)

    def keep(self, rows: Rows) -> PreparedRows:
        """Only these rows, under the names they had."""
        return PreparedRows(
            self.dataset.select(rows),
            [self.ids[row] for row in rows],
            self.prompt_length[rows],
            self.response_length[rows],
            self.length[rows],
            None if self.source is None else self.source[rows],
            None if self.weight is None else self.weight[rows],
        )

    def tokens(self, rows: Rows) -> list[Array]:
        return self._column("input_ids", rows)

    def labels(self, rows: Rows) -> list[Array]:
        return self._column("labels", rows)

    def _column(self, name: str, rows: Rows) -> list[Array]:
        return [np.asarray(row, np.int64) for row in self.dataset[np.asarray(rows, np.int64)][name]]


def _weights(given: Sequence[Any], ids: Sequence[str]) -> Array:
    """(n,) float64. ValueError for a weight that is no number above 0."""
    for name, weight in zip(ids, given, strict=True):
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < np.inf:
            raise ValueError(
                f"row {name} has weight {weight!r}, which multiplies its loss: give a number above 0, leave "
                "the row out, or rename the column if it means something else"
            )
    return np.array(given, np.float64)


def _facts(block: Mapping[str, Any], ids: Sequence[str]) -> Array:
    """(b, 3) int64: of each row tokens before the first that counts, tokens that count, tokens."""
    facts = np.empty((len(block["labels"]), 3), np.int64)
    for row, (tokens, labels) in enumerate(zip(block["input_ids"], block["labels"], strict=True)):
        if len(tokens) != len(labels):
            raise ValueError(
                f"row {ids[row]} has {len(tokens)} input_ids and {len(labels)} labels: give each token "
                f"a label, {IGNORED} where the loss does not count it"
            )
        counted = np.asarray(labels) != IGNORED
        facts[row] = np.argmax(counted) if counted.any() else len(labels), counted[1:].sum(), len(labels)
    return facts


class RoundSampler(Sampler[Any]):
    """Hands out the round that is current when iteration begins, row by row or, packed, in tuples of rows.
    Its length never changes."""

    def __init__(self, order: Callable[[], Order], length: int, packed: bool = False) -> None:
        self._order = order
        self._length = length
        self._packed = packed

    def __iter__(self) -> Iterator[Any]:
        order = self._order()
        if not self._packed:
            return iter(order.rows.tolist())
        return iter([tuple(order.of(item, item + 1).tolist()) for item in range(len(order.ends))])

    def __len__(self) -> int:
        return self._length


class PackedRows(Dataset[dict[str, Any]]):
    """A prepared dataset seen as packs: item (3, 7) is its rows 3 and 7 one after the other, as TRL packs,
    with their lengths in `seq_lengths`. Which rows make a pack is decided round by round; item 3 is row 3 as
    the dataset has it."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, rows: tuple[int, ...] | int) -> dict[str, Any]:
        found: Mapping[str, Any] = self.dataset[list(rows) if isinstance(rows, tuple) else rows]
        if not isinstance(rows, tuple):
            return dict(found)
        pack: dict[str, Any] = {
            name: [token for row in found[name] for token in row] for name in ("input_ids", "labels")
        }
        pack["seq_lengths"] = [len(row) for row in found["input_ids"]]
        if EXAMPLE_ID in found:
            pack[EXAMPLE_ID] = list(found[EXAMPLE_ID])
        return pack


def row_lengths(inputs: Mapping[str, Any]) -> Array:
    """(b,) int64 tokens of each example in a batch, padded or joined (where positions begin anew)."""
    if "attention_mask" in inputs:
        lengths: Array = inputs["attention_mask"].sum(dim=1).cpu().numpy()
        return lengths
    positions = inputs["position_ids"].reshape(-1).cpu().numpy()
    return np.diff(np.append(np.flatnonzero(positions == 0), len(positions)))


def with_positions(dataset: Any) -> Any:
    """The dataset with each row's position as its `example_id`, whatever a column of that name held."""
    if EXAMPLE_ID in dataset.column_names:
        dataset = dataset.remove_columns(EXAMPLE_ID)
    return dataset.add_column(EXAMPLE_ID, np.arange(len(dataset)))


def with_example_id(collate: Collate) -> Collate:
    """A collator that keeps `example_id` (b,) int64 beside what `collate`, which need not know it, makes."""

    def collated(examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = collate([{k: v for k, v in example.items() if k != EXAMPLE_ID} for example in examples])
        if EXAMPLE_ID in examples[0]:  # an evaluation set may have none
            rows = [np.atleast_1d(example[EXAMPLE_ID]) for example in examples]  # a pack has several
            batch[EXAMPLE_ID] = torch.from_numpy(np.concatenate(rows).astype(np.int64))
        return batch

    return collated

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
from coretune.types import Array, Rows

EXAMPLE_ID = "example_id"  # column: the row's position in the pool
Collate = Callable[[list[dict[str, Any]]], dict[str, Any]]


class PoolRows(Protocol):
    """Tokenised rows of a pool; `Corpus` is one.

    ids            n texts
    prompt_length  (n,) int64  tokens before the first one that the loss counts
    length         (n,) int64
    source         (n,) object, text or None: where a row is from; None when no row says
    """

    @property
    def ids(self) -> list[str]: ...

    @property
    def prompt_length(self) -> Array: ...

    @property
    def length(self) -> Array: ...

    @property
    def source(self) -> Array | None: ...

    def tokens(self, rows: Rows) -> Sequence[Array]: ...


@dataclass(frozen=True)
class PreparedRows:
    """The rows of a prepared dataset; members as in `PoolRows`."""

    dataset: Any
    ids: list[str]
    prompt_length: Array
    length: Array
    source: Array | None = None

    @classmethod
    def of(cls, dataset: Any) -> PreparedRows:
        """From a dataset with input_ids and labels, as SFTTrainer leaves it; `id` and `source` if there."""
        columns = dataset.column_names
        if "input_ids" not in columns or "labels" not in columns:
            raise ValueError(f"a prepared dataset has input_ids and labels, this one has {columns}")
        labels = [np.asarray(row) for row in dataset["labels"]]
        first = [int(np.argmax(row != -100)) if (row != -100).any() else len(row) for row in labels]
        ids = [str(name) for name in (dataset["id"] if "id" in columns else range(len(labels)))]
        lengths = [len(row) for row in labels]
        source = np.array(dataset["source"], dtype=object) if "source" in columns else None
        return cls(dataset, ids, np.asarray(first, np.int64), np.asarray(lengths, np.int64), source)

    def tokens(self, rows: Rows) -> list[Array]:
        return [np.asarray(ids, np.int64) for ids in self.dataset[np.asarray(rows, np.int64)]["input_ids"]]


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
    with their lengths in `seq_lengths`. Which rows make a pack is decided round by round."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, rows: tuple[int, ...]) -> dict[str, Any]:
        found = self.dataset[list(rows)]
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

"""The user's rows, tokenised once and frozen: what every other room calls "row i".

Everything lives in Arrow files under `cache_dir`, read through memory maps; nothing is written beside the
data.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import pyarrow as pa

from coretune.data.freeze import ROWS, Account, freeze, refuse
from coretune.data.raw import CorpusError
from coretune.data.recognise import candidates
from coretune.data.render import Loss, Tokenizer
from coretune.data.sources import sources_of
from coretune.files import writing
from coretune.types import IGNORED, Array, Rows


@dataclass(frozen=True, eq=False, repr=False)
class Corpus:
    """n tokenised rows in an order of their own.

    ids            n texts, distinct: the user's `id`, else "<file>:<line>"
    prompt_length  (n,) int64  tokens before the first that the loss counts; in rows that count whole 0, or 1
                   (BOS)
    response_length  (n,) int64  tokens that the loss counts, never the first of a row
    length         (n,) int64  tokens, prompt included
    source         (n,) object, text or None: the user's `source` or `category`; None when no row has one
    weight         (n,) float64, above 0: what multiplies the loss of each row; None when of all it is 1
    dropped        (place, reason) of the bad rows left out; empty unless skip_bad_rows
    left_out       reason -> how many rows say themselves that they are not to be trained on
    truncated      how many prompts were cut from the left
    notes          lines that name what of the data is not used: files of a folder, rows of a slice, columns
    absent         keys of `columns` whose column no row has
    several        rows of which more than one answer is trained on (train_on: all)
    fingerprint    hex, of tokens, prompt lengths and ids in this order, max_length, vocabulary, chat template
    dataset        columns input_ids, labels (-100 where the loss does not count), example_id (the position):
                   what
                   SFTTrainer takes with dataset_kwargs={"skip_prepare_dataset": True}

    [choice] The order is by blake2b of the tokenised content, then by id. So nothing downstream (seeded
    draws, ties broken by the lowest row, the order of training) depends on how the files were sorted, cut or
    named, and a file sorted by source or length favours nobody. Rows without an id of their own are named by
    their place, so for them a shuffled file keeps the contents' order and changes the names.
    """

    ids: list[str]
    prompt_length: Array
    response_length: Array
    length: Array
    source: Array | None
    weight: Array | None
    dropped: list[tuple[str, str]]
    left_out: dict[str, int]
    truncated: int
    notes: list[str]
    absent: list[str]
    several: int
    fingerprint: str
    dataset: datasets.Dataset
    _records: pa.ChunkedArray
    _files: pa.ChunkedArray
    _columns: dict[str, dict[str, str]]
    _home: tempfile.TemporaryDirectory[str] | None = None

    @classmethod
    def build(
        cls,
        source: Any,
        tokenizer: Tokenizer,
        *,
        columns: Mapping[str, str] | None = None,
        max_length: int,
        skip_bad_rows: bool = False,
        cache_dir: str | Path | None = None,
        num_proc: int | None = None,
        completion_only_loss: bool | None = None,
        assistant_only_loss: bool = False,
        train_on: Literal["last", "all"] = "last",
        first: int | None = None,
    ) -> Corpus:
        """Read, tokenise, check and freeze `source`.

        source         a file, a folder, a pattern or a hub id, an entry as {path: ..., split: ...}, or a list
                       of these (`sources.py`)
        columns        {our name: the file's column} where they differ, as {"prompt": "q", "completion": "a"}
        max_length     tokens; longer prompts are cut from the left, responses never
        skip_bad_rows  leave bad rows out and list them in `dropped`, instead of refusing
        cache_dir      where the corpus is kept for the next build of the same content; None: a temporary
                       directory that goes with the corpus
        num_proc       processes to tokenise with; None: one for each core from freeze.MANY rows on
        completion_only_loss, assistant_only_loss  what the loss counts, as SFTConfig has them (`encode.Loss`)
        train_on       of a conversation the last answer, or all answers that no flag of their turn takes out
        first          read so many rows at most, for a first view of a large pool

        Raises CorpusError naming every kind of fault with its place (the first ten) and the remedy. Equal ids
        are refused even with skip_bad_rows: which of the rows is meant, only their owner knows.
        """
        if max_length < 2:
            raise CorpusError(f"max_length is {max_length}; a row needs 2 tokens or more, so raise it")
        mapping = dict(columns or {})
        for one in (mapping, *(each.columns or {} for each in sources_of(source).every)):
            candidates(one)  # a wrong mapping is refused before anything is read
        home = None if cache_dir else tempfile.TemporaryDirectory(prefix="coretune-corpus-")
        root = Path(home.name if home else str(cache_dir)).expanduser()
        loss = Loss.of(train_on, completion_only_loss, assistant_only_loss)
        with writing(root, None, "make room, or give another corpus_dir"):
            kept = freeze(source, tokenizer, mapping, max_length, skip_bad_rows, root, num_proc, loss, first)
        return cls._load(kept, skip_bad_rows, home)

    @classmethod
    def _load(cls, kept: Path, skip_bad_rows: bool, home: tempfile.TemporaryDirectory[str] | None) -> Corpus:
        account = Account.read(kept)
        if not skip_bad_rows:
            refuse(account.dropped)
        dataset = datasets.Dataset.from_file(str(kept / ROWS))
        table = dataset.data.table
        sources = np.array(table["source"].to_pylist(), dtype=object)
        weight = table["weight"].to_numpy()
        lengths = [np.diff(chunk.offsets.to_numpy()) for chunk in table["input_ids"].chunks]
        return cls(
            ids=table["id"].to_pylist(),
            prompt_length=table["prompt_length"].to_numpy(),
            response_length=np.concatenate([_counted(chunk) for chunk in table["labels"].chunks]),
            length=np.concatenate(lengths, dtype=np.int64),
            source=None if all(name is None for name in sources) else sources,
            weight=None if (weight == 1).all() else weight,
            dropped=account.dropped,
            left_out=account.left_out,
            truncated=account.truncated,
            notes=account.notes,
            absent=account.absent,
            several=account.several,
            fingerprint=account.fingerprint,
            dataset=dataset.select_columns(["input_ids", "labels", "example_id"]),
            _records=table["record"],
            _files=table["file"],
            _columns=account.columns,
            _home=home,
        )

    def __repr__(self) -> str:
        return f"Corpus({len(self)} rows, {self.length.sum()} tokens, {self.fingerprint})"

    def __len__(self) -> int:
        return len(self.ids)

    def split(self, share: float) -> tuple[Corpus, Corpus]:
        """The corpus without a share of its rows, and these: as good as drawn, for the order is by a hash of
        the content. Rows of equal content stay together, so a row held out is never trained on.

        Raises CorpusError where no row would be left.
        """
        at = len(self) - max(1, round(share * len(self)))
        while 0 < at < len(self) and self._alike(at - 1, at):
            at -= 1
        if at < 1:
            raise CorpusError(f"of {len(self)} rows none is left to train on when {share:g} are held out")
        return self._part(0, at), replace(self._part(at, len(self)), dropped=[], left_out={}, notes=[])

    def _alike(self, i: int, j: int) -> bool:
        tokens, labels = self.tokens([i, j]), self.labels([i, j])
        return np.array_equal(tokens[0], tokens[1]) and np.array_equal(labels[0], labels[1])

    def _part(self, begin: int, end: int) -> Corpus:
        rows = slice(begin, end)
        return replace(
            self,
            ids=self.ids[rows],
            prompt_length=self.prompt_length[rows],
            response_length=self.response_length[rows],
            length=self.length[rows],
            source=None if self.source is None else self.source[rows],
            weight=None if self.weight is None else self.weight[rows],
            fingerprint=blake2b(f"{self.fingerprint} {begin} {end}".encode(), digest_size=16).hexdigest(),
            dataset=self.dataset.select(range(begin, end)),
            _records=self._records.slice(begin, end - begin),
            _files=self._files.slice(begin, end - begin),
        )

    def record(self, i: int) -> dict[str, Any]:
        """Row i as the user wrote it, with all its columns in their order."""
        record: dict[str, Any] = json.loads(self._records[int(i)].as_py())
        return record

    def columns(self, i: int) -> Mapping[str, str]:
        """Of row i {our name: its column}, as the config or its entry of train_data has it."""
        return self._columns[self._files[int(i)].as_py()]

    def tokens(self, rows: Rows | Sequence[int]) -> list[Array]:
        """input_ids of each of `rows`: (length[row],) int64."""
        return self._column("input_ids", rows)

    def labels(self, rows: Rows | Sequence[int]) -> list[Array]:
        """Targets of each of `rows`: its tokens, -100 where the loss does not count; position t is predicted
        from t - 1."""
        return self._column("labels", rows)

    def _column(self, name: str, rows: Rows | Sequence[int]) -> list[Array]:
        wanted = np.asarray(rows, dtype=np.int64)
        if len(out := wanted[(wanted < 0) | (wanted >= len(self))]):
            raise IndexError(f"row {out[0]} is not in the corpus of {len(self)} rows")
        chunks = self.dataset.data.table[name].chunks
        starts = np.cumsum([0, *map(len, chunks)])
        chunk = np.searchsorted(starts, wanted, side="right") - 1
        lists = {
            at: (chunks[at].offsets.to_numpy(), chunks[at].values.to_numpy()) for at in set(chunk.tolist())
        }
        found = []
        for at, row in zip(chunk.tolist(), (wanted - starts[chunk]).tolist(), strict=True):
            ends, values = lists[at]
            found.append(values[ends[row] : ends[row + 1]].astype(np.int64))
        return found


def _counted(labels: pa.ListArray) -> Array:
    """(m,) int64: of each row how many tokens behind the first have a label."""
    ends = labels.offsets.to_numpy().astype(np.int64)
    counted = labels.values.to_numpy() != IGNORED
    counted[ends[:-1]] = False
    before = np.concatenate([[0], np.cumsum(counted)])
    return np.diff(before[ends])

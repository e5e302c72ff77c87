"""What a run would be given to train on, without the run: rows as tokens, columns, cuts, rows left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np

from coretune.commands.layout import Turn, format_of, turns_of
from coretune.commands.pieces import pieces
from coretune.config import RunConfig, at_hand
from coretune.data.corpus import Corpus
from coretune.data.formats import FORMATS, is_verdict
from coretune.data.raw import CorpusError
from coretune.data.recognise import unused
from coretune.data.sources import described
from coretune.recording.row_account import by_reason
from coretune.training.corpora import build_corpus
from coretune.training.tokenizers import load_tokenizer, longest_row, read_here, row_tokenizer
from coretune.types import IGNORED, Array

BINS = 10  # of the histogram
READ = 200  # rows whose columns are listed
#: Our name of a column -> what becomes of it.
BECOMES: Mapping[str, str] = {
    "messages": "turns of the conversation",
    "conversations": "turns of the conversation",
    "prompt": "the prompt",
    "completion": "the response",
    "instruction": "the prompt",
    "input": "the prompt, after the instruction",
    "output": "the response",
    "text": "the whole text",
    "system": "a system turn before the others",
    "history": "turns before the prompt",
    "input_ids": "the tokens",
    "labels": "which tokens are trained on",
    "completion_mask": "which tokens are trained on",
    "assistant_masks": "which tokens are trained on",
    "weight": "multiplies the row's loss",
    "tools": "handed to the chat template",
    "chat_template_kwargs": "handed to the chat template",
    "label": "rows with false are left out (KTO)",
    "id": "the row's name",
    "source": "the row's source, in quotas and reports",
    "category": "the row's source, in quotas and reports",
}
NOT_USED = "not used"


@dataclass(frozen=True)
class Row:
    """pieces: (text, whether it is trained on) of each token; turns: [] where their borders are not known."""

    id: str
    source: str | None
    pieces: list[tuple[str, bool]]
    turns: list[Turn]

    def to_dict(self) -> dict[str, Any]:
        turns = [turn.to_dict() for turn in self.turns]
        return {"id": self.id, "source": self.source, "tokens": self.pieces, "turns": turns}


@dataclass(frozen=True)
class Preview:
    """read: rows that were read, all of them if `complete`; columns: (format, column, what it became);
    dropped: (rows, the first one's place, its reason) for each kind of reason, which the run leaves out if
    `skipped` and else refuses; left_out: reason -> rows that
    say themselves that they are not to be trained on; lengths, trained: (n,) tokens of each usable row, and
    how many of them are trained on."""

    source: str
    model: str
    chat: bool
    max_length: int
    read: int
    complete: bool
    columns: list[tuple[str, str, str]]
    dropped: list[tuple[int, str, str]]
    skipped: bool
    left_out: dict[str, int]
    truncated: int
    notes: list[str]
    lengths: Array
    trained: Array
    rows: list[Row]

    def to_dict(self) -> dict[str, Any]:
        return {
            "train_data": self.source,
            "model_name_or_path": self.model,
            "chat_template": self.chat,
            "max_length": self.max_length,
            "rows_read": self.read,
            "all_rows_read": self.complete,
            "rows": len(self.lengths),
            "columns": [
                dict(zip(("format", "column", "becomes"), line, strict=True)) for line in self.columns
            ],
            "bad_rows": [dict(zip(("rows", "first", "reason"), line, strict=True)) for line in self.dropped],
            "left_out": self.left_out,
            "prompts_cut": self.truncated,
            "notes": self.notes,
            "tokens": int(self.lengths.sum()),
            "tokens_trained": int(self.trained.sum()),
            "histogram": [
                {"from": low, "to": high, "rows": count} for low, high, count in histogram(self.lengths)
            ],
            "examples": [row.to_dict() for row in self.rows],
        }


def preview(config: RunConfig, rows: int, first: int | None) -> Preview:
    """Of `rows` rows among the first so many of train_data; None: of all. Raises ConfigError, CorpusError."""
    datasets.disable_progress_bars()
    here = at_hand(config)
    args = read_here(here.training)
    tokenizer = row_tokenizer(load_tokenizer(here.model_name_or_path, args), args)
    length = longest_row(here.model_name_or_path, args)
    lenient = config.model_copy(update={"skip_bad_rows": True})
    corpus = build_corpus(config.train_data, lenient, tokenizer, length, first)
    read = len(corpus) + len(corpus.dropped) + sum(corpus.left_out.values())
    return Preview(
        source=described(config.train_data),
        model=config.model_name_or_path,
        chat=tokenizer.chat_template is not None,
        max_length=length,
        read=read,
        complete=first is None or read < first,
        columns=_columns(corpus, tokenizer.chat_template),
        dropped=by_reason(corpus.dropped),
        skipped=config.skip_bad_rows,
        left_out=corpus.left_out,
        truncated=corpus.truncated,
        notes=[*corpus.notes, *(_absent(config, name) for name in corpus.absent)],
        lengths=corpus.length,
        trained=corpus.response_length,
        rows=[_row(corpus, i, tokenizer, config) for i in range(min(rows, len(corpus)))],
    )


def _absent(config: RunConfig, name: str) -> str:
    column = (config.columns or {})[name]
    return f"columns.{name} is {column!r}, and no row that was read has that column"


def _row(corpus: Corpus, i: int, tokenizer: Any, config: RunConfig) -> Row:
    (ids,), (labels,) = corpus.tokens([i]), corpus.labels([i])
    texts = pieces(tokenizer, ids.tolist())
    trained = (labels != IGNORED).tolist()
    turns = turns_of(corpus.record(i), labels, tokenizer, corpus.columns(i), config.train_on)
    source = None if corpus.source is None else corpus.source[i]
    return Row(corpus.ids[i], source, list(zip(texts, trained, strict=True)), turns)


def _columns(corpus: Corpus, template: Any) -> list[tuple[str, str, str]]:
    """(format, column, what it became), of the first rows."""
    found: dict[str, dict[str, Any]] = {}  # format -> column -> a value
    ours: dict[str, str] = {}
    for i in range(min(READ, len(corpus))):
        record, columns = corpus.record(i), corpus.columns(i)
        ours |= {column: name for name, column in columns.items()}
        try:
            known = found.setdefault(format_of(record, columns), {})
        except CorpusError:  # a table's filled-in nulls
            continue
        known.update(
            {name: value for name, value in record.items() if value is not None or name not in known}
        )
    columns = {name: column for column, name in ours.items()}
    lines = []
    for format, known in sorted(found.items()):
        not_used = unused(format, known, columns, template and str(template), is_verdict(known.get("label")))
        for column in known:
            name = ours.get(column, column)
            becomes = NOT_USED if column in not_used else BECOMES.get(name, "used")
            lines.append((format, column, becomes))
    return sorted(lines, key=lambda line: (line[0], line[2] == NOT_USED, _place(line, ours)))


def _place(line: tuple[str, str, str], ours: Mapping[str, str]) -> int:
    """Columns in the order in which a row is made of them."""
    order = ["system", "history", *FORMATS[line[0]][:1], "input", *FORMATS[line[0]][1:]]
    name = ours.get(line[1], line[1])
    return order.index(name) if name in order else len(order)


def histogram(lengths: Array) -> list[tuple[int, int, int]]:
    """(from, to, rows) of bins of equal width in whole tokens, both ends included."""
    if not len(lengths):
        return []
    low, high = int(lengths.min()), int(lengths.max())
    width = max(1, -(-(high - low + 1) // BINS))
    counts: Sequence[int] = np.bincount((lengths - low) // width).tolist()
    return [(low + n * width, low + (n + 1) * width - 1, count) for n, count in enumerate(counts)]

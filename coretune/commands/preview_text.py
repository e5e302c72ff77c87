"""A preview on a terminal: trained tokens in green, the others grey, each second token underlined.

Without colours what is trained on stands between ⟦ and ⟧.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from coretune.commands.preview import Preview, Row, histogram
from coretune.console import cell
from coretune.escaping import shown

TRAINED, CONTEXT = "bold green", "bright_black"
BAR = 40  # characters
NEWLINE = "⏎"  # a line end is a token too: it shows, and breaks the line


def show(found: Preview, console: Console) -> None:
    """All of it."""
    template = "its chat template" if found.chat else "no chat template"
    rows = f"{found.read:,} rows" if found.complete else f"the first {found.read:,} rows"
    _say(
        console,
        f"{found.source}: {rows}, tokenizer of {found.model} with {template}, "
        f"at most {found.max_length:,} tokens",
    )
    for line in found.notes:
        _say(console, line)
    _table(console, ("format", "column", "becomes"), [*map(list, found.columns)])
    marked = console.color_system is None
    legend = "between ⟦ and ⟧" if marked else "each second token is underlined, green"
    _say(console, f"{legend}: trained on")
    for row in found.rows:
        name = cell(row.id + (f" · {row.source}" if row.source else ""))
        console.print(Rule(name, align="left", style=CONTEXT))
        console.print(text_of(row, marked), soft_wrap=not console.is_terminal)
        for line in turn_lines(row):
            _say(console, line)
    console.print(Rule(style=CONTEXT))
    for line in summary(found):
        _say(console, line)
    _bars(console, found)


def text_of(row: Row, marked: bool) -> Text:
    """The row's tokens; marked: with ⟦ ⟧ around what is trained on."""
    text, number = Text(), 0
    for trained, run in groupby(row.pieces, key=lambda piece: piece[1]):
        text.append("⟦" if trained and marked else "")
        for piece, _ in run:
            style = (TRAINED if trained else CONTEXT) + (" underline" if number % 2 else "")
            text.append(shown(piece, keep="\n").replace("\n", f"{NEWLINE}\n"), style)
            number += 1
        text.append("⟧" if trained and marked else "")
    return text


def turn_lines(row: Row) -> Iterator[str]:
    """A line for each turn: whether it is trained on, and what of it was cut."""
    if not row.turns:
        count = sum(trained for _, trained in row.pieces)
        yield f"  {count:,} of {len(row.pieces):,} tokens trained; the chat template does not show turns"
    for number, turn in enumerate(row.turns, 1):
        trained = f"{turn.trained:,} of {turn.tokens:,} tokens trained" if turn.trained else "not trained"
        length = "" if turn.trained else f", {turn.tokens:,} tokens"
        cut = f", {turn.cut:,} cut from the left" if turn.cut else ""
        yield f"  turn {number}, {turn.role}: {trained}{length}{cut}"


def summary(found: Preview) -> Iterator[str]:
    """Rows, tokens, the share that is trained on, and rows left out."""
    count, bad = len(found.lengths), sum(rows for rows, _, _ in found.dropped)
    share = found.trained.sum() / max(1, found.lengths.sum())
    yield (
        f"{count:,} rows with {int(found.lengths.sum()):,} tokens, of which {int(found.trained.sum()):,} "
        f"({share:.0%}) are trained on"
    )
    if bad:
        left_out = (
            "leaves them out" if found.skipped else "refuses them, or leaves them out with --skip-bad-rows"
        )
        yield f"{bad:,} rows are bad: training {left_out}:"
    for rows, place, reason in found.dropped:
        yield f"  {rows:,}: {reason} (first: {place})"
    for reason, rows in found.left_out.items():
        yield f"{rows:,} rows are left out: {reason}"
    if found.truncated:
        yield f"{found.truncated:,} prompts are cut from the left to {found.max_length:,} tokens"
    middle, high = np.quantile(found.lengths, [0.5, 0.95])
    yield f"tokens a row: median {middle:,.0f}, 95 % up to {high:,.0f}, longest {found.lengths.max():,}"


def _bars(console: Console, found: Preview) -> None:
    bins = histogram(found.lengths)
    most = max(count for _, _, count in bins)
    lines = [
        [f"{low:,}" if low == high else f"{low:,} to {high:,}", f"{count:,}", "█" * -(-count * BAR // most)]
        for low, high, count in bins
    ]
    _table(console, ("tokens", "rows", ""), lines)


def _table(console: Console, header: tuple[str, ...], lines: list[list[str]]) -> None:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in header:
        table.add_column(name)
    for line in lines:
        table.add_row(*map(cell, line))
    console.print()
    console.print(table)
    console.print()


def _say(console: Console, line: str) -> None:
    console.print(cell(line), soft_wrap=not console.is_terminal)

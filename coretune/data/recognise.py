"""Which format a file is in, which of its columns are used, and what to do about one that is in none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher, get_close_matches
from typing import Any

from coretune.data.formats import EXTRA, FORMATS, KNOWN_COLUMNS, OPTIONAL, OPTIONAL_COLUMNS, listed
from coretune.data.raw import CorpusError

#: What others call a prompt and a completion, the likelier first.
PROMPTS = (
    "prompt",
    "question",
    "query",
    "instruction",
    "problem",
    "input",
    "user",
    "article",
    "document",
    "source",
)
COMPLETIONS = (
    *("completion", "answer", "response", "output", "solution", "target", "assistant", "chosen", "summary"),
    *("highlights", "label", "answers", "reply"),
)
OURS = "coretune"  # the column that `coretune select` adds


def candidates(columns: Mapping[str, str]) -> list[str]:
    """The formats that use all of a `columns` mapping {our name: the file's column}; CorpusError if none."""
    for name in columns:
        if name not in KNOWN_COLUMNS:
            near = get_close_matches(name, KNOWN_COLUMNS, 1, 0.0)[0]
            raise CorpusError(
                f"columns has the unknown key {name!r}, nearest is {near!r}; known: {listed(KNOWN_COLUMNS)}"
            )
    mapped = set(columns) - set(OPTIONAL_COLUMNS) | set(columns) & {"input"}
    fitting = [name for name, required in FORMATS.items() if mapped <= {*required, *EXTRA.get(name, ())}]
    if not fitting:
        raise CorpusError(
            f"columns names {listed(columns)}, which no one format uses together; give those of one format"
        )
    return fitting


def filled_columns(record: Mapping[str, Any], columns: Mapping[str, str]) -> frozenset[str]:
    """Which of our columns a row fills (present and not null)."""
    return frozenset(name for name in KNOWN_COLUMNS if record.get(columns.get(name, name)) is not None)


def recognise(
    file: str, filled: Counter[frozenset[str]], found: Iterable[str], columns: Mapping[str, str]
) -> str:
    """The format of a file; CorpusError when it has none.

    filled  how many rows fill which of our columns; found: all column names of the file, for the message.
    The first format that at least half of the rows fill, else the one that most rows fill [choice: one odd
    row must neither decide for a file nor be read as something else than its neighbours].
    """
    fitting = {
        name: sum(count for names, count in filled.items() if set(FORMATS[name]) <= names)
        for name in candidates(columns)
    }
    most = max(fitting.values())
    if most == 0:
        names = sorted(found)
        raise CorpusError(
            f"{file}: no known format in its columns {listed(names)}; {_remedy(names, columns)}"
        )
    enough = min(most, -(-filled.total() // 2))
    return next(name for name, count in fitting.items() if count >= enough)


def unused(
    format: str, found: Iterable[str], columns: Mapping[str, str], template: str | None, verdicts: bool = True
) -> list[str]:
    """The file's columns that a row of this format does not use, sorted.

    template  the chat template, which may leave tools alone; None: the tokenizer has none
    verdicts  the file's `label` is KTO's
    """
    ours = {*FORMATS[format], *EXTRA.get(format, ()), *OPTIONAL[format], "id", "source", "weight"}
    if not verdicts:
        ours -= {"label"}
    if template is None:
        ours -= {"tools", "chat_template_kwargs"}
    elif "tools" not in template:
        ours -= {"tools"}
    used = {columns.get(name, name) for name in ours} | {OURS}
    if "source" not in columns and "source" not in found:
        used.add("category")
    return sorted(set(found) - used)


def _remedy(found: list[str], columns: Mapping[str, str]) -> str:
    """What the rows are, or which format is closest, and how to say which column is which."""
    if not columns and {"chosen", "rejected"} <= set(found):
        mapping = "prompt: prompt, completion: chosen" if "prompt" in found else "messages: chosen"
        return (
            "chosen and rejected are preference data, and one answer is trained on here: to train on the "
            "chosen ones "
            f"set columns: {{{mapping}}}"
        )
    lower = {name.lower(): name for name in reversed(found)}
    prompt = next((lower[name] for name in PROMPTS if name in lower), None)
    answer = next((lower[name] for name in COMPLETIONS if name in lower and lower[name] != prompt), None)
    if columns or not prompt or not answer or {"prompt", "completion"} <= set(found):
        return _nearest(found, columns)
    lacking = [name for name in FORMATS["prompt/completion"] if name not in found]
    return (
        f"nearest is prompt/completion, which lacks {listed(lacking)}; if {prompt} is the prompt and "
        f"{answer} the answer, set columns: {{prompt: {prompt}, completion: {answer}}}"
    )


def _nearest(found: list[str], columns: Mapping[str, str]) -> str:
    def closeness(format: str) -> tuple[float, float]:
        wanted = [columns.get(name, name) for name in FORMATS[format]]
        alike = [
            max((SequenceMatcher(None, want, name).ratio() for name in found), default=0.0) for want in wanted
        ]
        return sum(want in found for want in wanted) / len(wanted), sum(alike) / len(wanted)

    format = max(candidates(columns), key=closeness)
    lacking = [columns.get(name, name) for name in FORMATS[format] if columns.get(name, name) not in found]
    empty = [columns.get(name, name) for name in FORMATS[format]]
    lacks = f"lacks {listed(lacking)}" if lacking else f"needs {listed(empty)} not to be null"
    mapping = ", ".join(f"{name}: ..." for name in FORMATS[format])
    return f"nearest is {format}, which {lacks}; say which column is which with columns: {{{mapping}}}"

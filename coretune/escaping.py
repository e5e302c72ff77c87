"""Text of a row, a file or a library as a terminal may show it.

What would steer the terminal, reorder what is read or hide some of it is written as an escape, as \\x1b.
"""

from __future__ import annotations

import unicodedata

JOINERS = "\u200c\u200d"  # within words and emoji


def shown(text: str, keep: str = "") -> str:
    """The text with control, format and surrogate characters and line separators escaped, but for `keep`."""
    if text.isprintable():
        return text
    return "".join(c if _harmless(c) or c in keep else c.encode("unicode_escape").decode() for c in text)


def shown_in_json(text: str) -> str:
    """JSON with those characters as \\uXXXX, which is read as the same; its line ends stay."""
    if text.isprintable():
        return text
    return "".join(c if _harmless(c) or c == "\n" else _as_json(c) for c in text)


def first_line(error: Exception) -> str:
    """What an error says in its first line, or else its kind."""
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def _harmless(character: str) -> bool:
    if character.isprintable() or character in JOINERS:
        return True
    return unicodedata.category(character) == "Zs"  # spaces of other widths


def _as_json(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))

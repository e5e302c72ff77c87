"""Words that this project does not use, in documentation, messages, docstrings, comments and tests' names.

    python dev/words.py            every banned word
    python dev/words.py FILE …     every banned word of these files

Code, inline code and names of settings are not read.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

HOME = Path(__file__).parents[1]
FOLDERS = ("coretune", "tests", "bench", "examples", "docs", "dev", "results", ".github")

#: Files in which the words are names or data, with the reason.
OTHERWISE = {
    "dev/words.py": "the list itself",
    "coretune/playground/skills.py": "words of the generated rows",
    "tests/test_coreset_section.py": "names of settings",
    "tests/test_documents.py": "what the checker has to find",
}
#: Pattern -> what to write.
BANNED = {
    r"look(s|ed|ing)?": "measure, read, check, search: what really happens",
    r"twins?": "exact duplicates",
    r"hear(s|d)?": "receive, measure: what really happens",
    r"told|tells": "recorded, measured, distinguished, says: what really happens",
    r"blind|calm": "noise detection is off, and why",
    r"contradicted|suspect(s|ed)?|suspicio(n|us)": "flagged as noisy; noise score",
    r"held back": "filtered out, with the reason",
    r"harvest(s|ed|ing)?": "online signals",
    r"school|lessons?|taught|teachers?": "warm-up run, checkpoints",
    r"spoilt|spoiled": "corrupted",
    r"(dirty|right) rows": "corrupted pool; clean rows",
    r"purses?": "budget tracker",
    r"dear(er|est)?": "expensive",
    r"to and fro": "by length, in turn",
    r"stands? for": "represents",
    r"sights?|doors?": "measurement",
    r"resting|rested": "cooling down",
    r"costs? \S+ nats": "has a loss of … nats per token",
    r"passes over the distinct": "trains on de-duplicated rows",
}
ANY = "|".join(f"(?:{each})" for each in BANNED)
BEFORE = r"""(?:(?<="{3})|(?<![\w.`'"=/-]))"""  # a quotation mark is before a name, or opens a docstring
WORD = re.compile(rf"{BEFORE}({ANY})(?![\w=:`'\"(/-]|\.\w)", re.IGNORECASE)


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of what is prose in a file."""
    source = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield from _of_a_page(source)
        return
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        prose = token.type in (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1))
        if prose:
            for number, line in enumerate(token.string.splitlines()):
                yield token.start[0] + number, _without_code(line)
        elif token.type == tokenize.NAME and token.string.startswith("test_"):
            yield token.start[0], token.string.replace("_", " ")


def _of_a_page(source: str) -> Iterator[tuple[int, str]]:
    fenced = False
    for number, line in enumerate(source.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and not line.startswith("    "):
            yield number, _without_code(line)


def _without_code(line: str) -> str:
    """Without inline code, links' targets, what f-strings put in, and the name that a line explains."""
    return re.sub(r"`[^`]*`|\]\([^)]*\)|\{[^{}]*\}|<\w+>|^\s*\w+(?:, \w+)*(?=\s\s)", " ", line)


def found(path: Path) -> list[str]:
    """A line for each banned word of a file, with what to write."""
    lines = []
    for number, text in texts(path):
        for match in WORD.finditer(text):
            lines.append(f"{path.relative_to(HOME)}:{number}: {match[1]!r}: write {instead(match[1])}")
    return lines


def instead(word: str) -> str:
    return next(what for each, what in BANNED.items() if re.fullmatch(each, word, re.IGNORECASE))


def files() -> list[Path]:
    inside = [path for folder in FOLDERS for path in (HOME / folder).rglob("*")]
    readable = [path for path in (*inside, *HOME.glob("*.md")) if path.suffix in (".py", ".md", ".yml")]
    return sorted(path for path in readable if path.relative_to(HOME).as_posix() not in OTHERWISE)


def main() -> int:
    parser = argparse.ArgumentParser(description="Words that this project does not use.")
    parser.add_argument("file", nargs="*", type=Path)
    asked = parser.parse_args()
    lines = [line for path in ([path.resolve() for path in asked.file] or files()) for line in found(path)]
    print("\n".join(lines), end="\n" if lines else "")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())

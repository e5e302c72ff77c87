"""ROUGE-1, ROUGE-2 and ROUGE-L of an answer against the one wanted.

Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", ACL Workshop on Text Summarization, 2004; F1 of
each, sentence-level. [choice] Our own few lines: the package `rouge-score` has had no release since 2022 and
brings nltk. Words are runs of letters and digits of any script, case-folded, not stemmed; on English without
stemming the figures are those of `rouge-score`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

WORD = re.compile(r"[^\W_]+")


def rouge(answer: str, wanted: str) -> dict[str, float]:
    """{"rouge1", "rouge2", "rougeL"}: F1 in [0, 1]; 0 where either has no such n-gram."""
    ours, theirs = WORD.findall(answer.casefold()), WORD.findall(wanted.casefold())
    found = {f"rouge{n}": _overlap(_grams(ours, n), _grams(theirs, n)) for n in (1, 2)}
    return {**found, "rougeL": _f1(longest_common(ours, theirs), len(ours), len(theirs))}


def longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)  # row[j]: of what was read of `a` and the first j of `b`
    for word in a:
        diagonal = 0
        for j, other in enumerate(b):
            above = row[j + 1]
            row[j + 1] = diagonal + 1 if word == other else max(above, row[j])
            diagonal = above
    return row[-1]


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[start:] for start in range(n)), strict=False))


def _overlap(a: Counter[tuple[str, ...]], b: Counter[tuple[str, ...]]) -> float:
    return _f1((a & b).total(), a.total(), b.total())


def _f1(common: int, ours: int, theirs: int) -> float:
    return 2 * common / (ours + theirs) if common else 0.0

"""Twelve word and number skills with exact answers: what the playground's pools and its model are made of.

A skill draws its arguments, solves them, and asks for the answer in plain English. The shipped model has met
the same operations only in another notation (`bench/playground_model.py`), so that fine-tuning has to teach
the instructions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Arguments = list[str]

_ALL_WORDS = (
    "ant apple bear bell bird blanket boat bone book bottle bread brush butterfly cake camp candle card "
    "chair cloud coat coin corn crow desk dish door drum duck elephant fern field fish flag fork frog "
    "gate glass goat grape hammer hill horn jar jungle key kite lake lamp leaf lion moon nest notebook "
    "onion owl peach pen pipe plum pond queen rain road rope salt sand ship shoe snow spoon star sugar "
    "telescope tiger tooth tree umbrella violin wagon wolf yard zebra"
)
WORDS = _ALL_WORDS.split()


@dataclass(frozen=True)
class Skill:
    """One kind of task: how it is asked for, what it is asked of, and the right answer."""

    name: str
    request: str
    draw: Callable[[np.random.Generator], Arguments]
    solve: Callable[[Arguments], str]

    def prompt(self, arguments: Arguments) -> str:
        """The task in plain English."""
        return f"{self.request}: {' '.join(arguments)}"


def _words(fewest: int, most: int) -> Callable[[np.random.Generator], Arguments]:
    def draw(rng: np.random.Generator) -> Arguments:
        count = rng.integers(fewest, most + 1)
        return [WORDS[i] for i in rng.choice(len(WORDS), size=count, replace=False)]

    return draw


def _numbers(count: int, below: int) -> Callable[[np.random.Generator], Arguments]:
    return lambda rng: [str(n) for n in rng.choice(below, size=count, replace=False)]


def _one_longest(rng: np.random.Generator) -> Arguments:
    """Three or four words, one of them longer than all others, so that the answer is unique."""
    while True:
        words = _words(3, 4)(rng)
        lengths = sorted(len(word) for word in words)
        if lengths[-1] > lengths[-2]:
            return words


def _word_and_list(rng: np.random.Generator) -> Arguments:
    """A list of two to four words, and in front of it the one to leave out."""
    words = _words(2, 4)(rng)
    return [words[rng.integers(len(words))], *words]


def _without_first(arguments: Arguments) -> str:
    return " ".join(word for word in arguments if word != arguments[0])


SKILLS = (
    Skill("repeat", "Please repeat what I say", _words(2, 5), " ".join),
    Skill("reverse", "Write these in reverse order", _words(2, 4), lambda a: " ".join(reversed(a))),
    Skill("first", "Tell me the first word of this list", _words(3, 6), lambda a: a[0]),
    Skill("last", "Which word comes last", _words(3, 6), lambda a: a[-1]),
    Skill("count", "Can you count these words", _words(2, 7), lambda a: str(len(a))),
    Skill("sort", "I want you to sort the words", _words(2, 4), lambda a: " ".join(sorted(a))),
    Skill("longest", "Find the longest one", _one_longest, lambda a: max(a, key=len)),
    Skill("initials", "Only the initials", _words(2, 5), lambda a: " ".join(w[0].upper() for w in a)),
    Skill("remove", "Remove the opening word and its double", _word_and_list, _without_first),
    Skill("add", "What do you get if you add up", _numbers(2, 50), lambda a: str(sum(map(int, a)))),
    Skill("larger", "Name the larger number", _numbers(2, 100), lambda a: max(a, key=int)),
    Skill("next", "Which number is next", _numbers(1, 10_000), lambda a: str(int(a[0]) + 1)),
)  # fmt: skip

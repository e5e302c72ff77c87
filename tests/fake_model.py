"""A model made of numbers: signals that move when it learns, and a count of who measured them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from coretune.rounds.measurement import Measurement
from coretune.types import Array, Rows

WIDTH = 8


class FakeModel:
    """Signals of n rows as a function of the seed and of `age`, which the test raises when it likes.

    broken  rows whose signals are NaN
    measured:  the rows of every measurement so far
    """

    def __init__(self, n: int, seed: int = 0, drift: float = 0.3) -> None:
        self.n, self.seed, self.drift, self.age = n, seed, drift, 0
        self.mismatched = 4.0  # what a response costs after another prompt; after its own 1
        self.wrong = 1  # of 8 responses, which cost as much after their own prompts
        self.broken: set[int] = set()
        self.measured: list[Rows] = []

    def signal(self, name: str) -> Array:
        """(n, ...) float32: the truth at this age."""
        shape = (self.n, WIDTH) if name.endswith(("embedding", "gradient")) else (self.n,)
        rng = np.random.default_rng([self.seed, *name.encode()])
        start, moves = rng.random(shape), rng.standard_normal((self.age, *shape)).sum(axis=0)
        value = (start + self.drift * moves).astype(np.float32)
        if name == "empty_prompt_loss":
            value += 4  # nobody's prompt is of no use
        if name.endswith("embedding"):
            value /= np.linalg.norm(value, axis=1, keepdims=True)
        value[sorted(self.broken)] = np.nan
        return value

    def measurement(self, *names: str) -> Measurement:
        def measure(rows: Rows) -> Mapping[str, Array]:
            self.measured.append(np.array(rows))
            return {name: self.signal(name)[rows] for name in names}

        def references() -> Mapping[str, Array]:
            other, own = np.full(8, self.mismatched, np.float32), np.ones(8, np.float32)
            own[: self.wrong] = other[: self.wrong]
            known = {"mismatched_loss": other, "matched_loss": own}
            return {**known, "unprompted_loss": np.full(8, 4, np.float32), "pair_tokens": np.full(8, 10)}

        return Measurement(measure, lambda rows: 10.0 * len(rows), references)

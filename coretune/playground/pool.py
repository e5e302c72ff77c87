"""A generated instruction pool with planted copies, wrong answers and an uneven mix of skills.

What is clean, copied or wrong is known but kept apart from the records, so that no selector can see it. The
same seed gives the same pool on every machine, as long as numpy does not change how `Generator` draws.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coretune.files import write_text
from coretune.playground.skills import SKILLS, Skill

Record = dict[str, str]

ZIPF_EXPONENT = 1.2  # [choice] the commonest of twelve skills then holds 39 % of the rows, the rarest 2 %
COPIES_PER_ORIGINAL = 20  # [choice] few originals, so that copies cost a plain draw much variety
HEAD_SKILLS = 3  # copies are made of the commonest skills' rows, as in scraped data
TARGET_ROWS = 5  # trusted rows a skill, for methods that are given a target


@dataclass(frozen=True)
class Playground:
    """A pool and what belongs to it.

    records   the pool: id, prompt, completion, source (the skill)
    labels    id -> "clean" | "copy" | "wrong"; never to be shown to a selector
    held_out  clean rows, equally many a skill; their prompts are not in the pool
    target    clean rows, five a skill; their prompts are neither in the pool nor held out
    """

    records: list[Record]
    labels: Mapping[str, str]
    held_out: list[Record]
    target: list[Record]

    def write(self, folder: Path | str) -> None:
        """Write pool.jsonl, eval.jsonl, labels.jsonl and target.jsonl into the folder; make it if need be."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _write_lines(folder / "pool.jsonl", self.records)
        _write_lines(folder / "eval.jsonl", self.held_out)
        _write_lines(folder / "labels.jsonl", ({"id": id, "kind": kind} for id, kind in self.labels.items()))
        _write_lines(folder / "target.jsonl", self.target)


def make_pool(
    seed: int,
    rows: int = 2000,
    copies: float = 0.3,
    wrong: float = 0.2,
    held_out: int = 30,
    uneven: float = ZIPF_EXPONENT,
) -> Playground:
    """Draw a pool of `rows` rows: the share `copies` are copies, the share `wrong` are wrongly answered.

    Which skills are common and which are rare depends on the seed: the r-th most common has a share ∝
    r^−uneven, so 0 makes all equally common. `held_out` counts rows a skill.
    ValueError when the two shares leave no clean row, or when a skill has too few different prompts.
    """
    copied, wrongly = round(copies * rows), round(wrong * rows)
    clean = rows - copied - wrongly
    if min(copied, wrongly) < 0 or clean < 1:
        raise ValueError(
            f"copies={copies} and wrong={wrong} leave {clean} of {rows} rows clean; "
            "take shares of at least 0 that sum to less than 1"
        )
    rng = np.random.default_rng(seed)
    seen: set[str] = set()
    evaluation = [_new_row(skill, rng, seen) for skill in SKILLS for _ in range(held_out)]
    target = [_new_row(skill, rng, seen) for skill in SKILLS for _ in range(TARGET_ROWS)]

    by_frequency = [SKILLS[i] for i in rng.permutation(len(SKILLS))]
    share = np.arange(1, len(SKILLS) + 1.0) ** -uneven
    drawn = rng.choice(len(SKILLS), size=clean + wrongly, p=share / share.sum())
    distinct = [_new_row(by_frequency[i], rng, seen) for i in drawn]
    right, spoilt = distinct[:clean], _with_foreign_answers(distinct[clean:], distinct, rng)
    head = {skill.name for skill in by_frequency[:HEAD_SKILLS]}
    originals = [row for row in right if row["source"] in head][
        : max(1, copied // COPIES_PER_ORIGINAL)
    ] or right
    again = [originals[i] for i in rng.integers(len(originals), size=copied)]

    kinds = ["clean"] * clean + ["wrong"] * wrongly + ["copy"] * copied
    pool = [*right, *spoilt, *again]
    order = rng.permutation(rows)
    # Named after shuffling: neither name nor place may tell what was planted.
    ids = [f"row-{place:06d}" for place in range(rows)]
    return Playground(
        records=[{"id": id, **pool[i]} for id, i in zip(ids, order, strict=True)],
        labels={id: kinds[i] for id, i in zip(ids, order, strict=True)},
        held_out=_named("eval", evaluation),
        target=_named("target", target),
    )


def _new_row(skill: Skill, rng: np.random.Generator, seen: set[str]) -> Record:
    """A row of that skill with a prompt not seen before."""
    for _ in range(1000):
        arguments = skill.draw(rng)
        prompt = skill.prompt(arguments)
        if prompt not in seen:
            seen.add(prompt)
            return {"prompt": prompt, "completion": skill.solve(arguments), "source": skill.name}
    raise ValueError(
        f"skill {skill.name!r} has hardly a new prompt left beside the {len(seen)} drawn; ask for fewer rows"
    )


def _with_foreign_answers(rows: list[Record], donors: list[Record], rng: np.random.Generator) -> list[Record]:
    """The rows, each with the answer of some donor whose answer differs from its own."""
    if rows and len({donor["completion"] for donor in donors}) < 2:
        raise ValueError(
            f"{len(donors)} distinct rows all have one answer, so none can be wrong; ask for more rows"
        )
    spoilt = []
    for row in rows:
        answer = row["completion"]
        while answer == row["completion"]:
            answer = donors[rng.integers(len(donors))]["completion"]
        spoilt.append({**row, "completion": answer})
    return spoilt


def _named(prefix: str, rows: list[Record]) -> list[Record]:
    return [{"id": f"{prefix}-{place:06d}", **row} for place, row in enumerate(rows)]


def _write_lines(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))

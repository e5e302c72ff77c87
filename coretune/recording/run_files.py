"""Reads a run directory: what was chosen, of what pool, at what cost. Needs no model and no data.

RUN/             weights, checkpoints, model card and logs, as transformers writes and uploads them
RUN/_coretune/   everything else; it holds texts of the pool, and no push takes it along
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from coretune.escaping import first_line
from coretune.files import read_json
from coretune.recording import audit
from coretune.types import SERVES, Array

OWN = "_coretune"  # in output_dir, which `push_to_hub` uploads but for what begins with _ or checkpoint-
POOL, SELECTION, LEDGER, CONFIG = (
    f"{OWN}/{name}" for name in ("pool.parquet", "selection.parquet", "ledger.json", "config.yaml")
)
REPORT, SIGNALS, WARMUP_RUN = f"{OWN}/report.html", f"{OWN}/signals", f"{OWN}/warmup"
CORESET, TARGETS = f"{OWN}/coreset.jsonl", f"{OWN}/targets.json"
SELECTING = f"{OWN}/selecting"  # there while `coretune select` runs: a selection that was cut left it
LOSSES, SPIKES, ROWS = f"{OWN}/losses.json", f"{OWN}/spikes.json", f"{OWN}/rows.json"
HISTORY, METRICS, COMPARISON = "trainer_state.json", "eval_results.json", "compare.json"
#: What is read of pool.parquet, and of compare.json.
POOL_COLUMNS = ("id", "source", "tokens", "prompt_tokens", "prompt", "response", "x", "y", "copies")
COMPARED = ("title", "tables", "curves")
_NUMBERED = re.compile(r"checkpoint-(\d+)")
MAP_FACTS = b"coretune"  # key of pool.parquet's metadata: what the map and the copies are of, as JSON


@dataclass(frozen=True)
class RunFiles:
    """A run directory, also one that is still being written.

    Raises FileNotFoundError, naming the file, where `path` holds no selection or no pool.
    """

    path: Path

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> RunFiles:
        folder = Path(path)
        for name in (SELECTION, POOL):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"{folder} holds no {name}: give the output_dir of a run that has selected at least once"
                )
        return cls(folder)

    @cached_property
    def pool(self) -> pa.Table:
        """One line a pool row (`run_record.py`)."""
        try:
            found = pq.read_table(self.path / POOL, partitioning=None)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(_damaged(self.path / POOL, error)) from None
        absent = [name for name in POOL_COLUMNS if name not in found.column_names]
        if absent or MAP_FACTS not in (found.schema.metadata or {}):
            raise ValueError(_other_version(self.path / POOL, absent))
        return found

    @cached_property
    def map_facts(self) -> dict[str, Any]:
        """embedding, copies_by, and variance_shown where there is a map."""
        facts: dict[str, Any] = json.loads(self.pool.schema.metadata[MAP_FACTS])
        return facts

    @cached_property
    def ids(self) -> list[str]:
        return list(self.pool["id"].to_pylist())

    @cached_property
    def row_of(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.ids)}

    @cached_property
    def examples(self) -> list[dict[str, str]]:
        """Of the run's targets, by their numbers: id, target, prompt, response; [] without a target."""
        if not (self.path / TARGETS).is_file():
            return []
        found: list[dict[str, str]] = read_json(self.path / TARGETS, "remove it")["examples"]
        return found

    def served(self, line: dict[str, Any]) -> dict[str, str] | None:
        """The example that a row of a selection serves; `line` as in selection.parquet."""
        number = line.get(SERVES)
        if number is None or not 0 <= number < len(self.examples):
            return None
        return self.examples[int(number)]

    @cached_property
    def rounds(self) -> list[int]:
        try:
            return audit.round_numbers(self.path / SELECTION)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(_damaged(self.path / SELECTION, error)) from None

    def step_of(self, round: int) -> int | None:
        """The optimiser step before that round; None where no config.yaml says how long a round is."""
        steps = self.config.get("provenance", {}).get("round_steps")
        return None if steps is None else round * int(steps)

    def selection(self, round: int) -> pa.Table:
        """The lines of one selection; ValueError names those there are."""
        if round not in self.rounds:
            raise ValueError(f"{self.path} has no refresh {round}; it has {', '.join(map(str, self.rounds))}")
        return audit.read(self.path / SELECTION, round)

    def chosen(self, round: int) -> list[str]:
        """Ids of that selection's coreset, in the order chosen."""
        lines = self.selection(round).select(["id", "chosen", "rank"])
        lines = lines.filter(lines["chosen"]).sort_by("rank")
        return list(lines["id"].to_pylist())

    @cached_property
    def ledger(self) -> dict[str, Any]:
        """ledger.json; empty where there is none yet."""
        return _json(self.path / LEDGER, ("total", "phases", "rounds"))

    @cached_property
    def losses(self) -> dict[str, Any]:
        """Of each selection by source (`by_source.py`); {} where none was measured."""
        return _json(self.path / LOSSES, ("names", "selections"))

    @cached_property
    def spikes(self) -> list[dict[str, Any]]:
        """Steps whose loss stood out (`spikes.py`)."""
        path = self.path / SPIKES
        found: list[dict[str, Any]] = read_json(path, "remove it") if path.is_file() else []
        return found

    @cached_property
    def account(self) -> dict[str, Any]:
        """What became of the rows that were read (`row_account.py`); {} where a trainer was given rows."""
        return _json(self.path / ROWS, ("kept", "out", "cut", "notes"))

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.yaml; empty where a trainer was used without one."""
        path = self.path / CONFIG
        if not path.is_file():
            return {}
        try:
            return dict(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
        except (yaml.YAMLError, UnicodeDecodeError, ValueError, TypeError) as error:
            raise ValueError(_damaged(path, error)) from None

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """The trainer's log lines: of the finished run, else of its last checkpoint; [] without either."""
        if (self.path / HISTORY).is_file():
            return _lines(_json(self.path / HISTORY))
        for folder in reversed(checkpoints_of(self.path)):
            with suppress(ValueError, OSError):  # cut short by a kill: as if it were not there
                return _lines(_json(folder / HISTORY))
        return []

    @cached_property
    def metrics(self) -> dict[str, float]:
        """What the evaluation after training found; {} where there was none."""
        found: dict[str, float] = _json(self.path / METRICS)
        return found

    @cached_property
    def comparison(self) -> dict[str, Any] | None:
        """The comparison that this run is an arm of, or that was put into its folder; None without one."""
        for folder in (self.path, self.path.resolve().parent):
            if found := _json(folder / COMPARISON, COMPARED):
                return dict(found)
        return None

    def column(self, name: str) -> Array:
        """(n,) of pool.parquet; null numbers become NaN."""
        return np.asarray(self.pool[name].to_numpy(zero_copy_only=False))


def checkpoints_of(output_dir: str | os.PathLike[str]) -> list[Path]:
    """By rising step. A folder with more to its name, as checkpoint-40-backup, is the user's."""
    folder = Path(output_dir)
    found = [
        (int(match[1]), path)
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (match := _NUMBERED.fullmatch(path.name)) and path.is_dir()
    ]
    return [path for _, path in sorted(found)]


def excerpt(texts: Sequence[str | None], row: int, length: int) -> str:
    """The text of a row on one line, cut to `length` characters."""
    text = " ".join((texts[row] or "").split())
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def _lines(state: Any) -> list[dict[str, Any]]:
    if not isinstance(state, dict) or not isinstance(state.get("log_history"), list):
        raise ValueError(f"{HISTORY} is damaged: it holds no log_history; remove the file")
    return state["log_history"]


def _json(path: Path, keys: Sequence[str] = ()) -> dict[str, Any]:
    """{} where there is no such file; ValueError where it is cut, or has not all of `keys`."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__} and no object")
    except ValueError as error:
        raise ValueError(_damaged(path, error)) from None
    if absent := [key for key in keys if key not in found]:
        raise ValueError(_other_version(path, absent))
    return found


def _other_version(path: Path, absent: Sequence[str]) -> str:
    """A run of an earlier version, which wrote less."""
    lacks = f"it has no {', '.join(absent)}" if absent else "it does not say what its map is of"
    return f"{path} is of another version of coretune, {lacks}: read the run with the version that wrote it"


def _damaged(path: Path, error: Exception) -> str:
    """A run's files are written whole or not at all: a copy was cut, or somebody wrote into them."""
    return (
        f"{path} cannot be read, it is damaged: {first_line(error)}; copy the run again, or remove the file"
    )

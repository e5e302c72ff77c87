"""Does every wrong command end in one line, and soon?

    python bench/fuzz.py                        500 mutations of correct commands and their configs
    python bench/fuzz.py --quick --check        60 of them, under a minute; exit 1 if there is a fault
    python bench/fuzz.py --seed 3 --only 17     one of them again, with its config and what it answered

All in one process, so that the libraries are loaded once. An answer is right when training begins (it is
ended there, before the first step), when the command succeeds, when its usage is printed (exit 2), or when
stderr holds one error, `coretune: …`, that somebody wrote a message for. A fault is a traceback, an
unforeseen error, a character that steers the terminal, or an error later than LIMIT seconds (of the
processor: the machine may be busy with other things).
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState, GradientState, PartialState
from command import parser_of
from fuzz_mutations import Mutation, mutation
from transformers import TrainerCallback
from typer.testing import CliRunner

from coretune import run
from coretune.cli import app
from coretune.config import check_config
from coretune.console import UNFORESEEN
from coretune.escaping import shown
from coretune.playground import BASE_MODEL, make_pool

LIMIT = 5.0  # seconds within which an error is reported
PATIENCE = 30  # seconds of the processor after which a command is broken off
MEMORY = 24 << 30  # bytes of address space: a wish for more ends as it would on a small machine


class Begun(BaseException):
    """Training has begun: nothing was wrong, or nothing that can be known before."""


class Endless(BaseException):
    """The command was broken off."""


@dataclass(frozen=True)
class Answer:
    """How a command ended: "begun", "succeeded", "usage", "refused", or a fault in words."""

    end: str
    seconds: float
    output: str

    @property
    def fault(self) -> bool:
        return self.end not in ("begun", "succeeded", "usage", "refused")


class _Stop(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        raise Begun


def base_config(pool: Path) -> dict[str, Any]:
    """A config in which nothing is wrong."""
    return {
        "model_name_or_path": str(BASE_MODEL),
        "train_data": str(pool / "pool.jsonl"),
        "eval_data": str(pool / "eval.jsonl"),
        "output_dir": "run",
        "seed": 1,
        "coreset": {"method": "grace", "budget": "25%", "refresh_every": 2, "refresh": {"warmup": 0, "k": 4}},
        "training": {
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "learning_rate": 1.0e-3,
            "report_to": "none",
            "bf16": False,
        },
        "peft": {"r": 2, "lora_alpha": 4},
    }


def answer(one: Mutation, folder: Path, done: Path) -> Answer:
    """What the command answers; `folder` is its working directory, `done` a finished run."""
    (folder / "config.yaml").write_bytes(one.text)
    data = done.parent / "pool" / "pool.jsonl"
    stands_for = {"CONFIG": "config.yaml", "RUN": str(done), "DATA": str(data), "MODEL": str(BASE_MODEL)}
    arguments = [stands_for.get(argument, argument) for argument in one.arguments]
    began = time.process_time()
    with _apart(folder):
        try:
            result = CliRunner().invoke(app, arguments)
        except Begun:
            return Answer("begun", time.process_time() - began, "")
        except Endless:
            return Answer(f"no answer after {PATIENCE} s", time.process_time() - began, "")
    seconds = time.process_time() - began
    return Answer(_judged(result, seconds), seconds, result.output)


def _judged(result: Any, seconds: float) -> str:
    output = result.output
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return f"traceback: {type(result.exception).__name__}: {result.exception}"
    if UNFORESEEN in output or "Traceback" in output:
        return next(line for line in output.splitlines() if UNFORESEEN in line or "Traceback" in line)
    if any(c != "\n" and shown(c) != c for line in output.splitlines() if "coretune: " in line for c in line):
        return "a character that steers the terminal"
    if seconds > LIMIT and result.exit_code:
        return f"an error after {seconds:.1f} s"
    if result.exit_code == 0:
        return "succeeded"
    if result.exit_code == 2:
        return "usage"
    errors = [line for line in result.stderr.splitlines() if line.startswith("coretune: ")]
    return "refused" if len(errors) == 1 else f"{len(errors)} errors: {errors}"


@contextmanager
def _apart(folder: Path) -> Iterator[None]:
    """In that folder, with nothing of it left in this process, and only for PATIENCE seconds."""

    def broken_off(*_: object) -> None:
        raise Endless

    where, environment, build = Path.cwd(), dict(os.environ), run.build_trainer

    def stopping(config: Any, **stock: Any) -> Any:
        return build(config, **{**stock, "callbacks": [*stock.get("callbacks", []), _Stop()]})

    handler = signal.signal(signal.SIGPROF, broken_off)
    os.chdir(folder)
    run.build_trainer = stopping
    os.environ["HOME"] = str(folder)
    signal.setitimer(signal.ITIMER_PROF, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)
        run.build_trainer = build
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(where)
        for state in (AcceleratorState, PartialState, GradientState):
            state._shared_state.clear()


@contextmanager
def prepared() -> Iterator[tuple[dict[str, Any], Path, Path]]:
    """A base config, a finished run, and a folder to work in."""
    with tempfile.TemporaryDirectory(prefix="coretune-fuzz-") as name:
        home = Path(name)
        make_pool(0, rows=48).write(home / "pool")
        base = base_config(home / "pool")
        with quiet():
            run.train(check_config({**base, "output_dir": str(home / "done")}), on_step=lambda: None)
        yield base, home / "done", home


@contextmanager
def quiet() -> Iterator[None]:
    """The libraries keep their warnings to themselves."""
    said = io.StringIO()
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def fuzz(count: int, seed: int, only: int | None = None) -> Iterator[tuple[int, Mutation, Answer]]:
    """Every mutation with its answer; `only` that one. Each is drawn by its number alone."""
    with prepared() as (base, done, home):
        for number in range(count) if only is None else [only]:
            one = mutation(base, random.Random(f"{seed} {number}"))
            folder = home / f"work-{number}"
            folder.mkdir()
            with quiet():
                found = answer(one, folder, done)
            yield number, one, found
            shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--mutations", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of one mutation")
    parser.add_argument("--quick", action="store_true", help="60 mutations")
    parser.add_argument("--check", action="store_true", help="exit 1 when there is a fault")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    ends: Counter[str] = Counter()
    slowest = 0.0
    for number, one, found in fuzz(60 if args.quick else args.mutations, args.seed, args.only):
        ends["a fault" if found.fault else found.end] += 1
        slowest = max(slowest, 0.0 if found.end == "begun" else found.seconds)
        if found.fault:
            print(f"{number}: {shown(one.what)[:150]}: {shown(found.end)[:400]}", flush=True)
        if args.only is not None:
            print(f"{one.arguments}\n{shown(one.text.decode(errors='replace'), keep=chr(10))[:4000]}")
            print(f"--- {found.end}, {found.seconds:.2f} s\n{found.output[-4000:]}")
    print(
        ", ".join(f"{end}: {times}" for end, times in ends.most_common()), f"; slowest answer {slowest:.1f} s"
    )
    return int(args.check and ends["a fault"] > 0)


if __name__ == "__main__":
    sys.exit(main())

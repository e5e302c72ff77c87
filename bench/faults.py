"""Does a run outlive a kill or a broken disk at any of its file operations?

    python bench/faults.py                      300 operations
    python bench/faults.py --quick --check      12 operations, under a minute; exit 1 names each target missed

A whole `coretune train` with its store, its corpus cache, checkpoints and page, the same of two processes,
one with a warm-up run, and a `coretune compare`: each is run once in peace, and its operations on files are
counted (faults.c, put before the C library, so that those of Arrow, torch and safetensors count too). Then it
is run again and again, each time with a fault at one operation: SIGKILL, with half of the bytes written where
it is a write; a disk that is full from there on; or a single operation that fails with EIO. What is left goes
on as a user would have it go on: with resume_from_checkpoint, or as the one line says that it ended with,
which may name a file to remove. It has failed when its weights differ from those of the run in peace, when it
hangs, when it ends in an error that nobody foresaw, or does not go on after three starts. Needs a C compiler.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import platform
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import typer
from accelerate.state import AcceleratorState
from command import parser_of, tell_missed
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from ways import as_process

from coretune import run
from coretune.comparing.compare import COMPARISON
from coretune.comparing.compare_command import run_comparison
from coretune.config import check_config
from coretune.console import UNFORESEEN, guarded
from coretune.playground import BASE_MODEL, make_pool

FORK = multiprocessing.get_context("fork")  # the libraries take longer to load than the run takes
KILL, FULL, BROKEN = 1, 2, 3
FAULTS = {KILL: "killed", FULL: "disk full", BROKEN: "EIO"}
MOST = 1 << 16  # operations of a run
STARTS = 3  # after the fault
PATIENCE = 20  # seconds that a process waits for another one


class Shared(ctypes.Structure):
    """As in faults.c."""

    _fields_ = (
        ("count", ctypes.c_long),
        ("full", ctypes.c_int),
        ("what", ctypes.c_char * 1024),
        ("modes", ctypes.c_char * MOST),
    )


@dataclass(frozen=True)
class Case:
    """One command: what it does in a folder, and what it is compared by once it is through.

    share  of the operations that meet a fault
    """

    name: str
    share: float
    work: Callable[[Path, bool], object]
    outcome: Callable[[Path], Mapping[str, torch.Tensor]]
    processes: int = 1


def cases(data: Path) -> list[Case]:
    def train(**top: Any) -> Callable[[Path, bool], object]:
        return lambda folder, resume: run.train(
            check_config(settings(data, folder, resume_from_checkpoint=resume, **top))
        )

    def compare(folder: Path, resume: bool) -> object:
        training = {"save_strategy": "no"}
        config = check_config(settings(data, folder, training=training))
        return run_comparison(config, ["random", "grace"], 1, folder / "run", 1, False, bars=False)

    brief = {"method": "brief", "budget": "25%", "refresh": {"warmup": 0.3}}
    brief["signals"] = {"projection_dim": 16, "last_blocks": 1}
    return [
        Case("train", 0.4, train(), trained),
        Case("train, two processes", 0.2, train(training={"ddp_timeout": PATIENCE}), trained, 2),
        Case("train with a warm-up run", 0.2, train(coreset=brief), trained),
        Case("compare", 0.2, compare, compared),
    ]


def settings(data: Path, folder: Path, **top: Any) -> dict[str, Any]:
    training = {
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "bf16": False,
        "save_strategy": "steps",
        "save_steps": 2,
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        **top.pop("training", {}),
    }
    grace = {
        "method": "grace",
        "budget": "25%",
        "refresh_every": 2,
        "refresh": {"k": 4, "defer_first_measurement": False},
    }
    return {
        "model_name_or_path": str(data / "model"),
        "train_data": str(data / "pool.jsonl"),
        "eval_data": str(data / "eval.jsonl"),
        "output_dir": str(folder / "run"),
        "corpus_dir": str(folder / "corpora"),
        "signals_dir": str(folder / "signals"),
        "coreset": grace,
        "peft": {"r": 2, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"]},
        "training": training,
        **top,
    }


def trained(folder: Path) -> Mapping[str, torch.Tensor]:
    return load_file(folder / "run" / "adapter_model.safetensors")


def compared(folder: Path) -> Mapping[str, torch.Tensor]:
    """The arms' metrics: compare keeps no weights."""
    results = json.loads((folder / "run" / COMPARISON).read_text(encoding="utf-8"))["results"]
    return {
        f"{result['arm']} {name}": torch.tensor(value)
        for result in results
        for name, value in result["metrics"].items()
    }


def prepare(data: Path) -> None:
    """A pool and a model so small that a run takes seconds."""
    make_pool(0, rows=32, held_out=8).write(data)
    tokenizer = AutoTokenizer.from_pretrained(BASE_MODEL)
    tokenizer.save_pretrained(data / "model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(data / "model")


def worker(case: Case, folder: Path, resume: bool, rank: int, port: int, fault: tuple[Any, int, int]) -> None:
    """One process of the command; what it says goes beside the folder that meets the fault."""
    if case.processes > 1:
        as_process(rank, case.processes, port)
    torch.set_num_threads(1)
    shared, how, at = fault
    place = ctypes.create_string_buffer(os.fsencode(folder))
    library = ctypes.CDLL(os.environ["LD_PRELOAD"])
    library.faults_arm(ctypes.byref(shared), place, how, ctypes.c_long(at))
    with open(f"{folder}.said-{rank}", "w", encoding="utf-8") as said:
        os.dup2(said.fileno(), 2)
        with redirect_stdout(said), redirect_stderr(said):
            try:
                run.quiet()
                guarded(lambda: case.work(folder, resume), traceback=False)
            except typer.Exit as ended:
                said.flush()
                os._exit(ended.exit_code)
    os._exit(0)


@dataclass
class Start:
    """One start of a case's processes in a folder; with a fault at operation `at`, or with none."""

    case: Case
    folder: Path
    resume: bool
    limit: float
    how: int = 0
    at: int = -1
    shared: Any = field(init=False)
    hung: bool = False
    line: str = ""

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.shared = multiprocessing.RawValue(Shared)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        fault = (self.shared, self.how, self.at)
        self.workers = [
            FORK.Process(target=worker, args=(self.case, self.folder, self.resume, rank, port, fault))
            for rank in range(self.case.processes)
        ]
        for process in self.workers:
            process.start()
        self._wait()

    def _wait(self) -> None:
        """Until all have ended; as a launcher does, the others are stopped once one has failed."""
        until = time.monotonic() + self.limit
        while (codes := [process.exitcode for process in self.workers]) and None in codes:
            self.hung = time.monotonic() > until
            if self.hung or any(codes):
                for process in self.workers:
                    if process.exitcode is None:
                        process.kill()
            time.sleep(0.01)
        for process in self.workers:
            process.join()
        self.line = self._last_line()

    @property
    def met(self) -> bool:
        return bool(self.shared.what)

    @property
    def passed(self) -> bool:
        return not any(process.exitcode for process in self.workers)

    def _last_line(self) -> str:
        """What process 0, or the one that failed by itself, ended with."""
        texts = [Path(f"{self.folder}.said-{rank}") for rank in range(self.case.processes)]
        lines = [line for path in texts if path.is_file() for line in path.read_text("utf-8").splitlines()]
        return next((line for line in reversed(lines) if line.startswith("coretune: ")), "")

    @property
    def spoken(self) -> bool:
        """Whether it ended by a signal that was meant for it, or in a line that somebody wrote."""
        killed = self.how == KILL and -signal.SIGKILL in [process.exitcode for process in self.workers]
        return self.passed or killed or (self.line != "" and UNFORESEEN not in self.line)


def goes_on(case: Case, folder: Path, limit: float, first: Start) -> tuple[str, Counter[str]]:
    """ "" once it is through, else what is wrong; and what was done on the way."""
    done: Counter[str] = Counter()
    start = first
    for _ in range(STARTS + 1):
        if start.hung:
            return "hung", done
        if not start.spoken:
            return f"unforeseen: {start.line or 'no line'}", done
        if start.passed:
            return "", done
        resume = "train without resume_from_checkpoint" not in start.line
        named = [
            Path(word) for word in re.findall(r"[^\s'():;,]+", start.line) if word.startswith(str(folder))
        ]
        wanted = next((path for path in named if path.exists()), None)
        if start is not first and "remove" in start.line and wanted is not None:
            shutil.rmtree(wanted) if wanted.is_dir() else wanted.unlink()
            done["named what to remove"] += 1
        start = Start(case, folder, resume, limit)
    return f"does not go on: {start.line}", done


def differs(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> bool:
    return found.keys() != expected.keys() or any(
        not torch.equal(value, expected[name]) for name, value in found.items()
    )


def _warm(case: Case, folder: Path) -> None:
    """Here, so that the forked processes need not load what is loaded late, nor compile it."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        run.quiet()
        case.work(folder, False)
    AcceleratorState._reset_state(reset_partial_state=True)
    shutil.rmtree(folder)


def examine(case: Case, home: Path, operations: int, draw: random.Random, console: Console) -> Counter[str]:
    """Counts of what happened."""
    counts: Counter[str] = Counter()
    _warm(case, home / "warm")
    began = time.perf_counter()
    peace = Start(case, home / "peace", False, 600)
    if not peace.passed:
        raise RuntimeError(f"{case.name}, in peace: {peace.line}")
    seconds = time.perf_counter() - began
    expected, total = case.outcome(home / "peace"), peace.shared.count
    modes = ctypes.string_at(ctypes.addressof(peace.shared) + Shared.modes.offset, total).decode()
    counts["operations of a run"], counts["seconds"] = total, round(seconds)
    for number in range(operations):
        at = (total * number + draw.randrange(total)) // operations
        how = draw.choice([KILL, KILL, FULL, BROKEN] if modes[at] == "w" else [KILL, KILL, BROKEN])
        folder = home / f"{number}"
        limit = 60 + 20 * seconds
        start = Start(case, folder, False, limit, how, at)
        if not start.met:
            counts["not reached"] += 1
        counts[FAULTS[how]] += 1
        wrong, done = goes_on(case, folder, limit, start)
        if not wrong and differs(case.outcome(folder), expected):
            wrong = "other weights"
        counts["operations"] += 1
        counts += done
        counts["ended in a line"] += start.line != "" and not start.passed
        counts[wrong.partition(":")[0]] += bool(wrong)
        if wrong:
            what = start.shared.what.decode(errors="replace")
            console.print(f"{case.name}, operation {at}, {FAULTS[how]} at {what}: {wrong}", soft_wrap=True)
            console.print(f"  the fault itself ended in: {start.line}", soft_wrap=True)
        shutil.rmtree(folder, ignore_errors=True)
        for said in home.glob(f"{number}.said-*"):
            said.unlink()
    return counts


TARGETS = ("other weights", "hung", "unforeseen", "does not go on")
SHOWN = ("operations of a run", "seconds", "operations", *FAULTS.values(), "not reached")
SHOWN += ("ended in a line", "named what to remove", *TARGETS)


def report(found: Mapping[str, Counter[str]], console: Console) -> list[str]:
    """Prints the table; returns a line for each target missed."""
    table = Table("what", *found, "target")
    for name in SHOWN:
        target = "0" if name in TARGETS else ""
        table.add_row(name, *(str(counts[name]) for counts in found.values()), target)
    console.print(table)
    return [
        f"{case}: {name} {counts[name]}, target 0"
        for case, counts in found.items()
        for name in TARGETS
        if counts[name]
    ]


def preload() -> None:
    """Start again with faults.c before the C library; it does nothing until a worker arms it."""
    folder = tempfile.mkdtemp(prefix="coretune-faults-")
    library, source = f"{folder}/faults.so", Path(__file__).with_suffix(".c")
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, str(source), "-ldl"], check=True)
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "LD_PRELOAD": library})


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--operations", type=int, default=300)
    parser.add_argument("--case", help="only the case of this name")
    parser.add_argument("--folder", help="where the runs go for the while; default: the temporary directory")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="12 operations")
    parser.add_argument("--check", action="store_true", help="exit 1 and name each target missed")
    options = parser.parse_args()
    if "faults.so" not in os.environ.get("LD_PRELOAD", ""):
        preload()
    console = Console(width=160)
    console.print(f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}")
    home = Path(tempfile.mkdtemp(prefix="coretune-faults-", dir=options.folder))
    found: dict[str, Counter[str]] = {}
    try:
        prepare(home / "data")
        for number, case in enumerate(cases(home / "data")):
            if options.case in (None, case.name):
                many = round((12 if options.quick else options.operations) * case.share)
                draw = random.Random(options.seed + number)
                found[case.name] = examine(case, home / f"case-{number}", many, draw, console)
    finally:
        shutil.rmtree(home, ignore_errors=True)
        shutil.rmtree(Path(os.environ["LD_PRELOAD"]).parent, ignore_errors=True)
    return tell_missed(report(found, console), options.check)


if __name__ == "__main__":
    sys.exit(main())

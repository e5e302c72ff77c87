"""Which architectures can be trained on a coreset, and are their rows' gradients right?

    python bench/architectures.py --check              every one, about a quarter of an hour on two cores
    python bench/architectures.py --quick --check      a dozen, one run each way
    python bench/architectures.py --write              also writes the table of docs/architectures.md
    python bench/architectures.py --only llama rwkv    these alone

Tiny random models of transformers' own configs (`architecture_models.py`). Each is trained by grace, brief,
gtp and less, all weights and LoRA (on all linear layers; where that is refused, on attention alone): it runs,
or is refused in one line before anything is trained, a warm-up run too. Anything else is a fault. Each row's
gradient is compared with a backward pass of that row alone.
"""

from __future__ import annotations

import io
import json
import logging
import math
import multiprocessing
import os
import re
import sys
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from architecture_models import ARCHITECTURES, POSITIONS, QUICK, VOCABULARY, make
from command import parser_of, tell_missed
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models
from torch import nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig

from coretune import CoresetSFTTrainer, coreset
from coretune.measure.parameters import choose
from coretune.measure.settings import MeasureSettings
from coretune.measure.signals import measurer
from coretune.recording.run_files import WARMUP_RUN
from coretune.rounds.sampler import PreparedRows
from coretune.training.model_cost import has_formulas
from coretune.types import IGNORED

METHODS = ("grace", "brief", "gtp", "less")
TRAINED = ("all weights", "LoRA")
RIGHT = 1e-3  # the largest relative difference of a gradient's norm that is right
ROWS = 16
ATTENTIVE = re.compile(r"att(n|ention)|mixer|temporal_block", re.IGNORECASE)  # where LoRA is put otherwise
PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"
MARKS = "<!-- table of bench/architectures.py --write -->", "<!-- end -->"
RUNS, ATTENTION, REFUSED, FAULT = "runs", "attention", "refused", "fault"


@dataclass
class Found:
    """What one architecture does.

    cells      "LoRA, less" -> runs; attention: with LoRA there alone; refused; fault
    reasons    the same -> why not
    gradients  "LoRA" -> the largest relative difference of a row's gradient norm; None: refused
    """

    name: str
    kind: str
    counted: bool
    cells: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    gradients: dict[str, float | None] = field(default_factory=dict)

    @property
    def faults(self) -> list[str]:
        wrong = [name for name, gap in self.gradients.items() if gap is not None and not gap <= RIGHT]
        return [
            *(
                f"{self.name}, {cell}: {self.reasons[cell]}"
                for cell, what in self.cells.items()
                if what == FAULT
            ),
            *(f"{self.name}, {name}: gradients differ by {self.gradients[name]:.1e}" for name in wrong),
        ]


# ----------------------------------------------------------------------------------------------- one cell


def pool() -> datasets.Dataset:
    """Rows of random tokens, of unlike lengths, with a prompt each."""
    draw, rows = np.random.default_rng(0), []
    for _ in range(ROWS):
        tokens = draw.integers(3, VOCABULARY, size=int(draw.integers(8, 24))).tolist()
        rows.append({"input_ids": tokens, "labels": [IGNORED] * 4 + tokens[4:]})
    return datasets.Dataset.from_list(rows)


def tokenizer() -> PreTrainedTokenizerFast:
    words = {name: i for i, name in enumerate(["<pad>", "<s>", "</s>", *map(str, range(3, VOCABULARY))])}
    plain = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def adapter(model: Any, attention: bool) -> LoraConfig:
    """LoRA on all linear layers but the head, or on those of attention alone."""
    linear = [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, (nn.Linear, transformers.pytorch_utils.Conv1D)) and ATTENTIVE.search(name)
    ]
    if "mamba" in model.config.model_type:  # PEFT refuses the one, and the mixer never calls the other
        linear = [name for name in linear if not name.endswith(("out_proj", "dt_proj"))]
    return LoraConfig(r=2, target_modules=linear if attention else "all-linear", task_type="CAUSAL_LM")


def trainer(name: str, method: str, peft: LoraConfig | None, folder: Path) -> Any:
    rows = pool()
    args = SFTConfig(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=2,
        max_length=POSITIONS,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    return CoresetSFTTrainer(
        model=make(name),
        args=args,
        train_dataset=rows,
        processing_class=tokenizer(),
        peft_config=peft,
        coreset=coreset(method, budget=4, refresh={"warmup": 0.5} if method in ("brief", "gtp") else {}),
        target=PreparedRows.of(rows.select(range(4))) if method == "less" else None,
    )


def run(name: str, method: str, peft: LoraConfig | None) -> tuple[str, str]:
    """What became of it, and why."""
    with tempfile.TemporaryDirectory(prefix="coretune-architecture-") as home:
        made = None
        try:
            with redirect_stdout(io.StringIO()):  # the trainers' own lines, a warm-up run's too
                made = trainer(name, method, peft, Path(home))
                made.train()
            return RUNS, ""
        except ValueError as error:
            reason = str(error)
            begun = made is not None and made.state.global_step > 0
            if "\n" in reason:
                return FAULT, f"more than a line: {reason[:200]!r}"
            if begun or list((Path(home) / WARMUP_RUN).glob("checkpoint-*")):
                return FAULT, f"refused after something was trained: {reason}"
            return REFUSED, reason
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            return (
                FAULT,
                f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno}: {str(error)[:200]}",
            )


def gap(name: str, peft: LoraConfig | None) -> float | None:
    """The largest relative difference of a row's gradient norm to a backward pass of that row alone, over the
    parameters that count; None where they are refused."""
    model, rows = make(name), PreparedRows.of(pool())
    try:
        model = model if peft is None else get_peft_model(model, peft)
    except ValueError:
        return None
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:  # else A has no gradient
            torch.nn.init.normal_(parameter, std=0.3)
    settings = MeasureSettings(last_blocks=None, projection_dim=16)
    asked = np.arange(6)
    try:
        choice = choose(model, None, settings.parameters)
        measure = measurer(model, rows, ["gradient_norm"], settings, pad_token_id=0, bos_token_id=1)
        found = measure(asked)["gradient_norm"]
    except ValueError:
        return None
    parameters = dict(model.named_parameters())
    leaves = [parameters[one].requires_grad_() for one in choice.names]
    model.eval()
    expected = []
    for tokens, labels in zip(rows.tokens(asked), rows.labels(asked), strict=True):
        ids, targets = torch.from_numpy(np.asarray(tokens)).long()[None], torch.from_numpy(np.asarray(labels))
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        loss = functional.cross_entropy(logits, targets[1:].long())
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        expected.append(sum(float(g.square().sum()) for g in gradients if g is not None) ** 0.5)
    return float(np.max(np.abs(found - expected) / np.maximum(expected, 1e-12)))


# ------------------------------------------------------------------------------------------ one architecture


def examined(name: str, quick: bool) -> Found:
    """quick: all weights with grace and gtp, LoRA with less alone."""
    logging.disable(logging.CRITICAL)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    model = make(name)
    found = Found(name, type(model).__name__, has_formulas(model))
    for trained in TRAINED:
        adapters = [None] if trained == "all weights" else [adapter(model, False), adapter(model, True)]
        for method in METHODS:
            cell = f"{trained}, {method}"
            if quick and cell not in ("all weights, grace", "all weights, gtp", "LoRA, less"):
                continue
            for which, peft in enumerate(adapters):
                what, why = run(name, method, peft)
                if what != RUNS:
                    found.reasons[cell] = why
                found.cells[cell] = what if what != RUNS or which == 0 else ATTENTION
                if what != REFUSED:
                    break
        if not quick or trained == "LoRA":
            try:
                found.gradients[trained] = gap(name, adapters[-1])
            except Exception as error:
                found.gradients[trained] = math.inf
                print(f"{name}, {trained}, gradients: {error!r}")
    return found


def all_of(names: Sequence[str], quick: bool, workers: int, kept: Path | None) -> list[Found]:
    """In so many processes; what `kept` holds is not made again."""
    lines = kept.read_text(encoding="utf-8").splitlines() if kept is not None and kept.is_file() else []
    known = {line["name"]: Found(**line) for line in map(json.loads, lines)}
    left = [name for name in names if name not in known]
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, mp_context=fork) as hands:
        for found in hands.map(examined, left, [quick] * len(left)):
            known[found.name] = found
            print(f"{found.name}: {'; '.join(found.faults) or 'as it should be'}", flush=True)
            if kept is not None:
                with kept.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(found)) + "\n")
    return [known[name] for name in names]


# ------------------------------------------------------------------------------------------------- the page


def table(everything: Sequence[Found]) -> str:
    """In Markdown, with the reasons below."""
    notes: list[str] = []
    lines = [
        "| architecture | all weights | LoRA | largest error of a gradient | FLOPs |",
        "|---|---|---|---|---|",
    ]
    for found in sorted(everything, key=lambda one: one.name):
        cells = [_cell(found, trained, notes) for trained in TRAINED]
        gaps = [gap for gap in found.gradients.values() if gap is not None]
        error = f"{max(gaps):.0e}" if gaps else "refused"
        flops = "counted" if found.counted else "unknown"
        lines.append(f"| {found.name} | {cells[0]} | {cells[1]} | {error} | {flops} |")
    numbered = [f"{number}. {note}" for number, note in enumerate(notes, 1)]
    return "\n".join([*lines, "", *numbered])


def _cell(found: Found, trained: str, notes: list[str]) -> str:
    """ "all four", or who runs and who does not, with the number of the note that says why."""
    groups: dict[tuple[str, str], list[str]] = {}
    for method in METHODS:
        cell = f"{trained}, {method}"
        what = found.cells.get(cell, "")
        why = _general(found.reasons.get(cell, ""), found)
        groups.setdefault((what, why), []).append(method)
    parts = []
    for (what, why), methods in groups.items():
        who = "all four" if len(methods) == len(METHODS) else ", ".join(methods)
        if why and why not in notes:
            notes.append(why)
        told = {
            RUNS: who,
            ATTENTION: f"{who} on attention",
            REFUSED: f"{who}: refused",
            FAULT: f"{who}: FAULT",
        }
        parts.append(told[what] + (f" [{notes.index(why) + 1}]" if why else ""))
    return "; ".join(parts)


def _general(reason: str, found: Found) -> str:
    """A reason without what only this model has: its class, and a layer's name."""
    reason = reason.replace(f"a {found.kind}", "the model").replace(found.kind, "the model")
    reason = re.sub(r"'(base_model\.|model\.|transformer\.)[\w.]+'", "'…'", reason)
    return reason.partition("; known types")[0]


def write(everything: Sequence[Found]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    PAGE.write_text(f"{before}{MARKS[0]}\n\n{table(everything)}\n\n{MARKS[1]}{after}", encoding="utf-8")


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--only", nargs="+", choices=ARCHITECTURES, metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="a dozen, in part")
    parser.add_argument("--write", action="store_true", help="write the page's table")
    parser.add_argument("--kept", type=Path, help="a file of findings, which are not made again")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--check", action="store_true", help="exit 1 and name each fault")
    options = parser.parse_args()
    names = options.only or (QUICK if options.quick else list(ARCHITECTURES))
    everything = all_of(names, options.quick, options.workers, options.kept)
    if not options.quick:
        print(table(everything))
    if options.write:
        write(everything)
    return tell_missed([fault for found in everything for fault in found.faults], options.check)


if __name__ == "__main__":
    sys.exit(main())

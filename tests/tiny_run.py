"""A model, a pool and a trainer so small that a whole run takes a second."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_tokenizer import tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM
from trl import SFTConfig

from coretune.data.corpus import Corpus
from coretune.filters.cooldown import Cooldown
from coretune.filters.duplicates import Duplicates
from coretune.filters.noise import Noise
from coretune.measure.settings import MeasureSettings
from coretune.rounds.budget import parse_budget
from coretune.rounds.coreset_config import CoresetConfig
from coretune.rounds.refresh_settings import AnchorRefresh
from coretune.select import SELECTORS
from coretune.training.train import CoresetSFTTrainer
from coretune.types import UsesCheckpoints

WORDS = ("one", "two", "six", "ten", "red", "blue", "green", "ant", "bee", "cat", "dog", "sun", "moon", "sea")
LENGTH = 96  # positions of the model


@cache
def model_folder(template: bool = True) -> Path:
    """Two Llama blocks of width 32 with their tokenizer, always the same weights."""
    folder = Path(tempfile.mkdtemp(prefix="tiny-model-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tokenizer = tiny_tokenizer() if template else tiny_tokenizer(None)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def records(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """n rows, all different."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(n):
        words = [WORDS[i] for i in rng.choice(len(WORDS), size=rng.integers(1, 4))]
        prompt = f"say {number}: {' '.join(words)}"
        rows.append({"id": f"row-{number:03d}", "prompt": prompt, "completion": " ".join(words[::-1])})
    return rows


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@cache
def corpus(n: int = 48, seed: int = 0) -> Corpus:
    folder = Path(tempfile.mkdtemp(prefix="tiny-pool-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = write_jsonl(folder / "pool.jsonl", records(n, seed))
    return Corpus.build(path, tiny_tokenizer(), max_length=LENGTH, cache_dir=folder / "cache")


def coreset_config(method: str = "grace", **settings: Any) -> CoresetConfig:
    """A quarter of the pool, a new coreset every 2 steps, no warm-up; refresh settings beside the others.

    Signals are measured as the method asks for. GRACE comes with its preset's filters, and measures its
    candidates although these models tell nothing.
    """
    settings = {**settings.pop("refresh", {}), **settings}
    refresh = {key: settings.pop(key) for key in list(settings) if key in AnchorRefresh.__dataclass_fields__}
    budget = parse_budget(settings.pop("budget", "25%"))
    selector = SELECTORS[method]()
    asked = selector.defaults.get("signals", {}) if isinstance(selector, UsesCheckpoints) else {}
    settings = {"refresh_every": 2, "warmup": 0.0, "seed": 0, "signals": MeasureSettings(**asked), **settings}
    if method == "grace":
        ours = (Duplicates(), Noise(pairs=8, min_auc=0.0), Cooldown(by="loss"))
        settings = {"filters": ours, **settings}
    return CoresetConfig(selector, AnchorRefresh(**{"k": 4, **refresh}), budget, **settings)


def arguments(folder: Path, **training: Any) -> SFTConfig:
    settings = {
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "dataloader_pin_memory": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        **training,
    }
    return SFTConfig(output_dir=str(folder), **settings)


class Spy(CoresetSFTTrainer):
    """Records, by id, the rows of every batch that were really trained on."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.trained: list[list[str]] = []
        ids = self.pool_rows.ids
        tokens = self.pool_rows.tokens(np.arange(len(ids)))
        self.name_of = {tuple(row.tolist()): name for name, row in zip(ids, tokens, strict=True)}

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        rows = [
            tuple(ids[mask.bool()].tolist())
            for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        ]
        self.trained.append([self.name_of[row] for row in rows])
        return super().training_step(model, inputs, *args, **kwargs)


def trainer(
    folder: Path,
    coreset: CoresetConfig | None = None,
    *,
    pool: Corpus | None = None,
    kind: Any = Spy,
    **settings: Any,
) -> Any:
    """A trainer on `pool`; `settings` are those of the trainer and, for the rest, of SFTConfig."""
    pool = pool or corpus()
    own = (
        "model",
        "rows",
        "train_dataset",
        "eval_dataset",
        "measuring",
        "target",
        "peft_config",
        "callbacks",
        "optimizers",
        "signals_dir",
    )
    stock = {name: settings.pop(name) for name in own if name in settings}
    stock = {"rows": pool, "model": str(model_folder()), "train_dataset": pool.dataset, **stock}
    return kind(
        args=arguments(folder, **settings),
        processing_class=tiny_tokenizer(),
        coreset=coreset or coreset_config(),
        **stock,
    )


def weights(trainer: CoresetSFTTrainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}

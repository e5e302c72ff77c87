"""The arms of bench/measure.py: each signal, the training steps beside it, and the batch-1 path of LESS."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
from trl.trainer.utils import add_fused_lm_head

from coretune.measure import passes
from coretune.measure.moments import Moments
from coretune.measure.online import ONLINE_SIGNALS, OnlineReader
from coretune.measure.project import generator, rademacher
from coretune.measure.settings import MeasureSettings
from coretune.measure.signals import measurer
from coretune.types import IGNORED

LENGTH, PROMPT = 256, 128
PROJECTION_DIM, LESS_DIM = 1024, 8192
LESS_INTERVAL, LESS_BLOCK = 16, 100  # gradients projected together, columns of the projection made at once
LESS_RANK = 128  # of the adapter that LESS publishes its cost for; elsewhere RANK
RANK = 16


@dataclass(frozen=True)
class Size:
    """A Llama of that shape; heads are (query, key and value)."""

    hidden: int
    intermediate: int
    layers: int
    heads: tuple[int, int]
    vocabulary: int
    tied: bool


SIZES = {
    "3m": Size(192, 512, 6, (3, 3), 4096, True),
    "15m": Size(384, 1024, 8, (6, 6), 4096, True),
    "1b": Size(2048, 8192, 16, (32, 8), 128256, True),
    "8b": Size(4096, 14336, 32, (32, 8), 128256, False),
}

STEP, LORA_STEP = "training step", "LoRA training step"
LORA_ALL = "gradient, LoRA, all blocks"
LORA_WIDE = "gradient, LoRA, all, to 8,192"
LORA_PAPER = "gradient, LoRA 128, all, to 8,192"
LESS, LESS_WIDE = "batch 1, dense projection", "batch 1, dense, to 8,192"
LESS_PAPER = "batch 1, dense, LoRA 128, to 8,192: LESS"
TRL_STEP, ONLINE = "TRL step", "TRL step, online"
TRL_LORA, ONLINE_LORA = "TRL step, LoRA", "TRL step, LoRA, online"


class RandomRows:
    """Rows of one length, as a corpus gives them."""

    def __init__(self, n: int, vocabulary: int) -> None:
        self.ids = np.random.default_rng(0).integers(3, vocabulary, (n, LENGTH))
        self.prompt_length = np.full(n, PROMPT)

    def tokens(self, rows: np.ndarray) -> list[np.ndarray]:
        return list(self.ids[rows])

    def labels(self, rows: np.ndarray) -> list[np.ndarray]:
        return list(np.where(np.arange(LENGTH) < PROMPT, IGNORED, self.ids[rows]))


@dataclass(frozen=True)
class Bench:
    """The options, as every arm needs them."""

    size: str
    batch: int
    device: str
    precision: str
    attention: str

    @cached_property
    def full(self) -> Any:
        return self._random_model()

    @cached_property
    def adapted(self) -> Any:
        return self._with_adapter(self._random_model(), RANK)

    @cached_property
    def adapted_as_less(self) -> Any:
        return self._with_adapter(self._random_model(), LESS_RANK)

    @cached_property
    def fused(self) -> Any:
        """With TRL's output head, which never makes all logits at once."""
        model = self._random_model()
        add_fused_lm_head(model)
        return model

    @cached_property
    def fused_adapted(self) -> Any:
        model = self._random_model()
        add_fused_lm_head(model)
        return self._with_adapter(model, RANK)

    def _with_adapter(self, model: Any, rank: int) -> Any:
        """LoRA on the attention, B random: while B is zero, A has no gradient."""
        targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, task_type="CAUSAL_LM")
        model = get_peft_model(model, config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.02)
        return model

    def _random_model(self) -> Any:
        size = SIZES[self.size]
        config = LlamaConfig(
            vocab_size=size.vocabulary,
            hidden_size=size.hidden,
            intermediate_size=size.intermediate,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads[0],
            num_key_value_heads=size.heads[1],
            tie_word_embeddings=size.tied,
            attn_implementation=self.attention,
        )
        torch.manual_seed(0)
        weights = torch.bfloat16 if self.device == "cuda" and self.precision == "bfloat16" else torch.float32
        with torch.device(self.device):
            return LlamaForCausalLM(config).to(weights)

    @property
    def rows(self) -> RandomRows:
        return RandomRows(self.batch, SIZES[self.size].vocabulary)

    @property
    def autocast(self) -> str | None:
        return "bfloat16" if self.precision == "bfloat16" and self.device == "cpu" else None

    def inputs(self) -> dict[str, torch.Tensor]:
        ids = torch.from_numpy(self.rows.ids).to(self.device)
        labels = ids.clone()
        labels[:, :PROMPT] = -100
        return {"input_ids": ids, "labels": labels}

    # ------------------------------------------------------------------------------------------------ arms

    def train(self, model: Any) -> Callable[[], object]:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer, inputs = torch.optim.AdamW(trained, lr=1e-6), self.inputs()

        def step() -> None:
            model.train()
            with passes.autocasting(torch.device(self.device), self.autocast):
                loss = model(**inputs).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    def trl_step(self, model: Any, online: bool) -> Callable[[], object]:
        """SFTTrainer's loss and AdamW, without its bookkeeping; online: all that a step shows."""
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer, inputs = torch.optim.AdamW(trained, lr=1e-6), self.inputs()
        rows, attention = torch.arange(self.batch), torch.ones_like(inputs["input_ids"])
        online = OnlineReader(model, ONLINE_SIGNALS, self.settings(2, PROJECTION_DIM)) if online else None

        def step() -> None:
            model.train()
            watching = online.watching(rows, inputs["labels"], attention, 0) if online else nullcontext()
            with watching:
                with passes.autocasting(torch.device(self.device), self.autocast):
                    log_probs = model(**inputs, fused_lm_head=True).log_probs
                (-log_probs.sum() / (self.batch * (LENGTH - PROMPT))).backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    def forward(self, model: Any) -> Callable[[], object]:
        ids = self.inputs()["input_ids"]

        def run() -> None:
            with torch.no_grad(), passes.autocasting(torch.device(self.device), self.autocast):
                model.eval()(input_ids=ids, use_cache=False)

        return run

    def signals(
        self, model: Any, names: list[str], last_blocks: int | None = 2, dim: int = PROJECTION_DIM
    ) -> Callable[[], object]:
        rows, settings = self.rows, self.settings(last_blocks, dim)
        measure = measurer(model, rows, names, settings, pad_token_id=0, bos_token_id=1)
        return partial(measure, np.arange(self.batch))

    def by_adam(self, model: Any, names: list[str]) -> Callable[[], object]:
        """BRIEF's look: by Adam's moments after one step, in all blocks, to 8,192 dimensions."""
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)
        model(**self.inputs()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        settings = replace(self.settings(None, LESS_DIM), preconditioner="adam")
        moments = Moments.of(optimizer, model)
        measure = measurer(model, self.rows, names, settings, pad_token_id=0, bos_token_id=1, moments=moments)
        return partial(measure, np.arange(self.batch))

    def less(self, model: Any) -> Callable[[], object]:
        """One example at a time: the gradients of the adapter, joined, 16 rows of them together.

        So does LESS (Xia et al. 2024). What it does with them next is `less_block`, once for every 100 of
        the dimensions.
        """
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        inputs = self.inputs()

        def run() -> None:
            model.eval()
            kept = []
            for i in range(self.batch):
                with passes.autocasting(torch.device(self.device), self.autocast):
                    loss = model(**{name: value[i : i + 1] for name, value in inputs.items()}).loss
                kept.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained)]))
                if len(kept) == LESS_INTERVAL or i == self.batch - 1:
                    torch.stack(kept)
                    kept = []

        return run

    def less_block(self, model: Any) -> Callable[[], object]:
        """16 gradients through 100 columns of a dense ±1 projection, drawn anew.

        That is the projector which TRAK (Park et al. 2023) has for CPUs: all columns do not fit into memory.
        """
        size = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        gradients = torch.randn(LESS_INTERVAL, size, device=self.device)

        def run() -> None:
            gradients @ rademacher(size, LESS_BLOCK, generator(0, "block")).to(self.device)

        return run

    def settings(self, last_blocks: int | None, dim: int) -> MeasureSettings:
        return MeasureSettings(
            last_blocks, projection_dim=dim, batch_tokens=self.batch * LENGTH, autocast=self.autocast
        )


#: Name -> what prepares the arm; calling what it returns measures or trains on the batch once.
ARMS: dict[str, Callable[[Bench], Callable[[], object]]] = {
    STEP: lambda b: b.train(b.full),
    LORA_STEP: lambda b: b.train(b.adapted),
    "forward pass": lambda b: b.forward(b.full),
    "embeddings": lambda b: b.signals(b.full, ["response_embedding", "prompt_embedding"]),
    "loss": lambda b: b.signals(b.full, ["loss"]),
    "loss and embeddings": lambda b: b.signals(b.full, ["loss", "response_embedding", "prompt_embedding"]),
    "head_gradient": lambda b: b.signals(b.full, ["head_gradient"]),
    "unconditional_loss, loss": lambda b: b.signals(b.full, ["loss", "unconditional_loss"]),
    "gradient_norm": lambda b: b.signals(b.full, ["gradient_norm"]),
    "gradient": lambda b: b.signals(b.full, ["gradient"]),
    "gradient_norm, all blocks": lambda b: b.signals(b.full, ["gradient_norm"], None),
    "gradient_norm, LoRA": lambda b: b.signals(b.adapted, ["gradient_norm"]),
    "gradient, LoRA": lambda b: b.signals(b.adapted, ["gradient"]),
    LORA_ALL: lambda b: b.signals(b.adapted, ["gradient"], None),
    LORA_WIDE: lambda b: b.signals(b.adapted, ["gradient"], None, LESS_DIM),
    LORA_PAPER: lambda b: b.signals(b.adapted_as_less, ["gradient"], None, LESS_DIM),
    "gradient by Adam, LoRA, all, to 8,192": lambda b: b.by_adam(b.adapted, ["gradient"]),
    "kn and if by Adam, LoRA, all, to 8,192": lambda b: b.by_adam(b.adapted, ["kn_gradient", "if_gradient"]),
    TRL_STEP: lambda b: b.trl_step(b.fused, False),
    ONLINE: lambda b: b.trl_step(b.fused, True),
    TRL_LORA: lambda b: b.trl_step(b.fused_adapted, False),
    ONLINE_LORA: lambda b: b.trl_step(b.fused_adapted, True),
}

#: Name -> (model, dimension) of the path that takes rows one by one; timed in its two parts.
SLOW_ARMS: dict[str, tuple[Callable[[Bench], Any], int]] = {
    LESS: (lambda b: b.adapted, PROJECTION_DIM),
    LESS_WIDE: (lambda b: b.adapted, LESS_DIM),
    LESS_PAPER: (lambda b: b.adapted_as_less, LESS_DIM),
}

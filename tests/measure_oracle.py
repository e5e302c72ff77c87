"""Tiny random models, ragged rows, and the slow obvious measurement: autograd, one example at a time."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from coretune.measure.moments import Moments

VOCABULARY, PAD, BOS = 53, 0, 1


class RaggedRows:
    """The members of a corpus that a measurement reads; without `label_rows` all behind a prompt counts."""

    def __init__(
        self,
        token_rows: Sequence[Sequence[int]],
        prompt_length: Sequence[int],
        label_rows: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.token_rows = [np.asarray(row, dtype=np.int32) for row in token_rows]
        self.prompt_length = np.asarray(prompt_length, dtype=np.int64)
        if label_rows is None:
            pairs = zip(self.token_rows, self.prompt_length, strict=True)
            label_rows = [np.where(np.arange(len(ids)) < start, -100, ids) for ids, start in pairs]
        self.label_rows = [np.asarray(row, dtype=np.int64) for row in label_rows]

    def tokens(self, rows: np.ndarray) -> list[np.ndarray]:
        return [self.token_rows[i] for i in rows]

    def labels(self, rows: np.ndarray) -> list[np.ndarray]:
        return [self.label_rows[i] for i in rows]


def rows_of_turns(n: int, seed: int) -> RaggedRows:
    """Rows of several turns: labels with holes, a first token that counts, one row whose labels are other
    tokens than its own."""
    rng = np.random.default_rng(seed)
    tokens = [rng.integers(2, VOCABULARY, rng.integers(6, 25)) for _ in range(n)]
    labels = [np.where(rng.random(len(row)) < 0.4, row, -100) for row in tokens]
    for row, wanted in zip(tokens, labels, strict=True):
        wanted[-1] = row[-1]
    labels[0][:3], labels[1][-1] = tokens[0][:3], 2
    first = [int(np.argmax(row != -100)) for row in labels]
    return RaggedRows(tokens, first, labels)


def random_rows(n: int, seed: int, longest: int = 24) -> RaggedRows:
    """Rows of 2 to `longest` tokens, each with at least one response token; some without a prompt."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, longest + 1, n)
    return RaggedRows(
        [rng.integers(2, VOCABULARY, length) for length in lengths],
        [int(rng.integers(0, n)) for n in lengths],
    )


def tiny_model(family: str, attention: str = "sdpa", seed: int = 0) -> torch.nn.Module:
    """llama, llama-lora (A and B random), gpt2 and qwen2 (tied heads); three blocks, in train mode."""
    torch.manual_seed(seed)
    common = {"vocab_size": VOCABULARY, "attn_implementation": attention}
    small = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    model: torch.nn.Module
    if family == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=3, n_head=4, n_positions=64, **common))
    elif family == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(tie_word_embeddings=True, **small, **common))
    else:
        model = LlamaForCausalLM(LlamaConfig(**small, **common))
    for parameter in model.parameters():  # random norms and biases too, or their gradients hide mistakes
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    if family == "llama-lora":
        targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
        config = LoraConfig(
            r=3, lora_alpha=6, target_modules=targets, lora_dropout=0.3, task_type="CAUSAL_LM"
        )
        model = get_peft_model(model, config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.3)
    return model.train()


def chosen_names(model: torch.nn.Module, last_blocks: int | None, parameters: str) -> list[str]:
    """Names of the parameters that count, listed by hand for the models above."""
    blocks = range(3) if last_blocks is None else range(3 - last_blocks, 3)
    if parameters == "trainable":
        trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        return [n for n in trainable if last_blocks is None or any(f".{block}." in n for block in blocks)]
    adapted = any("lora_" in name for name, _ in model.named_parameters())
    kinds = ("lora_A", "lora_B") if adapted else ("self_attn.o_proj.weight", "attn.c_proj.weight")
    return [
        name
        for name, _ in model.named_parameters()
        if any(f".{block}." in name for block in blocks) and any(kind in name for kind in kinds)
    ]


def oracle(
    model: torch.nn.Module,
    rows: RaggedRows,
    last_blocks: int | None,
    parameters: str = "adapter_or_attention",
) -> list[dict[str, torch.Tensor | dict[str, torch.Tensor]]]:
    """Of each row, alone and by autograd: losses with and without the prompt, the chosen gradients of both,
    the loss of each response token in both, and embeddings.
    """
    names = chosen_names(model, last_blocks, parameters)
    model = copy.deepcopy(model).eval().requires_grad_(False)
    leaves = [leaf.requires_grad_(True) for name, leaf in model.named_parameters() if name in names]
    found = []
    for tokens, labels in zip(rows.token_rows, rows.label_rows, strict=True):
        ids, targets = torch.from_numpy(tokens).long()[None], torch.from_numpy(labels)
        counted = [t for t in range(1, len(tokens)) if labels[t] != -100]
        start = counted[0] if counted[0] > 1 else len(tokens)  # without a prompt it is the whole row
        output = model(input_ids=ids, output_hidden_states=True)
        before = [t - 1 for t in counted]
        nats = functional.cross_entropy(output.logits[0, before].float(), targets[counted], reduction="none")
        loss = nats.mean()
        hidden = output.hidden_states[-1][0]
        alone = torch.cat([torch.tensor([[BOS]]), ids[:, counted]], 1)
        nats_alone = functional.cross_entropy(
            model(input_ids=alone).logits[0, :-1].float(), targets[counted], reduction="none"
        )
        unconditional = nats_alone.mean()
        gradients = torch.autograd.grad(loss, leaves)
        kn_gradients = torch.autograd.grad(unconditional, leaves)
        found.append(
            {
                "loss": loss.detach(),
                "response_embedding": functional.normalize(hidden[counted].mean(0), dim=0).detach(),
                "prompt_embedding": functional.normalize(hidden[:start].mean(0), dim=0).detach(),
                "unconditional_loss": unconditional.detach(),
                "gradients": dict(zip(names, gradients, strict=True)),
                "kn_gradients": dict(zip(names, kn_gradients, strict=True)),
                "nats": nats.detach(),
                "nats_alone": nats_alone.detach(),
            }
        )
    return found


def ordinary_moments(model: torch.nn.Module, rows: RaggedRows) -> Moments:
    """AdamW's own, of the trainable parameters, after a step on each row; the weights stay where they are."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0)
    for tokens in rows.token_rows:
        ids = torch.from_numpy(tokens).long()[None]
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return Moments.of(optimizer, model)


def random_moments(model: torch.nn.Module, seed: int) -> Moments:
    """Of every parameter; nothing of them fits together, so nothing can be mistaken for something else."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    first = {name: 0.02 * torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    second = {name: (1e-3 * torch.randn(shape, generator=draw)) ** 2 for name, shape in shapes.items()}
    return Moments(first, second, beta1=0.8, beta2=0.95, epsilon=1e-6, step=7)


def preconditioned(
    kind: str, gradients: dict[str, torch.Tensor], moments: Moments
) -> dict[str, torch.Tensor]:
    """By the formulas, in float64."""
    found = {}
    for name, gradient in gradients.items():
        g, m, v = (t.double() for t in (gradient, moments.first[name], moments.second[name]))
        if kind == "adam":
            b1, b2 = moments.beta1, moments.beta2
            g = (b1 * m + (1 - b1) * g) / torch.sqrt(b2 * v + (1 - b2) * g**2 + 1e-8)
        elif kind == "linear":
            g = g / (torch.sqrt(v / (1 - moments.beta2**moments.step)) + moments.epsilon)
        found[name] = g
    return found


def stacked(found: list[dict], name: str) -> np.ndarray:
    return torch.stack([row[name] for row in found]).numpy()


def flat_gradients(found: list[dict]) -> np.ndarray:
    """(n, all chosen parameters) float32."""
    return np.stack([torch.cat([g.flatten() for g in row["gradients"].values()]).numpy() for row in found])


def assert_close(found: np.ndarray, expected: np.ndarray, bound: float = 1e-4) -> None:
    """Relative to the expected array's own size, row by row."""
    assert found.shape == expected.shape
    assert np.isfinite(found).all()
    size = np.abs(expected).reshape(len(expected), -1).max(1)
    gap = np.abs(found - expected).reshape(len(expected), -1).max(1)
    assert (gap <= bound * size + 1e-7).all(), (gap / size).max()

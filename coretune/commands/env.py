"""What a bug report needs: versions, devices, the machine, the config."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from coretune import __version__
from coretune.installed import versions_of
from coretune.secrets import is_secret, without_secrets

PACKAGES = (
    *("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "safetensors"),
    *("numpy", "scipy", "numba", "faiss-cpu", "pyarrow", "pydantic", "ray", "bitsandbytes", "deepspeed"),
    *("flash-attn", "liger-kernel", "kernels", "lm-eval", "wandb", "mlflow", "trackio", "tensorboard"),
)
#: Beginnings of environment variables that change what these packages do.
VARIABLES = (
    "ACCELERATE_",
    "CUDA_",
    "HF_",
    "MKL_",
    "NCCL_",
    "NUMBA_",
    "OMP_",
    "PYTORCH_",
    "TOKENIZERS_",
    "TRANSFORMERS_",
)
GIB = 1 << 30


def environment(config: str | None) -> dict[str, Any]:
    """Sections of plain values. config: a file, whose content is given without tokens and passwords."""
    found = {
        "coretune": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": versions_of(PACKAGES),
        "devices": _devices(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", "not set"),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / GIB:.1f} GiB",
        "disk_free": f"{shutil.disk_usage(Path.cwd()).free / GIB:.1f} GiB here",
        "variables": dict(_variables(os.environ)),
    }
    if config is not None:
        found["config"] = _config(config)
    return found


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """For an issue: Markdown's lists."""
    for name, value in found.items():
        if isinstance(value, dict) and name != "config":
            yield f"- {name}:" + ("" if value else " none")
            yield from (f"  - {key}: {part}" for key, part in value.items())
        elif isinstance(value, list):
            yield f"- {name}: {'; '.join(value) or 'none, the CPU alone'}"
        elif name != "config":
            yield f"- {name}: {value}"
    if "config" in found:
        from coretune.yaml_text import write

        yield from ("- config:", "", "```yaml", *write(found["config"]).splitlines(), "```")


def _devices() -> list[str]:
    try:
        import torch
    except (ImportError, OSError) as error:  # a broken installation is what the report is about
        return [f"torch cannot be imported ({' '.join(str(error).split())})"]
    if not torch.accelerator.is_available():
        return []
    kind = torch.accelerator.current_accelerator()
    count = torch.accelerator.device_count()
    if kind is None or kind.type != "cuda":
        return [f"{count} × {kind}"]
    known = [torch.cuda.get_device_properties(i) for i in range(count)]
    return [f"{one.name}, {one.total_memory / GIB:.0f} GiB, CUDA {torch.version.cuda}" for one in known]


def _variables(known: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name in sorted(known):
        if name.startswith(VARIABLES) and not is_secret(name):
            yield name, without_secrets(known[name])


def _config(path: str) -> Any:
    from coretune.yaml_text import read_file

    return without_secrets(read_file(path))

"""`coretune env`, completion, and how soon a mistake in a config is reported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import coretune
from coretune.cli import app
from coretune.commands.env import environment

HEAVY = (
    "accelerate",
    "datasets",
    "faiss",
    "peft",
    "pyarrow",
    "scipy.linalg",
    "scipy.sparse",
    "torch",
    "transformers",
    "trl",
)


def test_versions_devices_and_the_config_without_its_secrets_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = tmp_path / "config.yaml"
    path.write_text("output_dir: runs/a\ntraining: {hub_token: hf_secretsecretsecret, max_steps: 3}\n")
    result = CliRunner().invoke(app, ["env", str(path)])
    assert result.exit_code == 0, result.output
    assert f"- coretune: {coretune.__version__}" in result.stdout
    for name in ("torch", "transformers", "trl", "peft"):
        assert f"  - {name}: " in result.stdout
    assert "  - HF_HUB_OFFLINE: 1" in result.stdout
    assert "max_steps: 3" in result.stdout
    assert "secret" not in result.stdout
    document = json.loads(CliRunner().invoke(app, ["env", "--json"]).stdout)
    assert "config" not in document
    assert document["packages"] == environment(None)["packages"]


def test_an_installation_whose_torch_is_broken_is_still_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "torch cannot be imported" in environment(None)["devices"][0]


def command(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    known = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **variables}
    program = f"import sys\nsys.argv[0] = 'coretune'\n{code}"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=known)


def test_a_shell_completes_the_commands() -> None:
    words = {"COMP_WORDS": "coretune pre", "COMP_CWORD": "1", "_CORETUNE_COMPLETE": "complete_bash"}
    told = command("from coretune.cli import main; main()", **words)
    assert told.stdout.split() == ["preview"], told.stderr


def test_a_mistake_in_a_config_is_reported_before_a_heavy_library_is_loaded(tmp_path: Path) -> None:
    """By every command that takes a config; two seconds of processor time for them all."""
    (tmp_path / "config.yaml").write_text("model_name_or_path: a/b\ntrain_data: hub/rows\nmethd: grace\n")
    code = f"""
from typer.testing import CliRunner
from coretune.cli import app
for name in ("train", "select", "preview", "plan", "compare"):
    result = CliRunner().invoke(app, [name, {str(tmp_path / "config.yaml")!r}])
    print(result.exit_code, result.stderr.strip())
print(sorted({set(HEAVY)!r} & set(sys.modules)))
"""
    before = os.times()
    *lines, loaded = command(code, OMP_NUM_THREADS="1").stdout.splitlines()
    after = os.times()
    assert loaded == "[]"
    assert len(lines) == 5
    for line in lines:
        assert line.startswith("1 coretune: unknown key methd, did you mean 'coreset.method'?")
    assert sum(after[i] - before[i] for i in (2, 3)) < 2

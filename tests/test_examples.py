"""The examples: accelerate's own loader takes every configuration, and the script is as its page says."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

EXAMPLES = Path(__file__).parents[1] / "examples"
CONFIGS = {
    "ddp": "MULTI_GPU",
    "ddp_cpu": "MULTI_CPU",
    "fsdp": "FSDP",
    "zero2": "DEEPSPEED",
    "zero3": "DEEPSPEED",
}


@pytest.mark.parametrize("name", CONFIGS)
def test_accelerate_takes_the_configuration(name: str) -> None:
    path = EXAMPLES / "accelerate" / f"{name}.yaml"
    config = load_config_from_file(str(path))  # unknown keys are an error
    assert str(config.distributed_type).endswith(CONFIGS[name])
    assert config.num_processes == 2
    if name.startswith("zero"):
        assert config.deepspeed_config["zero_stage"] == int(name[-1])
    if name == "fsdp":
        assert config.fsdp_config["fsdp_version"] == 2


def test_every_configuration_is_named_here_and_in_the_documentation() -> None:
    assert {path.stem for path in (EXAMPLES / "accelerate").glob("*.yaml")} == set(CONFIGS)
    page = (EXAMPLES.parent / "docs" / "trainer.md").read_text(encoding="utf-8")
    for name in CONFIGS:
        assert f"accelerate/{name}.yaml" in page


def test_the_script_is_a_stock_script_with_one_argument_more() -> None:
    tree = ast.parse((EXAMPLES / "train.py").read_text(encoding="utf-8"))
    call = next(
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "CoresetSFTTrainer"
    )
    assert {keyword.arg for keyword in call.keywords} == {"model", "args", "train_dataset", "coreset"}

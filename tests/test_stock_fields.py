"""What the stock classes take is known without importing them, and is what they themselves say."""

from __future__ import annotations

import ast
from dataclasses import MISSING, fields
from typing import Any

import pytest
from peft import LoraConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as MAPPING
from trl import SFTConfig

from coretune.stock_fields import LORA, SFT, adapters, defaults, field_types, first_wrong, wrong_value

STOCK = [(SFTConfig, SFT), *((made, adapters().get(str(kind.value))) for kind, made in MAPPING.items())]


@pytest.mark.parametrize(("stock", "classes"), STOCK)
def test_every_field_is_known_and_takes_its_own_default(stock: Any, classes: Any) -> None:
    types = field_types(classes)
    assert set(types) == set(stock.__dataclass_fields__)
    for field in fields(stock):
        value = field.default if field.default_factory is MISSING else field.default_factory()
        if value is not MISSING:
            assert first_wrong(classes, {field.name: value}) is None, field.name


@pytest.mark.parametrize(("stock", "classes"), [(SFTConfig, SFT), (LoraConfig, LORA)])
def test_defaults_that_are_written_out_are_those_of_the_class(stock: Any, classes: Any) -> None:
    read = defaults(classes)
    own = {field.name: field.default for field in fields(stock) if field.default is not MISSING}
    assert {name: own[name] for name in read} == read
    assert len(read) > 0.9 * len(own)


@pytest.mark.parametrize(("stock", "classes"), [(SFTConfig, SFT), (LoraConfig, LORA)])
def test_every_field_of_a_number_refuses_text(stock: Any, classes: Any) -> None:
    types, numbers = field_types(classes), 0
    for _name, annotation in types.items():
        names = {part.id for part in ast.walk(annotation) if isinstance(part, ast.Name)}
        if names & {"int", "float", "bool"} and not names & {"str", "Any", "dict", "Literal", "list"}:
            numbers += 1
            assert "give" in str(wrong_value(annotation, "fast"))
            assert "give" in str(wrong_value(annotation, [1]))
    assert numbers >= 7


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("learning_rate", "1e-3 ", "give a number"),
        ("max_steps", "200", "give a whole number"),
        ("max_steps", True, "give a whole number"),
        ("max_steps", None, "give a whole number"),
        ("bf16", "yes", "give true or false or null"),
        ("lr_scheduler_kwargs", [1], "give text or a mapping or null"),
        ("learning_rate", 1, None),
        ("report_to", ["wandb"], None),
        ("save_strategy", "no", None),
        ("fsdp", True, None),
        ("fsdp", 3, "give true or false or text or a list or null"),
    ],
)
def test_a_value_of_another_kind_is_refused_with_the_kind(name: str, value: Any, remedy: str | None) -> None:
    assert wrong_value(field_types(SFT)[name], value) == remedy


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize(
    "name", ["per_device_train_batch_size", "gradient_accumulation_steps", "pad_to_multiple_of"]
)
def test_a_number_that_fails_later_is_refused_with_its_least(name: str, value: int) -> None:
    assert first_wrong(SFT, {"max_steps": -1, name: value}) == (name, "give at least 1")
    assert first_wrong(SFT, {name: 1}) is None
    assert first_wrong(LORA, {"r": value}) == ("r", "give at least 1")

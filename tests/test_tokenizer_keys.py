"""Keys of `training` that the tokenizer and the model are loaded by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from run_configs import CORESET, TRAINING, config, raw_config
from section_config import made
from tiny_run import model_folder, records, write_jsonl
from tiny_tokenizer import TEMPLATE, tiny_tokenizer
from transformers import AutoConfig, AutoTokenizer

from coretune import run
from coretune.config import ConfigError, check_config
from coretune.training.sections import training_arguments
from coretune.training.tokenizers import READ, load_tokenizer, longest_row, read_here, row_tokenizer

# ------------------------------------------------------------------------------------ the tokenizer's keys


def template_with(mark: str) -> str:
    """The tests' template with another mark before each turn."""
    turn = mark.replace("ROLE", "{{ m['role'] }}") + "{{ '\\n' }}"
    begin = mark.replace("ROLE", "assistant") + "{{ '\\n' }}"
    return TEMPLATE.replace("<|{{ m['role'] }}|>", turn).replace("<|assistant|>", begin)


@pytest.fixture(scope="module")
def other_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "other.jinja"
    path.write_text(template_with("[ROLE]"))
    return path


def test_a_template_file_reaches_the_rows_and_what_is_saved(tmp_path: Path, other_template: Path) -> None:
    write_jsonl(tmp_path / "pool.jsonl", records(12))
    training = {**TRAINING, "chat_template_path": str(other_template), "max_steps": 2, "save_strategy": "no"}
    top = {"coreset": {"method": "random", "budget": "50%"}, "eval_data": None, "peft": None}
    trainer = run.build_trainer(config(tmp_path, tmp_path / "run", training=training, **top))
    text = trainer.processing_class.decode(trainer.pool_rows.tokens([0])[0])
    assert text.startswith("<s>[user]\nsay ")
    trainer.save_model(str(tmp_path / "saved"))
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template == other_template.read_text()


def test_a_tokenizer_as_template_gives_the_rows_the_tokens_that_trl_gives_the_model(tmp_path: Path) -> None:
    source = tiny_tokenizer(template_with("<|turn|>ROLE"))
    source.add_tokens(["<|turn|>", "<|end|>"], special_tokens=True)
    source.eos_token = "<|end|>"
    source.save_pretrained(tmp_path / "source")
    write_jsonl(tmp_path / "pool.jsonl", records(12))
    training = {**TRAINING, "chat_template_path": str(tmp_path / "source"), "max_steps": 2}
    top = {"coreset": {"method": "random", "budget": "50%"}, "eval_data": None, "peft": None}
    trainer = run.build_trainer(config(tmp_path, tmp_path / "run", training=training, **top))
    ids = trainer.pool_rows.tokens([0])[0].tolist()
    tokenizer = trainer.processing_class
    turn, end = tokenizer.convert_tokens_to_ids(["<|turn|>", "<|end|>"])
    assert ids.count(turn) == 2
    assert ids.count(end) == 1
    record = trainer.pool_rows.record(0)
    said = [
        {"role": "user", "content": record["prompt"]},
        {"role": "assistant", "content": record["completion"]},
    ]
    assert tokenizer.apply_chat_template(said)["input_ids"] == ids
    assert trainer.model.get_input_embeddings().weight.shape[0] > max(ids)


def test_eos_and_padding_tokens_are_those_asked_for() -> None:
    args = training_arguments(made({"eos_token": "<|tool|>", "pad_token": "<|system|>"}))
    tokenizer = load_tokenizer(str(model_folder()), args)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|tool|>", "<|system|>")
    assert row_tokenizer(tokenizer, args) is tokenizer
    for name in ("eos_token", "pad_token"):
        args = training_arguments(made({name: "<none>"}))
        with pytest.raises(
            ConfigError, match=f"training.{name} is '<none>', which the tokenizer does not have"
        ):
            load_tokenizer(str(model_folder()), args)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/nowhere/x.jinja", "which cannot be read"),
        ("/nowhere", r"neither a .jinja or .j2 file nor a tokenizer"),
    ],
)
def test_a_template_that_is_not_there_is_refused(path: str, says: str) -> None:
    args = training_arguments(made({"chat_template_path": path}))
    with pytest.raises(ConfigError, match=says):
        row_tokenizer(load_tokenizer(str(model_folder()), args), args)


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({}, {"trust_remote_code": False}),
        ({"trust_remote_code": True}, {"trust_remote_code": True}),
        (
            {"model_init_kwargs": {"revision": "dev", "token": "t", "dtype": "float32"}},
            {"revision": "dev", "token": "t", "trust_remote_code": False},
        ),
        ({"model_init_kwargs": {"trust_remote_code": True}}, {"trust_remote_code": True}),
    ],
)
def test_tokenizer_and_config_are_loaded_as_the_model_is(
    monkeypatch: pytest.MonkeyPatch, training: dict[str, Any], expected: dict[str, Any]
) -> None:
    asked: dict[Any, dict[str, Any]] = {}
    for kind in (AutoTokenizer, AutoConfig):
        through = kind.from_pretrained

        def watched(name: str, _kind: Any = kind, _through: Any = through, **settings: Any) -> Any:
            asked[_kind] = settings
            return _through(name)

        monkeypatch.setattr(kind, "from_pretrained", watched)
    args = training_arguments(made(training))
    load_tokenizer(str(model_folder()), args)
    assert longest_row(str(model_folder()), args) == 96
    assert asked[AutoTokenizer] == expected
    assert {**asked[AutoConfig], **expected} == asked[AutoConfig]


# ------------------------------------------------------------------------------------ columns of the pool


def test_a_mapped_column_that_the_pool_has_not_is_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "pool.jsonl", records(12))
    asked = raw_config(tmp_path, tmp_path / "run", columns={"source": "kind"}, coreset=CORESET)
    with pytest.raises(
        ConfigError, match=r"columns.source is 'kind', and no row of .*pool.jsonl has that column"
    ):
        run.build_trainer(check_config(asked))


@pytest.mark.parametrize(
    "training",
    [{}, {"max_length": 40, "model_init_kwargs": '{"revision": "main"}', "eos_token": "</s>"}],
)
def test_what_the_tokenizer_needs_of_training_is_read_without_the_stock_class(
    training: dict[str, Any],
) -> None:
    stock, light = training_arguments(made(training)), read_here(training)
    assert vars(light) == {name: getattr(stock, name) for name in READ}


def test_model_arguments_that_are_no_mapping_are_refused_without_the_stock_class() -> None:
    with pytest.raises(ConfigError, match="model_init_kwargs is a text that is no JSON object"):
        read_here({"model_init_kwargs": "[1]"})

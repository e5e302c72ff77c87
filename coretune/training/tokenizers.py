"""The model's tokenizer and the longest row, as the section `training` has them.

Knows transformers, and neither its trainers nor TRL, whose import takes several times as long.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from coretune.adapter_folder import base_of, holds_adapter
from coretune.config import ConfigError, mapping_of
from coretune.data.sources import is_path
from coretune.escaping import first_line
from coretune.stock_fields import SFT, defaults

#: What from_pretrained of a tokenizer and of a config take of `model_init_kwargs`.
WHERE = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
TEMPLATES = (".jinja", ".j2")
#: Fields of SFTConfig that are read here.
READ = (
    "chat_template_path",
    "eos_token",
    "max_length",
    "model_init_kwargs",
    "pad_token",
    "trust_remote_code",
)


def read_here(training: Mapping[str, Any]) -> SimpleNamespace:
    """Of a `training` section what the functions here read of an SFTConfig, without importing that class."""
    values: dict[str, Any] = {
        name: training.get(name, default) for name, default in defaults(SFT).items() if name in READ
    }
    values["model_init_kwargs"] = mapping_of(values["model_init_kwargs"])
    return SimpleNamespace(**values)


def load_tokenizer(name: str, args: Any = None) -> Any:
    """The model's tokenizer with a padding token, and with what `training` says of it.

    Of an adapter's folder its own, else that of its base. ConfigError when there is no such model, or no such
    token or template.
    """
    if holds_adapter(name) and not any(Path(name).glob("tokenizer*")):
        name = base_of(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **loaded_from(args))
    except (OSError, ValueError) as error:
        raise ConfigError(_no_model(name, error)) from None
    if args is not None:
        _set_tokens(tokenizer, args)
        if args.chat_template_path is not None and _is_template(args.chat_template_path):
            tokenizer.chat_template = _read_template(args.chat_template_path)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ConfigError(f"the tokenizer of {name} has neither a padding nor an EOS token; set one")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def row_tokenizer(tokenizer: Any, args: Any) -> Any:
    """The tokenizer as TRL's trainer will leave it, for the rows, which are tokenised before.

    A `chat_template_path` that is a tokenizer brings its tokens and its EOS along. TRL adds them to
    tokenizer and
    model at once, and what it finds added it does not train; so here they are added to a copy.
    """
    source = args.chat_template_path
    if source is None or _is_template(source):
        return tokenizer
    try:
        found = AutoTokenizer.from_pretrained(
            source, trust_remote_code=False
        )  # TRL runs no code of it either
        template = found.get_chat_template()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"training.chat_template_path is {source}, and it is neither a {' or '.join(TEMPLATES)} file "
            "nor a "
            f"tokenizer with a chat template: {first_line(error)}"
        ) from None
    told = copy.deepcopy(tokenizer)
    told.chat_template = template
    told.add_tokens([t for t in found.added_tokens_decoder.values() if t.content not in told.get_vocab()])
    told.eos_token = found.eos_token
    return told


def longest_row(name: str, args: Any) -> int:
    """Tokens that a row may hold: SFTConfig's max_length, and never more than the model has positions for."""
    kwargs = {**(args.model_init_kwargs or {}), **loaded_from(args)}
    try:
        positions = (
            AutoConfig.from_pretrained(base_of(name), **kwargs).get_text_config().max_position_embeddings
        )
    except AttributeError:  # state-space models have no positions to run out of
        positions = None
    except (OSError, ValueError) as error:
        raise ConfigError(_no_model(name, error, "config")) from None
    limits = [limit for limit in (args.max_length, positions) if limit is not None]
    if not limits:
        raise ConfigError("training.max_length is null and the model sets no limit; give a number of tokens")
    return int(min(limits))


def loaded_from(args: Any) -> dict[str, Any]:
    """Where and how a tokenizer is loaded: as the model is. Its own Python runs if the config says true."""
    if args is None:
        return {"trust_remote_code": False}
    kwargs = args.model_init_kwargs or {}
    found = {name: kwargs[name] for name in WHERE if name in kwargs}
    return {**found, "trust_remote_code": kwargs.get("trust_remote_code", args.trust_remote_code) is True}


def _set_tokens(tokenizer: Any, args: Any) -> None:
    for name in ("eos_token", "pad_token"):
        token = getattr(args, name)
        if token is None:
            continue
        if token not in tokenizer.get_vocab():
            raise ConfigError(
                f"training.{name} is {token!r}, which the tokenizer does not have: give one that it has"
            )
        setattr(tokenizer, name, token)


def _is_template(path: str) -> bool:
    return path.endswith(TEMPLATES)


def _read_template(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"training.chat_template_path is {path}, which cannot be read: {error}") from None


def _no_model(name: str, error: Exception, what: str = "tokenizer") -> str:
    if not Path(name).is_dir() and is_path(name):
        return f"model_name_or_path is {name}, and there is no such folder; give a model folder or a hub id"
    if "trust_remote_code" in str(error):
        return (
            f"model_name_or_path is {name}, which brings Python code of its own for its {what}, and nobody "
            "allowed that to run: read it, then set training.trust_remote_code=true"
        )
    return f"model_name_or_path is {name}, and no {what} can be loaded from it: {first_line(error)}"

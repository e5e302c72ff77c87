"""What a run was made of, in the config that it writes: `config.yaml` replays the run, or says what is other.

provenance:
  versions:      of packages: another one is named in a warning
  inputs:        of rows, held-out rows, targets, sources under a quota, model and its config, tokenizer,
                 adapter, and of every other file or folder that the config names: another one is refused
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from coretune import __version__
from coretune.config import PROVENANCE, ConfigError, RunConfig
from coretune.data.corpus import Corpus
from coretune.storing.fingerprint import checksum
from coretune.storing.inputs import DATA, MODEL, contents
from coretune.training.identity import config_settings
from coretune.training.mixin import CoresetMixin

log = logging.getLogger("coretune")
VERSIONS = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "faiss-cpu", "numpy")
#: Of what a fingerprint is, and what restores it; other inputs are named by their setting.
REMEDIES = {
    "data": "train_data, its tokenizer, max_length or eval_fraction",
    "held_out": "eval_data",
    "target": "target_data",
    "file": "evaluate.file",
    "sources": "the sources of train_data, which the quota goes by",
    "model": "the weights of model_name_or_path",
    "model_config": "config.json or the attention of model_name_or_path",
    "tokenizer": "the tokenizer of model_name_or_path",
    "adapter": "the settings in peft",
}


def provenance(config: RunConfig, trainer: CoresetMixin) -> dict[str, Any]:
    """Of a trainer that has not trained; asked of process 0."""
    pool = trainer.pool_rows
    assert isinstance(pool, Corpus)
    return {
        "versions": {"coretune": __version__, **{name: version(name) for name in VERSIONS}},
        "train_data": pool.fingerprint,
        "inputs": inputs_of(config, trainer),
        "rows": len(pool.ids),
        "max_steps": trainer.args.max_steps,
        "round_steps": trainer.schedule.steps,
    }


def inputs_of(config: RunConfig, trainer: CoresetMixin) -> dict[str, str]:
    """Name -> hex. Of rows, model and tokenizer as they are in memory: a copy elsewhere is the same."""
    known = {
        **trainer.resumption.parts,
        "held_out": "none" if trainer.held_out is None else trainer.held_out.fingerprint,
        "model_config": checksum(json.dumps(config_settings(trainer.model), sort_keys=True).encode()),
    }
    named: dict[str, list[str]] = {}
    for setting, _, content in contents(config.model_dump()):
        if setting not in (*MODEL, *DATA) or setting == "file":  # evaluate.file, which no corpus here is of
            named.setdefault(setting, []).append(content)
    return {**known, **{setting: " ".join(found) for setting, found in named.items()}}


def refuse_other_data(then: Mapping[str, Any], pool: Corpus) -> None:
    """ConfigError before a model is loaded."""
    if then.get("train_data") != pool.fingerprint:
        raise ConfigError(
            f"train_data has fingerprint {pool.fingerprint[:16]}, the run to replay had "
            f"{str(then.get('train_data'))[:16]}: data, tokenizer, max_length or eval_fraction differ; "
            f"restore them, or remove `{PROVENANCE}` from the config to train on what is there now"
        )


def refuse_other_inputs(then: Mapping[str, Any], now: Mapping[str, str]) -> None:
    """ConfigError naming each input that is not what it was; a warning for each other version."""
    for name, old in then.get("versions", {}).items():
        new = __version__ if name == "coretune" else version(name)
        if new != old:
            log.warning("the run to replay used %s %s, here is %s: results may differ", name, old, new)
    before: Mapping[str, str] = then.get("inputs", {})
    other = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if other:
        faults = [
            f"{REMEDIES.get(name, name)} ({str(before.get(name))[:16]} then, {str(now.get(name))[:16]} here)"
            for name in other
        ]
        raise ConfigError(
            f"the run to replay had other inputs: {'; '.join(faults)}. Restore them, or remove "
            f"`{PROVENANCE}` from the config to train on what is there now"
        )

"""Which settings nobody else may read: tokens, keys and passwords."""

from __future__ import annotations

import json
import re
from typing import Any

HIDDEN = "(hidden)"
#: The last word of a key that grants access; `eos_token`, `max_new_tokens` and the like grant none.
_SECRET = re.compile(
    r"(?:^|[_\-.])(?:password|passwd|passphrase|secrets?|credentials?|bearer|authorization|cookie"
    r"|(?:api|access|private|secret|signing|encryption|account|aws|wandb)[_\-]?key(?:_id)?"
    r"|(?:auth|hub|access|api|hf|refresh|session|secret|private|wandb|github|use_auth|security)[_\-]?token"
    r"|pat)s?$|(?:^|[.])tokens?$",
    re.IGNORECASE,
)
#: What hubs give out, and a password within an address.
_TOKEN = re.compile(r"\b(?:hf_|sk-|ghp_|github_pat_|api_org_)[A-Za-z0-9_\-]{16,}")
_ADDRESS = re.compile(r"(?<=://)[^/\s@:]*:[^/\s@]+@")


def is_secret(key: str) -> bool:
    return _SECRET.search(key) is not None


def without_secrets(value: Any) -> Any:
    """A copy of a config's plain values in which no key grants access, and no text holds a known kind of
    token. A text that is a JSON object, as `model_init_kwargs` may be, is looked through too."""
    if isinstance(value, dict):
        return {key: without_secrets(part) for key, part in value.items() if not is_secret(str(key))}
    if isinstance(value, list | tuple):
        return [without_secrets(part) for part in value]
    if not isinstance(value, str):
        return value
    try:
        inner = json.loads(value) if value.lstrip().startswith("{") else None
    except (ValueError, RecursionError):
        inner = None
    if isinstance(inner, dict):
        clean = without_secrets(inner)
        return value if clean == inner else json.dumps(clean)
    return _ADDRESS.sub("", _TOKEN.sub(HIDDEN, value))

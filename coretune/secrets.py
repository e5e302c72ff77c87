"""Which settings nobody else may read: tokens, keys and passwords."""

from __future__ import annotations

import json
import re
from typing import Any

HIDDEN = "(hidden)"
#: The last words of a key that grants access.
_SECRET = re.compile(
    r"(?:^|[_\-.])(?:password|passwd|pwd|passphrase|secret|credential|bearer|authorization|auth|cookie|jwt|pat"
    r"|(?:auth|hub|access|api|hf|refresh|session|private|github|security)[_\-]?token"
    r"|(?:api|access|private|secret|signing|encryption|account|aws|wandb)[_\-]?key(?:_id)?)s?$"
    r"|(?:^|[_\-.])token$|(?:^|[.])tokens$",
    re.IGNORECASE,
)
#: Tokens that are text of a model, or are counted: those grant none.
_TEXT = re.compile(
    r"(?:^|[_\-.])(?:bos|eos|pad|unk|cls|sep|mask|image|video|audio|bo[ia]|eo[ia]|special|think|per|stop|end"
    r"|start|router|decoder)[_\-]token$",
    re.IGNORECASE,
)
_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")  # within clientSecret
#: What hubs and clouds give out, what stands in an address before the host, and in its query.
_TOKEN = re.compile(
    r"\b(?:hf_|sk-|ghp_|gho_|github_pat_|api_org_|glpat-|xox[abprs]-)[A-Za-z0-9_\-]{10,}|\bAKIA[0-9A-Z]{16}\b"
    r"|(?<=Bearer )\S{8,}"
)
_ADDRESS = re.compile(r"(?<=://)[^/\s@]+@")
_QUERY = re.compile(r"(?<=[?&])([^=&\s#]+)=[^&\s#]+")


def is_secret(key: str) -> bool:
    """Whether a key of this name grants access."""
    words = _WORDS.sub("_", key)
    return _SECRET.search(words) is not None and _TEXT.search(words) is None


def without_secrets(value: Any) -> Any:
    """A copy of a config's plain values in which no key grants access, and no text holds a known kind of
    token. A text that is a JSON object, as `model_init_kwargs` may be, is searched too.
    """
    if isinstance(value, dict):
        kept = {key: part for key, part in value.items() if not is_secret(str(key))}
        return {without_secrets(key): without_secrets(part) for key, part in kept.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(part) for part in value]
    if not isinstance(value, str):
        return value
    try:
        inner = json.loads(value) if value.lstrip().startswith(("{", "[")) else None
    except (ValueError, RecursionError):
        inner = None
    if isinstance(inner, dict | list):
        clean = without_secrets(inner)
        return value if clean == inner else json.dumps(clean)
    return _QUERY.sub(_of_query, _ADDRESS.sub("", _TOKEN.sub(HIDDEN, value)))


def _of_query(part: re.Match[str]) -> str:
    return f"{part[1]}={HIDDEN}" if is_secret(part[1]) else part[0]

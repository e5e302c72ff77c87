"""What a row may hand to the chat template, and how long its text may be: rows are anybody's.

A template is the tokenizer's or the config's, never a row's. So of a row's `chat_template_kwargs` go through
only names that the tokenizer's own template reads, and none that says how a template is applied.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from coretune.data.formats import BadRow

#: Of apply_chat_template itself (transformers 5.23) and of every template; and the special tokens' texts.
RESERVED = re.compile(
    r"conversations?|messages|chat_template|add_generation_prompt|continue_final_message|tokenize|padding"
    r"|truncation|max_length|return_\w*|tokenizer_kwargs|processor_kwargs|load_\w*|loop|range|namespace|dict"
    r"|self|raise_exception|strftime_now|.*_tokens?|_.*"
)
CHARACTERS = 2_000_000  # [choice] of a row's text: half a million tokens, which take seconds


def harmless(arguments: Mapping[str, Any], template: Any) -> dict[str, Any]:
    """What of a row's `chat_template_kwargs` goes to the template, and its tools; nothing null or empty.

    template  the tokenizer's
    Raises BadRow for one that is no variable of the template.
    """
    found = {}
    for name, value in arguments.items():
        if value is None or value in ("", [], {}):
            continue
        if name == "tools":  # a column of its own, which templates may leave alone
            found[name] = value
            continue
        if RESERVED.fullmatch(name) or not name.isidentifier():
            raise BadRow(
                f"`chat_template_kwargs` has {name!r:.60}, which is not a row's to say; remove it (a "
                "template is set by training.chat_template_path)"
            )
        if not re.search(rf"\b{re.escape(name)}\b", str(template)):
            raise BadRow(
                f"`chat_template_kwargs` has {name!r:.60}, which the tokenizer's chat template does not "
                "read; remove it"
            )
        found[name] = value
    return found


def refuse_long(*texts: str | None) -> None:
    """BadRow before the tokenizer is given what it would take minutes and gibibytes for."""
    length = sum(len(text) for text in texts if text is not None)
    if length > CHARACTERS:
        raise BadRow(
            f"the row has {length:,} characters, and {CHARACTERS:,} is the most; cut it or leave it out"
        )

"""The parts of the site that are made when it is built: settings, the command line, Python, results.

mkdocs calls `on_page_markdown`. A page has a marker, `<!-- made: settings -->`, where a part goes.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

HOME = Path(__file__).parents[1]
MARKER = re.compile(r"^<!-- made: (\w+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put every part in the place of its marker.

    Args:
        markdown: The text of a page.

    Returns:
        The text without markers.

    Raises:
        KeyError: A marker names a part that is not in `PARTS`.
    """
    return MARKER.sub(lambda found: PARTS[found[1]](), markdown)


def results() -> str:
    """The tables of `results/real`, one file after the other."""
    tables = sorted((HOME / "results" / "real").glob("*.md"))
    return "\n\n".join(table.read_text(encoding="utf-8").strip().replace("### ", "#### ") for table in tables)


# ---------------------------------------------------------------------------------------------- settings


def settings() -> str:
    """A table of each class of settings: key, default, meaning."""
    parts = [f"### `{path}`\n\n{_table(rows)}" for path, rows in setting_rows().items() if rows]
    return "\n\n".join(parts)


def setting_rows() -> dict[str, list[tuple[str, str, str]]]:
    """Section -> (key, default, meaning) of each of its settings; the meaning is of the class's docstring."""
    from coretune.coreset_section import OF_THE_RUN, keys_of
    from coretune.filters import FILTERS
    from coretune.measure.settings import MeasureSettings
    from coretune.rounds.refresh_settings import AnchorRefresh
    from coretune.rounds.schedule import CoresetConfig
    from coretune.select import SELECTORS

    def of(part: type, keep: Callable[[str], bool] = lambda key: True) -> list[tuple[str, str, str]]:
        told = field_descriptions(part.__doc__ or "")
        values = {field.name: field.default for field in fields(part)}
        return [
            (key, _shown(values[name]), told.get(name, told.get(key, "")))
            for key, (_, name) in keys_of(part).items()
            if keep(key)
        ]

    moved = {key: section for section, keys in OF_THE_RUN.items() for key in keys}
    sections = {
        "coreset": of(CoresetConfig, lambda key: key not in moved and key not in ("budget", "filters")),
        "coreset.refresh": [
            *of(AnchorRefresh),
            *of(CoresetConfig, lambda key: moved.get(key) == "refresh"),
        ],
        "coreset.signals": of(MeasureSettings),
        "coreset.solver": of(CoresetConfig, lambda key: moved.get(key) == "solver"),
    }
    sections |= {f"coreset.filters.{name}": of(kind) for name, kind in FILTERS.items()}
    return sections | {f"coreset.method.{name}": of(kind) for name, kind in SELECTORS.items()}


def field_descriptions(docstring: str) -> dict[str, str]:
    """Name -> what a docstring says of it: in lines `name  text` or `name: text`, further lines indented."""
    found: dict[str, str] = {}
    names: list[str] = []
    depth = 0
    for line in docstring.splitlines():
        indent = len(line) - len(line.lstrip())
        entry = re.match(r"\s*(\w+(?:, \w+)*)(?:\s{2,}|: )(\S.*)$", line)
        if entry and (not names or indent <= depth):
            names, depth = entry[1].split(", "), indent
            found |= dict.fromkeys(names, entry[2])
        elif names and line.strip() and indent > depth:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        else:
            names = []
    return found


def _shown(value: Any) -> str:
    """As YAML has it."""
    if isinstance(value, tuple):
        return f"[{', '.join(value)}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _table(rows: list[tuple[str, str, str]]) -> str:
    lines = [f"| `{key}` | `{default}` | {_cell(meaning)} |" for key, default, meaning in rows]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *lines])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


# ------------------------------------------------------------------------------------------ command line


def commands() -> str:
    """Every command with its arguments and options, as the command itself has them."""
    import typer

    from coretune.cli import app

    return "\n\n".join(_command(name, command) for name, command in _leaves(typer.main.get_command(app)))


def _leaves(group: Any, before: str = "coretune") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _leaves(command, f"{before} {name}")
        else:
            yield f"{before} {name}", command


def _command(name: str, command: Any) -> str:
    rows = [
        f"| `{' '.join(each.opts) if each.param_type_name == 'option' else each.name.upper()}` "
        f"| {_cell(getattr(each, 'help', None) or '')} |"
        for each in command.params
        if each.name not in ("help", "traceback", "quiet", "as_json")
    ]
    table = "\n".join(["", "", "| argument or option | |", "|---|---|", *rows]) if rows else ""
    return f"### {name}\n\n{_cell(command.help or '')}{table}"


# ------------------------------------------------------------------------------------------------ Python


def python() -> str:
    """Signature and docstring of every public name, read from the source: nothing is imported for it."""
    import coretune

    names = [name for name in coretune.__all__ if name in coretune._MODULE_OF]
    return "\n\n".join(_entry(name, coretune._MODULE_OF[name]) for name in names)


def _entry(name: str, module: str) -> str:
    path = Path(*module.split(".")).with_suffix(".py")
    tree = ast.parse((HOME / path).read_text(encoding="utf-8"))
    node = next(node for node in tree.body if _named(node) == name)
    lines = [_head(node), *_doc(node)]
    for each in ast.iter_child_nodes(node) if isinstance(node, ast.ClassDef) else []:
        if isinstance(each, ast.FunctionDef) and not each.name.startswith("_") and ast.get_docstring(each):
            lines += ["", f"    {_head(each)}", *(f"    {line}" for line in _doc(each))]
    text = "\n".join(line.rstrip() for line in lines)
    return f"### {name}\n\n`{path.as_posix()}`\n\n```text\n{text}\n```"


def _named(node: Any) -> str | None:
    """The name that a statement defines: of a class, a function, or an alias of types."""
    named = node.targets[0] if isinstance(node, ast.Assign) else node
    return getattr(named, "id", getattr(named, "name", None))


def _head(node: Any) -> str:
    if isinstance(node, ast.Assign):
        return ast.unparse(node)
    if isinstance(node, ast.ClassDef):
        stated = [ast.unparse(each) for each in node.body if isinstance(each, ast.AnnAssign)]
        return "\n    ".join([f"class {node.name}", *stated])
    returned = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{node.name}({ast.unparse(node.args)}){returned}"


def _doc(node: Any) -> list[str]:
    text = "" if isinstance(node, ast.Assign) else ast.get_docstring(node) or ""
    return [f"    {line}" for line in ["", *text.splitlines()]]


PARTS: dict[str, Callable[[], str]] = {
    "commands": commands,
    "python": python,
    "results": results,
    "settings": settings,
}

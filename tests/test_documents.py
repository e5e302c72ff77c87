"""Documents: links and commands lead somewhere, code blocks run, the site is complete, the log is short."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml

from coretune.cli import app

HOME = Path(__file__).parents[1]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
MOST_LINES = 25  # of an entry of the log, without its title
PAGES = [HOME / "README.md", HOME / "CONTRIBUTING.md", *sorted((HOME / "docs").glob("*.md"))]


def documents() -> list[Path]:
    found = [*HOME.glob("*.md"), *(HOME / "docs").rglob("*.md"), *(HOME / "dev").rglob("*.md")]
    return [*found, *(HOME / "results").rglob("*.md")]


def outside_code(text: str) -> str:
    """A document without its code blocks and inline code, where brackets mean something else."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^    .*$", "", text, flags=re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, by the rule of GitHub and of the site."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    kept = [re.sub(r"[^\w\s-]", "", title.lower()).strip() for title in titles]
    return {re.sub(r"[\s-]+", "-", title) for title in kept}


def test_every_link_leads_to_a_file_and_a_heading() -> None:
    broken, seen = set(), 0
    for page in documents():
        for groups in LINK.findall(outside_code(page.read_text(encoding="utf-8"))):
            target = "".join(groups)
            if "://" in target:
                continue
            seen += 1
            path, _, heading = target.partition("#")
            file = page.parent / path if path else page
            if not file.is_file() or (heading and heading not in anchors(file)):
                broken.add(f"{page.relative_to(HOME)}: {target}")
    assert not broken
    assert seen > 50


def test_every_page_that_a_message_or_a_docstring_names_is_there() -> None:
    missing = {
        f"{path.relative_to(HOME)}: {name}"
        for folder in ("coretune", "bench", "examples")
        for path in (HOME / folder).rglob("*.py")
        for name in re.findall(r"\b(?:docs|dev|results)/[\w/-]+\.md", path.read_text(encoding="utf-8"))
        if not (HOME / name).is_file()
    }
    assert not missing


def test_code_and_documentation_cite_the_results_and_not_the_log() -> None:
    code = [path for folder in ("coretune", "bench") for path in (HOME / folder).rglob("*.py")]
    pages = [path for path in PAGES if path.parent.name == "docs" and path.name != "architecture.md"]
    assert not [path for path in (*code, *pages) if "LOG.md" in path.read_text(encoding="utf-8")]


def test_an_entry_of_the_log_has_at_most_25_lines() -> None:
    log = (HOME / "dev" / "LOG.md").read_text(encoding="utf-8")
    _, *entries = re.split(r"^## ", log, flags=re.MULTILINE)
    assert entries
    assert not [text.splitlines()[0] for text in entries if len(text.strip().splitlines()) - 1 > MOST_LINES]


def test_the_readme_is_one_screen() -> None:
    assert len((HOME / "README.md").read_text(encoding="utf-8").splitlines()) <= 140


def test_the_file_map_names_every_module() -> None:
    page = (HOME / "docs" / "architecture.md").read_text(encoding="utf-8")
    modules = {path.name for path in (HOME / "coretune").rglob("*.py")} - {"__init__.py", "__main__.py"}
    assert not {name for name in modules if not re.search(rf"\b{re.escape(name)}", page)}


# ----------------------------------------------------------------------------------------- code and commands


def python_blocks() -> list[Any]:
    return [
        pytest.param(block, id=f"{page.stem}-{number}")
        for page in PAGES
        for number, block in enumerate(blocks(page, "python"))
    ]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


@pytest.mark.parametrize("block", python_blocks())
def test_a_code_block_is_python_and_imports_what_there_is(block: str) -> None:
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "coretune":
            module = importlib.import_module(node.module or "")
            assert not [name.name for name in node.names if not hasattr(module, name.name)]


@pytest.mark.parametrize("page", ["adding-a-method", "adding-a-filter"])
def test_the_example_of_a_page_passes_its_exam(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block is run: it ends in check_selector or check_filter, and in a coreset of it."""
    (block,) = blocks(HOME / "docs" / f"{page}.md", "python")
    module = ModuleType("of_a_page")
    monkeypatch.setitem(importlib.import_module("sys").modules, "of_a_page", module)
    exec(compile(block, page, "exec"), module.__dict__)
    assert module.chosen.budget


def commands() -> list[tuple[str, list[str]]]:
    """(page, words) of every line `    coretune …`, `    python bench/…` or `    make …` of the pages."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for line in re.findall(
            r"^\s{4,}((?:coretune (?! )|python bench/|make (?! )).*)$", text, re.MULTILINE
        ):
            words = shlex.split(re.sub("[…;]", " ", line), comments=True)
            found.append((page.name, words))
    return found


def unknown(words: list[str]) -> list[str]:
    """What there is not of a command line: the command, an option, a file or a target."""
    options = [word.split("=")[0] for word in words if word.startswith("--")]
    if words[0] == "make":
        targets = (HOME / "Makefile").read_text(encoding="utf-8")
        return [word for word in words[1:2] if not re.search(rf"^{word}:", targets, re.MULTILINE)]
    if words[0] == "python":
        if words[1].startswith("-"):
            return []
        script = HOME / words[1]
        if not script.is_file():
            return words[1:2]
        near = "".join(path.read_text(encoding="utf-8") for path in script.parent.glob(f"{script.stem}*.py"))
        return [option for option in options if f'"{option}"' not in near]
    command: Any = typer.main.get_command(app)
    rest = [word for word in words[1:] if not word.startswith("-")]
    while rest and hasattr(command, "commands"):
        if rest[0] not in command.commands:
            return rest[:1]
        command = command.commands[rest.pop(0)]
    known = {name for each in command.params for name in each.opts} | {"--help"}
    known |= {"--install-completion", "--show-completion"} if hasattr(command, "commands") else set()
    return [option for option in options if option not in known]


def test_every_command_of_the_pages_is_there_with_its_options() -> None:
    lines = commands()
    assert len(lines) > 60
    assert not [(page, wrong) for page, words in lines if (wrong := unknown(words))]


# --------------------------------------------------------------------------------------------------- the site


def of_dev(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, HOME / "dev" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site() -> ModuleType:
    return of_dev("site_parts")


def leaves(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [
        leaf for each in nav for leaf in leaves(next(iter(each.values())) if isinstance(each, dict) else each)
    ]


def test_the_navigation_names_every_page_once() -> None:
    nav = leaves(yaml.safe_load((HOME / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert sorted(nav) == sorted(path.name for path in (HOME / "docs").glob("*.md"))


def test_every_part_of_the_site_is_made_and_used(site: ModuleType) -> None:
    used = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        used += site.MARKER.findall(text)
        assert "<!-- made" not in site.on_page_markdown(text)
    assert sorted(used) == sorted(site.PARTS)


def test_the_page_of_settings_says_what_each_setting_means(site: ModuleType) -> None:
    rows = site.setting_rows()
    without = [f"{path}.{key}" for path, found in rows.items() for key, _, meaning in found if not meaning]
    assert not without
    assert {"coreset.refresh", "coreset.signals", "coreset.filters.noise", "coreset.method.grace"} <= set(
        rows
    )
    assert sum(len(found) for found in rows.values()) > 70


def test_meanings_are_read_from_aligned_lines_and_from_google_style(site: ModuleType) -> None:
    aligned = "Head.\n\n    k        neighbours\n             of a row\n    a, b     two\n\n    Tail: text"
    google = "Head.\n\n    Attributes:\n        k: Neighbours\n            of a row.\n        b: Two."
    assert site.field_descriptions(aligned) | {"Tail": ""} == {
        "k": "neighbours of a row",
        "a": "two",
        "b": "two",
        "Tail": "",
    }
    assert site.field_descriptions(google) == {"k": "Neighbours of a row.", "b": "Two."}


def test_the_results_page_has_the_tables_of_the_results_folder(site: ModuleType) -> None:
    tables = list((HOME / "results" / "real").glob("*.md"))
    assert tables
    text = site.results()
    for table in tables:
        assert table.read_text(encoding="utf-8").splitlines()[-1] in text


def test_the_reference_has_every_command_and_every_public_name(site: ModuleType) -> None:
    told = site.commands()
    assert {"### coretune train", "### coretune cache ls"} <= set(told.splitlines())
    assert "--accelerate_config" in told
    public = importlib.import_module("coretune").__all__
    assert set(re.findall(r"^### (\w+)$", site.python(), re.MULTILINE)) == set(public) - {"__version__"}


# ------------------------------------------------------------------------------------------------------ words


@pytest.mark.parametrize(
    ("name", "text", "lines"),
    [
        ("a.py", "x = 1  # the model hears nothing\n", [1]),
        ("a.py", '"""One.\n\nTwins are looked at once.\n"""\n', [3, 3]),
        ("a.py", '"""Tells who."""\n', [1]),
        ("a.py", "def test_nobody_is_suspected() -> None: ...\n", [1]),
        ("a.py", "raise ValueError('two rows: look at both')\n", [1]),
        ("a.py", "harvest = told(teacher)\nx = {'harvest': 1}\n", []),
        ("a.py", '"""Settings.\n\nteacher  a folder; `staleness_factor` too\nharvest: A choice.\n"""\n', []),
        ("a.md", "A row that costs 3 nats.\n\n    told\n\n```\nheard\n```\n`told`, [this](told.md)\n", [1]),
        ("a.md", "Measured, recorded, received.\n", []),
    ],
)
def test_banned_words_are_found_in_prose_and_not_in_code(
    name: str, text: str, lines: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = of_dev("words")
    monkeypatch.setattr(words, "HOME", tmp_path)
    (tmp_path / name).write_text(text, encoding="utf-8")
    lines_found = words.found(tmp_path / name)
    assert [int(line.split(":")[1]) for line in lines_found] == lines
    assert all(": write " in line for line in lines_found)

"""Documents: links lead somewhere, code blocks are right, the log stays short."""

from __future__ import annotations

import re
from pathlib import Path

HOME = Path(__file__).parents[1]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
MOST_LINES = 25  # of an entry of the log, without its title


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


def test_code_and_documentation_cite_the_results_and_not_the_log() -> None:
    pages = [
        *(HOME / "docs").rglob("*.md"),
        *(HOME / "coretune").rglob("*.py"),
        *(HOME / "bench").rglob("*.py"),
    ]
    assert not [path for path in pages if "LOG.md" in path.read_text(encoding="utf-8")]


def test_an_entry_of_the_log_has_at_most_25_lines() -> None:
    _, *entries = re.split(r"^## ", (HOME / "dev" / "LOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert entries
    assert not [text.splitlines()[0] for text in entries if len(text.strip().splitlines()) - 1 > MOST_LINES]

"""What a model card says of the coreset: method, budget, settings, cost."""

from __future__ import annotations

from pathlib import Path

from coretune.files import write_text
from coretune.ledger import TABLE_HEADER, Ledger
from coretune.rounds.coreset_config import CoresetConfig
from coretune.rounds.state import State
from coretune.training.checkpoints import settings_of

BEGIN, END = "<!-- coretune -->", "<!-- /coretune -->"


def section(config: CoresetConfig, state: State | None, ledger: Ledger) -> str:
    """The card's section, in Markdown."""
    method = type(config.selector).__name__
    lines = [BEGIN, "## Coreset", "", f"Trained with coretune on coresets chosen by {method}."]
    if state is not None and state.selections:
        chosen, cost = state.coreset.indices, state.pool.cost
        lines += [
            f"The last of {state.selections} coresets has {len(chosen):,} of {state.pool.n:,} examples and "
            f"{int(cost[chosen].sum()):,} of {int(cost.sum()):,} tokens.",
        ]
    lines += ["", "| setting | value |", "|---|---|", f"| budget | {budget_of(config)} |"]
    lines += [f"| {name} | {value} |" for name, value in public_settings(config).items()]
    lines += ["", "What it cost, the selection included:", ""]
    rows = [TABLE_HEADER, ("---",) * len(TABLE_HEADER), *ledger.table()]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, END, ""])


def public_settings(config: CoresetConfig) -> dict[str, str]:
    """Without what names the user's data or machine: a card is for everybody."""
    found = {name: value for name, value in settings_of(config).items() if not name.startswith("budget.")}
    if config.quota is not None:
        found["quota.named"] = f"{len(config.quota.named)} values with shares of their own"
    return {name: _public(name, value) for name, value in found.items()}


def _public(name: str, value: str) -> str:
    if name == "ray_address" or "/" in value:  # of this machine: a host, a folder
        value = "None" if value == "None" else "given"
    return " ".join(value.replace("|", "\\|").split())


def budget_of(config: CoresetConfig) -> str:
    """The budget in words."""
    amount, unit = config.budget.amount, config.budget.unit
    return f"{float(100 * amount):.4g} %" if unit == "share" else f"{int(amount):,} {unit}"


def write_section(path: Path, text: str) -> None:
    """Put the section at the end of the card, in the place of an earlier one."""
    card = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, _, after = card.partition(BEGIN)
    rest = after.partition(END)[2].lstrip("\n")
    write_text(path, f"{before.rstrip()}\n\n{text}{rest}")

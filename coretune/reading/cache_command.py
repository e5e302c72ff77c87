"""`coretune cache`: the stores under a folder, what they are of, whether they are whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from coretune.console import Commands, Json, cell, print_error, print_json, print_lines

app = Commands(no_args_is_help=True, help="List, check and remove stores of measured signals.")
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="A store, or any folder with stores below.")]


@app.command()
def ls(folder: Folder, as_json: Json = False) -> None:
    """What each store is of, how much of it is measured, and what it takes."""
    if as_json:
        print_json([_facts(path) for path in _stores(folder)])
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from coretune.storing.manifest import Manifest, StoreError

    stores = _stores(folder)
    if not stores:
        print(f"no store in {folder}")
        return
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("store", "finished", "rows", "signals", "MiB", "fingerprint"):
        table.add_column(
            name, justify="right" if name in ("finished", "rows", "MiB") else "left", overflow="fold"
        )
    for path in stores:
        name = str(path.relative_to(folder)) if path != folder else path.name
        try:
            manifest = Manifest.read(path)
        except StoreError as error:
            table.add_row(*map(cell, (name, "", "", "", _mebibytes(path), str(error))))
            continue
        share = f"{100 * len(manifest.commits) // manifest.blocks} %"  # 100 only when it is
        signals = "\n".join(
            f"{signal} {shape} {dtype}" for signal, (shape, dtype) in manifest.signals.items()
        )
        parts = "\n".join(f"{part}: {text}" for part, text in manifest.fingerprint.items())
        cells = (name, share, f"{manifest.rows:,}", signals, _mebibytes(path), parts)
        table.add_row(*map(cell, cells))
    Console().print(table)


def _facts(path: Path) -> dict[str, Any]:
    """Of a store, for programs; "error" of one whose manifest cannot be read."""
    from coretune.storing.manifest import Manifest, StoreError

    known = {"store": str(path), "bytes": _bytes(path)}
    try:
        manifest = Manifest.read(path)
    except StoreError as error:
        return {**known, "error": str(error)}
    signals = {
        name: {"shape": list(shape), "dtype": str(dtype)} for name, (shape, dtype) in manifest.signals.items()
    }
    committed = {"committed": len(manifest.commits), "blocks": manifest.blocks, "rows": manifest.rows}
    return {**known, **committed, "signals": signals, "fingerprint": dict(manifest.fingerprint)}


@app.command()
def rm(folder: Folder, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False) -> None:
    """Remove the store in FOLDER, or all stores below it."""
    with _plain_errors():
        stores = _some_stores(folder)
        print_lines(f"{path}  {_mebibytes(path)} MiB" for path in stores)
        if not yes:
            typer.confirm(f"Remove {len(stores)} stores?", abort=True)
        for path in stores:
            _remove(path)


@app.command()
def verify(folder: Folder, as_json: Json = False) -> None:
    """Compare every committed byte with its checksum; exit 1 names the damaged blocks."""
    with _plain_errors():
        found = [_checked(path) for path in _some_stores(folder)]
    if as_json:
        print_json(found)
    else:
        print_lines(map(_line, found))
    if any("error" in one or one["damaged"] for one in found):
        raise typer.Exit(1)


def _checked(path: Path) -> dict[str, Any]:
    from coretune.storing.manifest import Manifest

    facts = _facts(path)
    return facts if "error" in facts else {**facts, "damaged": list(Manifest.read(path).damaged(path))}


def _line(found: dict[str, Any]) -> str:
    if "error" in found:
        return str(found["error"])
    blocks = ", ".join(map(str, found["damaged"]))
    damage = f"damaged blocks: {blocks}" if blocks else "no damage"
    return f"{found['store']}: {damage}, {found['committed']} of {found['blocks']} blocks committed"


def _stores(folder: Path) -> list[Path]:
    from coretune.storing.manifest import MANIFEST

    return sorted(path.parent for path in folder.rglob(MANIFEST))


def _some_stores(folder: Path) -> list[Path]:
    if stores := _stores(folder):
        return stores
    raise ValueError(f"no store in {folder}")


def _remove(folder: Path) -> None:
    """Arrays first, the manifest last: cut off in between, it is a damaged store, not nameless files."""
    from coretune import locks
    from coretune.files import PART
    from coretune.storing.manifest import MANIFEST
    from coretune.storing.store import LOCK, acquire, foreign

    arrays = list(folder.glob("*.npy"))
    if others := foreign(folder, own=(path.name for path in arrays)):
        raise ValueError(
            f"{folder} holds {others[0]}, which is no store's: move it away, or remove all by hand"
        )
    lock = acquire(folder, locks.EXCLUSIVE)
    try:
        for path in (*arrays, folder / (MANIFEST + PART), folder / MANIFEST, folder / LOCK):
            path.unlink(missing_ok=True)
        folder.rmdir()
    finally:
        locks.release(lock)


def _mebibytes(folder: Path) -> str:
    return f"{_bytes(folder) / 2**20:,.1f}"


def _bytes(folder: Path) -> int:
    """What the folder takes on disk: blocks not yet measured are holes in the files."""
    return sum(path.stat().st_blocks * 512 for path in folder.iterdir())


@contextmanager
def _plain_errors() -> Iterator[None]:
    """An error the user can mend is one line on stderr and exit code 1."""
    try:
        yield
    except (ValueError, OSError) as error:
        print_error(error)
        raise typer.Exit(1) from None

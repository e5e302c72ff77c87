"""Raw rows -> the frozen, ordered rows of a corpus, on disk.

write_raw ─► rows.arrow ─► encode_batch (datasets.map) ─► bad rows out ─► canonical order ─► corpus.arrow
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from coretune.data.encode import EMPTY, encode_batch
from coretune.data.finding import found
from coretune.data.gather import BLOCK, Known, columns_of, write_raw
from coretune.data.raw import CorpusError, Row
from coretune.data.render import Loss, Tokenizer
from coretune.files import write_json

BUILDING = "building-"  # folders in cache_dir that a corpus is made in
DAY = 86_400  # seconds
SHOWN = 10  # bad rows named in a message
MANY = 20_000  # rows from which on all cores tokenise: below, starting processes costs more
ROWS, ACCOUNT = "corpus.arrow", "account.json"  # the files of a frozen corpus
#: Whose versions decide what is read, rendered and tokenised.
PACKAGES = ("datasets", "jinja2", "pyarrow", "tokenizers", "transformers")
log = logging.getLogger("coretune")

ENCODED = datasets.Features(
    {
        "input_ids": datasets.List(datasets.Value("int32")),
        "labels": datasets.List(datasets.Value("int32")),
        "prompt_length": datasets.Value("int64"),
        "truncated": datasets.Value("bool"),
        "id": datasets.Value("string"),
        "source": datasets.Value("string"),
        "unfit": datasets.Value("int64"),
        "earlier": datasets.Value("int64"),
        "weight": datasets.Value("float64"),
        "digest": datasets.Value("binary"),
        "left_out": datasets.Value("bool"),
        "problem": datasets.Value("string"),
    }
)
FROZEN = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.int32())),
        ("example_id", pa.int64()),
        ("prompt_length", pa.int64()),
        ("id", pa.string()),
        ("source", pa.string()),
        ("weight", pa.float64()),
        ("record", pa.string()),
        ("file", pa.string()),
    ]
)


@dataclass(frozen=True)
class Account:
    """What became of the rows that were read; kept beside the cached corpus as JSON.

    dropped      (place, reason) of the bad rows left out, in the order of the files
    left_out     reason -> how many rows say themselves that they are not to be trained on
    truncated    how many prompts were cut from the left
    fingerprint  of the ordered contents
    rows         checksum of the file of frozen rows
    notes        lines that name the columns that are not used
    absent       keys of `columns` whose column no row has
    several      rows of which more than one answer is trained on
    columns      file, as its rows name it -> its mapping of columns
    """

    dropped: list[tuple[str, str]]
    left_out: dict[str, int]
    truncated: int
    fingerprint: str
    rows: str
    notes: list[str]
    absent: list[str]
    several: int
    columns: dict[str, dict[str, str]]

    @classmethod
    def read(cls, folder: Path) -> Account:
        """ValueError where it is cut or changed."""
        kept = json.loads((folder / ACCOUNT).read_text(encoding="utf-8"))
        if not isinstance(kept, dict) or kept.pop("digest", None) != _digest(json.dumps(kept)):
            raise ValueError(f"{folder / ACCOUNT} is not as it was written")
        dropped = [(place, reason) for place, reason in kept.pop("dropped")]
        return cls(dropped, **kept)

    def write(self, folder: Path) -> None:
        known = asdict(self)
        write_json(folder / ACCOUNT, {**known, "digest": _digest(json.dumps(known))})


def freeze(
    given: Any,
    tokenizer: Tokenizer,
    columns: Mapping[str, str],
    max_length: int,
    skip_bad_rows: bool,
    root: Path,
    num_proc: int | None,
    loss: Loss,
    first: int | None = None,
) -> Path:
    """The folder under `root` with the frozen rows, made now unless the same content was frozen there before.

    Files are hashed every time, the rows of a hub id read: only content, no date, says that it is the same.
    What was frozen before is hashed too, and made again where it is not as it was written.
    Raises CorpusError (see Corpus.build).
    """
    loss.refuse(tokenizer)
    root.mkdir(parents=True, exist_ok=True)
    _sweep(root)
    with tempfile.TemporaryDirectory(prefix=BUILDING, dir=root) as folder:
        work = Path(folder)
        every = found(given)
        files = [
            (label, file) for each in every for label, file in zip(each.labels, each.files, strict=False)
        ]
        states = [file.stat() for _, file in files]
        template = None if tokenizer.chat_template is None else str(tokenizer.chat_template)
        whole = all(each.files for each in every) and first is None
        # the rows of a hub id are known only once they are read
        known = None if whole else write_raw(every, columns, template, work / "rows.arrow", first)
        asked = [(each.labels, each.source) for each in every]
        contents = _digest(known.contents if known else _hash(files), asked)
        kept = root / f"corpus-{_key(contents, columns, max_length, loss, tokenizer, work / 'tokenizer')}"
        if (damaged := _damaged_file(kept)) is not None:
            log.warning("%s is damaged and made again: its content is not what was written", damaged)
            os.rename(kept, work / "damaged")  # a process that reads it keeps what it has
        if not kept.exists():
            if known is None:
                known = write_raw(every, columns, template, work / "rows.arrow")
                _refuse_changed([file for _, file in files], states)
            settings = {
                "tokenizer": tokenizer,
                "formats": known.formats,
                "columns": columns_of(every, columns),
                "max_length": max_length,
                "loss": loss,
            }
            _freeze(work, settings, known, skip_bad_rows, num_proc)
            _publish(work / "frozen", kept)
    return kept


def _sweep(root: Path) -> None:
    """Remove what killed processes left; what may still be at work, being younger than a day, stays."""
    for left in root.glob(f"{BUILDING}*"):
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > DAY:
                shutil.rmtree(left, ignore_errors=True)


def _damaged_file(kept: Path) -> Path | None:
    """The file of a frozen corpus that is missing, cut or changed; None where all is as it was written."""
    if not kept.exists():
        return None
    try:
        account = Account.read(kept)
    except (OSError, ValueError, TypeError, KeyError):
        return kept / ACCOUNT
    rows = kept / ROWS
    return None if rows.is_file() and _hash([(ROWS, rows)]) == account.rows else rows


def _hash(files: Sequence[tuple[str, Path]]) -> str:
    """Of the files' names, as they are given, and of their bytes."""
    contents = blake2b(digest_size=16)
    for name, file in files:
        contents.update(repr((name, file.stat().st_size)).encode())
        with file.open("rb") as opened:
            while piece := opened.read(1 << 20):
                contents.update(piece)
    return contents.hexdigest()


def _refuse_changed(files: Sequence[Path], before: Sequence[os.stat_result]) -> None:
    """What was read must be what was hashed."""
    for file, then in zip(files, before, strict=True):
        now = file.stat()
        if (now.st_size, now.st_mtime_ns) != (then.st_size, then.st_mtime_ns):
            raise CorpusError(f"{file.name} was written to while it was read; start again when it is whole")


def _key(
    contents: str,
    columns: Mapping[str, str],
    max_length: int,
    loss: Loss,
    tokenizer: Tokenizer,
    folder: Path,
) -> str:
    """All that the frozen rows depend on: the tokenizer by the files it saves, libraries by version, this
    room by its code."""
    tokenizer.save_pretrained(str(folder))
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    versions = [version(name) for name in PACKAGES]
    code = _hash(sorted((path.name, path) for path in Path(__file__).parent.glob("*.py")))
    parts = (code, contents, sorted(columns.items()), max_length, loss, versions, sorted(files.items()))
    return _digest(*parts)


def _digest(*parts: object) -> str:
    return blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def _freeze(
    work: Path, settings: Mapping[str, Any], known: Known, skip_bad_rows: bool, num_proc: int | None
) -> None:
    """work/rows.arrow -> work/frozen/{corpus.arrow, account.json}."""
    raw = datasets.Dataset.from_file(str(work / "rows.arrow"))
    if num_proc is None and len(raw) >= MANY:
        num_proc = max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    encoded = raw.map(
        partial(encode_batch, **settings),
        batched=True,
        batch_size=BLOCK,
        remove_columns=raw.column_names,
        features=ENCODED,
        num_proc=None if num_proc == 1 else num_proc,
        cache_file_name=str(work / "encoded.arrow"),
        new_fingerprint=_digest(str(work)),  # else datasets pickles and hashes the tokenizer
        desc="tokenising",
    )
    small = encoded.select_columns([name for name in EMPTY if name not in ("input_ids", "labels")]).data.table
    problems = small["problem"].to_pylist()
    asked = small["left_out"].to_pylist()
    left_out = Counter(reason for reason, out in zip(problems, asked, strict=True) if out)
    dropped = [
        (_place(raw[row]), reason)
        for row, reason in enumerate(problems)
        if reason is not None and not asked[row]
    ]
    kept = [row for row, reason in enumerate(problems) if reason is None]
    ids, digests = small["id"].to_pylist(), small["digest"].to_pylist()
    repeated = [
        (_place(raw[row]), f"id {ids[row]!r} is already that of {_place(raw[first])}")
        for first, row in _repeated_ids(ids, kept)
    ]
    refuse([] if skip_bad_rows else dropped, repeated)
    _refuse_nothing_left(kept, dropped, left_out)
    order = sorted(kept, key=lambda row: (digests[row], ids[row]))
    weights = small["weight"].to_pylist()
    weighed = {row: weights[row] for row in order if weights[row] != 1}
    contents = _digest(
        [(digests[row], ids[row], *([weights[row]] if row in weighed else [])) for row in order]
    )
    (work / "frozen").mkdir()
    _write_frozen(raw, encoded, order, work / "frozen" / ROWS)
    account = Account(
        dropped,
        dict(left_out),
        truncated=sum(small["truncated"].to_pylist()),
        fingerprint=_digest(contents, settings["max_length"], _identity(settings["tokenizer"])),
        rows=_hash([(ROWS, work / "frozen" / ROWS)]),
        notes=[*known.notes, *_weights(list(weighed.values())), *_unfit(small["unfit"].to_pylist())],
        absent=known.absent,
        several=sum(earlier > 0 for earlier in small["earlier"].to_pylist()),
        columns={file: dict(mapping) for file, mapping in settings["columns"].items()},
    )
    account.write(work / "frozen")


def _weights(weights: Sequence[float]) -> list[str]:
    """A line for the rows whose loss is multiplied; none where there are none."""
    if not weights:
        return []
    return [f"`weight` multiplies the loss of {len(weights):,} rows by {min(weights):g} to {max(weights):g}"]


def _unfit(counts: Sequence[int]) -> list[str]:
    """A line for the answers that are not trained on since their rows are too long; none where there are
    none."""
    rows = [count for count in counts if count]
    if not rows:
        return []
    return [
        f"{sum(rows):,} answers of {len(rows):,} rows are not trained on: with them the rows are longer than "
        "max_length; raise it to train on them"
    ]


def _refuse_nothing_left(
    kept: Sequence[int], dropped: Sequence[tuple[str, str]], left_out: Mapping[str, int]
) -> None:
    if kept:
        return
    if dropped:
        raise CorpusError(f"all {len(dropped)} rows are bad, the first: {': '.join(dropped[0])}")
    reasons = "; ".join(f"{count} rows: {reason}" for reason, count in left_out.items())
    raise CorpusError(f"no row is left to train on ({reasons}); add rows that are to be trained on")


def _place(row: Mapping[str, Any]) -> str:
    return Row(row["file"], row["unit"], row["number"]).place


def _repeated_ids(ids: Sequence[str], rows: Sequence[int]) -> list[tuple[int, int]]:
    """(first row, later row) for every later row whose id was seen before."""
    first: dict[str, int] = {}
    return [(first[ids[row]], row) for row in rows if first.setdefault(ids[row], row) != row]


def _identity(tokenizer: Tokenizer) -> str:
    """The tokenizer as far as row contents cannot show it; the same for a hub name and a local copy."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    return _digest(vocabulary, tokenizer.chat_template, tokenizer.bos_token_id, tokenizer.eos_token)


def _write_frozen(raw: datasets.Dataset, encoded: datasets.Dataset, order: list[int], target: Path) -> None:
    """The rows of `order`, with labels and positions, block by block."""
    raw, encoded = raw.with_format("arrow"), encoded.with_format("arrow")
    with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_stream(sink, FROZEN) as writer:
        for start in range(0, len(order), BLOCK):
            rows = order[start : start + BLOCK]
            block = encoded[rows].combine_chunks()
            table = block.select(["input_ids", "labels", "prompt_length", "id", "source", "weight"])
            table = table.append_column("example_id", pa.array(np.arange(start, start + len(rows))))
            # Rows taken here and there are a chunk each, and so would the block be on disk.
            there = raw[rows]
            for name in ("record", "file"):
                table = table.append_column(name, there[name].combine_chunks())
            writer.write_table(table.select(FROZEN.names).cast(FROZEN))


def _publish(built: Path, kept: Path) -> None:
    """Whole or not at all; another process that was first has written the same."""
    try:
        os.rename(built, kept)
    except OSError:
        if not kept.exists():
            raise


def refuse(bad: Sequence[tuple[str, str]], repeated: Sequence[tuple[str, str]] = ()) -> None:
    """CorpusError that names up to ten of the faults; nothing when there are none."""
    remedies = []
    if bad:
        remedies.append("correct them or leave them out with skip_bad_rows (--skip-bad-rows)")
    if repeated:
        remedies.append("give every row its own id")
    faults = [f"{place}: {reason}" for place, reason in (*bad, *repeated)]
    if len(faults) == 1:
        raise CorpusError(f"{faults[0]} ({remedies[0].replace('them', 'it')})")
    if faults:
        more = [f"and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        raise CorpusError(
            "\n  ".join([f"{len(faults)} bad rows; {'; '.join(remedies)}:", *faults[:SHOWN], *more])
        )

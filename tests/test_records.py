"""Every kind of file gives the same raw rows back, and every broken one says where it is broken."""

from __future__ import annotations

import csv
import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coretune.data.finding import read_rows
from coretune.data.raw import CorpusError, Row

ROWS = [
    {"id": "a", "prompt": "Say “hé”,\nthen stop", "completion": "hé 🙂", "score": 0.5, "tags": ["x", None]},
    {"id": "b", "prompt": 'quote " and comma, too', "completion": " ", "score": None, "tags": []},
    {"id": "c", "prompt": "", "completion": "tab\there", "score": 3.0, "tags": ["y"]},
]
TEXT_ROWS = [{name: row[name] for name in ("id", "prompt", "completion")} for row in ROWS]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """`rows` in the format of the path's extension; `.arrow` as a stream, `.file.arrow` as a file."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    else:
        table = pa.Table.from_pylist(rows)
        new = pa.ipc.new_file if path.name.endswith(".file.arrow") else pa.ipc.new_stream
        with pa.OSFile(str(path), "wb") as sink, new(sink, table.schema) as writer:
            writer.write_table(table)
    return path


@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.parquet", "p.arrow", "p.file.arrow"])
def test_rows_come_back_untouched(tmp_path: Path, name: str) -> None:
    rows = list(read_rows(write(tmp_path / name, ROWS)))
    assert [row.record for row in rows] == ROWS
    assert [json.loads(row.text or "") for row in rows] == ROWS
    assert [list(json.loads(row.text or "")) for row in rows] == [
        list(row) for row in ROWS
    ]  # columns in order
    unit = "line" if name.endswith("jsonl") else "row"
    assert [row.place for row in rows] == [f"{name} {unit} {number}" for number in (1, 2, 3)]


def test_jsonl_keeps_the_very_line(tmp_path: Path) -> None:
    line = '{"b": 1.50, "a":  "\\u00e9", "big": 12345678901234567890}'
    (tmp_path / "p.jsonl").write_bytes(b"\xef\xbb\xbf" + line.encode() + b"\r\n\r\n" + line.encode())
    rows = list(read_rows(tmp_path / "p.jsonl"))
    assert [row.text for row in rows] == [line, line]
    assert [row.number for row in rows] == [1, 3]  # a blank line is no row but is counted


def test_csv_rows_name_the_line_they_begin_on(tmp_path: Path) -> None:
    rows = list(read_rows(write(tmp_path / "p.csv", TEXT_ROWS)))
    assert [row.record for row in rows] == TEXT_ROWS
    assert [row.number for row in rows] == [2, 4, 5]  # the first prompt runs over two lines


def test_csv_takes_long_documents_and_leaves_the_limit_as_it_was(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    (row,) = read_rows(write(tmp_path / "p.csv", [{"text": "x" * 200_000}]))
    assert row.record == {"text": "x" * 200_000}
    assert csv.field_size_limit() == before


def test_json_lines_under_a_json_name(tmp_path: Path) -> None:
    write(tmp_path / "p.jsonl", ROWS).rename(tmp_path / "p.json")
    assert [row.record for row in read_rows(tmp_path / "p.json")] == ROWS


def test_folder_is_read_by_name_and_without_its_folders(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", ROWS[:1])
    write(tmp_path / "a.parquet", ROWS[1:])
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "test").mkdir()
    write(tmp_path / "test" / "c.jsonl", ROWS)
    rows = list(read_rows(tmp_path))
    assert [row.place for row in rows] == ["a.parquet row 1", "a.parquet row 2", "b.jsonl line 1"]


def test_folder_of_save_to_disk(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    assert [row.record for row in read_rows(tmp_path / "saved")] == ROWS


def test_hub_id(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, split: str) -> datasets.Dataset:
        assert (name, split) == ("owner/name", "train")
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = list(read_rows("owner/name"))
    assert [row.record for row in rows] == ROWS
    assert rows[2].place == "owner/name row 3"


@pytest.mark.parametrize("error", [FileNotFoundError, ValueError, datasets.exceptions.DatasetsError])
def test_hub_id_that_is_not_there(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    def load_dataset(name: str, split: str) -> datasets.Dataset:
        raise error("Config name is missing.\nPlease pick one")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        CorpusError, match=r"no file or folder here.*Config name is missing.\).*save the rows"
    ) as caught:
        list(read_rows("owner/name"))
    assert "\n" not in str(caught.value)


def test_dates_are_kept_as_text_and_bytes_refused(tmp_path: Path) -> None:
    when = datetime.datetime(2026, 1, 2, 3, 4, 5)
    (row,) = read_rows(write(tmp_path / "p.parquet", [{"text": "x", "when": when}]))
    assert json.loads(row.text or "") == {"text": "x", "when": "2026-01-02T03:04:05"}
    (row,) = read_rows(write(tmp_path / "q.parquet", [{"text": "x", "image": b"\x00"}]))
    assert (row.problem or "").startswith("`image` cannot be written as JSON (a value is bytes)")
    assert "write the file without that column, or with text in it" in (row.problem or "")


GOOD = '{"text": "fine"}'


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"text": "cut', "not valid JSON (Unterminated string starting at at column 10)"),
        (b"text, more", "not valid JSON (Expecting value at column 1)"),
        (b'["fine"]', "not a JSON object but a list"),
        (b'{"text": "one", "text": "two"}', "`text` is written twice; which one is meant"),
        (b'{"text": "one", "messages": [{"role": "a", "role": "b"}]}', "`role` is written twice"),
        (b"null", "not a JSON object but null"),
        (b'{"text": "caf\xe9"}', "not UTF-8 (byte 0xe9 at column 14); save the file as UTF-8"),
        (b'{"n": ' + b"9" * 5000 + b"}", "not readable JSON (Exceeds the limit"),
    ],
)
def test_bad_line_spoils_only_itself(tmp_path: Path, line: bytes, problem: str) -> None:
    (tmp_path / "p.jsonl").write_bytes(b"\n".join([GOOD.encode(), line, GOOD.encode()]))
    first, bad, last = read_rows(tmp_path / "p.jsonl")
    assert (first.problem, last.problem) == (None, None)
    assert bad.place == "p.jsonl line 2"
    assert problem in (bad.problem or "")
    assert bad.record is None
    assert bad.text is None


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (b"1,2,3", "3 fields where the header has 2"),
        (b"1", "1 fields where the header has 2"),
        (b'"1"x,2', "not valid CSV"),
        (b"1,caf\xe9", "`b` is not UTF-8"),
        (b'1,"open', "not valid CSV"),
    ],
)
def test_bad_csv_row_is_named(tmp_path: Path, lines: bytes, problem: str) -> None:
    (tmp_path / "p.csv").write_bytes(b"a,b\n1,2\n" + lines)
    good, bad = read_rows(tmp_path / "p.csv")
    assert good.record == {"a": "1", "b": "2"}
    assert bad.place == "p.csv line 3"
    assert problem in (bad.problem or "")


QUOTES = [
    pytest.param('"a7,b7', "unexpected end of data", id="a quote that nothing closes"),
    pytest.param('a7,"b7', "unexpected end of data", id="in the last column"),
]


@pytest.mark.parametrize(("line", "reason"), QUOTES)
def test_rows_that_a_stray_quote_joins_are_not_lost(tmp_path: Path, line: str, reason: str) -> None:
    lines = [f"a{number},b{number}" for number in range(50)]
    lines[7] = line
    (tmp_path / "p.csv").write_text("a,b\n" + "\n".join(lines) + "\n")
    with pytest.raises(CorpusError, match=rf"p.csv lines 9 to 51 are one row .*{reason}.* opens in line 9"):
        list(read_rows(tmp_path / "p.csv"))


@pytest.mark.parametrize("later", ['"a30",b30', 'a30,"b30", "c"', 'x"y,b30'])
def test_a_stray_quote_that_a_later_one_closes_is_an_error_over_both_lines(
    tmp_path: Path, later: str
) -> None:
    lines = [f"a{number},b{number}" for number in range(50)]
    lines[7], lines[30] = '"a7,b7', later
    (tmp_path / "p.csv").write_text("a,b\n" + "\n".join(lines) + "\n")
    with pytest.raises(CorpusError, match=r"p.csv lines 9 to 32 are one row by their quotes"):
        list(read_rows(tmp_path / "p.csv"))


@pytest.mark.parametrize(("mark", "name"), [("\t", "tabs"), (";", "semicolons"), ("|", "bars")])
def test_fields_that_are_not_separated_by_commas_are_refused(tmp_path: Path, mark: str, name: str) -> None:
    (tmp_path / "p.csv").write_text(f"a{mark}b\n1{mark}2\n")
    with pytest.raises(CorpusError, match=rf"p.csv separates its fields by {name}; write it with commas"):
        list(read_rows(tmp_path / "p.csv"))


def test_csv_goes_on_after_a_bad_row(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text('a,b\n"1"x,2\n3,4\n')
    bad, good = read_rows(tmp_path / "p.csv")
    assert "not valid CSV" in (bad.problem or "")
    assert good == Row("p.csv", "line", 3, json.dumps({"a": "3", "b": "4"}), {"a": "3", "b": "4"})


def contents(name: str, data: bytes, says: str) -> Any:
    return pytest.param(name, data, says, id=f"{name}: {says[:30]}")


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        contents("p.txt", b"hello", r"p.txt has the unknown extension '.txt'; convert it to one of \.json"),
        contents("p.xlsx", b"PK", "unknown extension '.xlsx'"),
        contents("p.jsonl", b"", "p.jsonl is empty"),
        contents("p.jsonl", b"\n \n", "p.jsonl is empty"),
        contents("p.json", b"[]", "p.json is empty"),
        contents("p.csv", b"", "p.csv is empty"),
        contents("p.csv", b"a,b\n", "p.csv is empty"),
        contents("p.csv", b"a,b,a\n1,2,3\n", "column 'a' 2 times"),
        contents("p.csv", b"caf\xe9,b\n1,2\n", "p.csv line 1 is not UTF-8"),
        contents("p.jsonl", GOOD.encode("utf-16"), "p.jsonl is encoded in UTF-16; save it as UTF-8"),
        contents("p.csv", "a,b\n1,2\n".encode("utf-16"), "p.csv is encoded in UTF-16"),
        contents("p.json", b'[\n{"text": "caf\xe9"}]', "p.json line 2 is not UTF-8"),
        contents("p.json", b'[\n{"text": 1},\n{"text" 2}]', "p.json line 3: not valid JSON"),
        contents(
            "p.json", b'{\n "data": [],\n "n": 2\n}', "p.json is one JSON object with data, n; write its rows"
        ),
        contents("p.parquet", b"PAR1 no", "p.parquet cannot be read as parquet"),
        contents("p.arrow", b"ARROW1 no", "p.arrow cannot be read as Arrow"),
        contents("p.arrow", b"no arrow at all", "p.arrow cannot be read as Arrow"),
    ],
)
def test_bad_file_is_refused_in_one_line(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CorpusError, match=says) as caught:
        list(read_rows(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_what_is_not_there(tmp_path: Path) -> None:
    for missing in (tmp_path / "none.jsonl", tmp_path / "none", "none.csv", "~/no such folder"):
        with pytest.raises(CorpusError, match=r"no such file or folder: .*; check train_data"):
            list(read_rows(missing))


def test_folder_without_data(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"holds no data file \(found nothing\)"):
        list(read_rows(tmp_path))
    (tmp_path / "train").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CorpusError, match=r"found notes.txt, train\); put .* or name the folder inside it"):
        list(read_rows(tmp_path))


def test_compressed_file_in_a_folder_is_not_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", ROWS)
    for name in ("b.jsonl.xz", "b.csv.zip", "b.parquet.gz"):
        (tmp_path / name).write_bytes(b"\x1f\x8b")
        with pytest.raises(
            CorpusError, match=rf"{name} in .* is compressed in a way that is not read; unpack"
        ):
            list(read_rows(tmp_path))
        (tmp_path / name).unlink()


def test_a_key_written_twice_in_a_json_list_spoils_its_row_alone(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('[ {"text": "a"},\n{"text": "b", "text": "c"} , {"text": "d"}\n]\n')
    rows = list(read_rows(tmp_path / "p.json"))
    assert [row.record for row in rows] == [{"text": "a"}, None, {"text": "d"}]
    assert rows[1].place == "p.json row 2"
    assert "`text` is written twice" in (rows[1].problem or "")


@pytest.mark.parametrize("text", ["[{}, ]", "[{} {}]", "[{}] x", "[,]", "[{}", "["])
def test_a_json_list_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(CorpusError, match=r"p\.json line 1: not valid JSON"):
        list(read_rows(tmp_path / "p.json"))


@pytest.mark.parametrize("name", ["p.parquet", "p.arrow", "p.file.arrow"])
def test_a_column_written_twice_is_refused(tmp_path: Path, name: str) -> None:
    text = pa.array(["a"])
    flat = pa.Table.from_arrays([text, text], ["text", "text"])
    below = pa.StructArray.from_arrays([text, text], ["role", "role"])
    layered = pa.Table.from_arrays([pa.ListArray.from_arrays([0, 1], below)], ["messages"])
    for table, column in ((flat, "text"), (layered, "messages.role")):
        if name == "p.parquet":
            pq.write_table(table, tmp_path / name)
        else:
            new = pa.ipc.new_file if "file" in name else pa.ipc.new_stream
            with pa.OSFile(str(tmp_path / name), "wb") as sink, new(sink, table.schema) as writer:
                writer.write_table(table)
        with pytest.raises(CorpusError, match=f"{name} has the column '{column}' more than once"):
            list(read_rows(tmp_path / name))


def test_durations_decimals_and_maps_are_kept(tmp_path: Path) -> None:
    columns = {
        "text": pa.array(["x"]),
        "took": pa.array([datetime.timedelta(minutes=1, seconds=2.5)], pa.duration("us")),
        "price": pa.array([Decimal("1.50")]),
        "labels": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
    }
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    (row,) = read_rows(tmp_path / "p.parquet")
    assert row.problem is None
    assert json.loads(row.text or "") == {"text": "x", "took": "PT62.5S", "price": "1.50", "labels": {"a": 1}}


def test_an_empty_split_of_the_hub_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = datasets.Dataset.from_dict({"text": []})
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: empty)
    with pytest.raises(CorpusError, match="'owner/name' has no rows in split 'train'"):
        list(read_rows("owner/name"))

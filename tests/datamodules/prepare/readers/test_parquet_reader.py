"""Parquet files: row groups, columns, media, damage."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import bad_samples, grown_megabytes, items, read_documents, read_samples, read_texts

from datamodules.prepare.readers import BadSample, Column, CorpusChangedError, Limits, ParquetReader


def write_rows(
    path: Path, rows: list[dict[str, Any]], schema: pa.Schema | None = None, **options: Any
) -> Path:
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, **options)
    return path


@pytest.mark.parametrize("unit_bytes", [1, 400, 1 << 20])
def test_row_groups_are_units_and_any_division_gives_the_same_documents(
    tmp_path: Path, unit_bytes: int
) -> None:
    rows = [{"text": f"text {number}", "url": "u" * 50} for number in range(25)]
    path = write_rows(tmp_path / "a.parquet", rows, row_group_size=4)
    reader = ParquetReader(tmp_path, unit_bytes=unit_bytes)
    units = list(reader.plan())
    assert [unit.start for unit in units] == [0, *(unit.stop for unit in units[:-1])] and units[-1].stop == 7
    assert len(units) == (7 if unit_bytes == 1 else 1 if unit_bytes > path.stat().st_size else len(units))
    documents = read_documents(reader)
    assert [each.id for each in documents] == [f"s: a.parquet#{number}" for number in range(25)]
    assert [each.text for each in documents] == [row["text"] for row in rows]


def test_media_are_binary_or_structs_and_paths_stay_below_the_root(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"on disk")
    rows = [
        {"a": b"binary", "b": {"bytes": b"in struct", "path": "x.png"}, "t": "one"},
        {"a": b"binary", "b": {"bytes": None, "path": "1.png"}, "t": "two"},
        {"a": b"binary", "b": None, "t": "three"},
        {"a": b"binary", "b": {"bytes": None, "path": "/etc/passwd"}, "t": "four"},
        {"a": None, "b": {"bytes": None, "path": None}, "t": "five"},
        {"a": b"", "b": None, "t": "six"},
    ]
    write_rows(tmp_path / "a.parquet", rows)
    columns = [Column("a", "audio"), Column("b", "image", optional=True), Column("t")]
    reader = ParquetReader(tmp_path, columns)
    samples = read_samples(reader)
    good = [each for each in samples if not isinstance(each, BadSample)]
    assert [items(each) for each in good] == [
        [("audio", b"binary"), ("image", b"in struct"), ("text", "one")],
        [("audio", b"binary"), ("image", b"on disk"), ("text", "two")],
        [("audio", b"binary"), ("text", "three")],
    ]
    assert bad_samples(reader) == [
        ("s: a.parquet#3", "unsafe path"),
        ("s: a.parquet#4", "missing column"),
        ("s: a.parquet#5", "unusable media"),
    ]


def test_a_column_of_items_interleaves(tmp_path: Path) -> None:
    item = pa.struct([("modality", pa.string()), ("text", pa.string()), ("bytes", pa.binary())])
    rows = [
        {
            "items": [{"modality": "image", "bytes": b"png"}, {"modality": "text", "text": "one"}],
            "text": "no",
        },
        {"items": [{"modality": "text"}], "text": "no"},
    ]
    schema = pa.schema([("items", pa.list_(item)), ("text", pa.string())])
    first, second = read_samples(ParquetReader(write_rows(tmp_path / "a.parquet", rows, schema)))
    assert not isinstance(first, BadSample) and items(first) == [("image", b"png"), ("text", "one")]
    assert isinstance(second, BadSample) and second.kind == "malformed record"


def test_rows_with_invalid_utf8_are_named_and_their_neighbours_are_read(tmp_path: Path) -> None:
    texts = pa.array([b"good", b"\xff", b"fine"]).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    reader = ParquetReader(tmp_path)
    assert read_texts(reader) == ["good", "fine"]
    assert bad_samples(reader) == [("s: a.parquet#1", "invalid UTF-8")]


def test_rows_with_nul_or_too_long_text_are_named(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.parquet", [{"text": "a\0"}, {"text": "x" * 101}, {"text": "x" * 100}])
    reader = ParquetReader(tmp_path, limits=Limits(text_bytes=100))
    assert [kind for _, kind in bad_samples(reader)] == ["NUL byte", "text too long"]
    assert len(read_texts(reader)) == 1


def test_a_file_without_the_column_is_named_once_with_the_columns_it_has(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.parquet", [{"content": "x"}] * 10)
    (sample,) = read_samples(ParquetReader(tmp_path))
    assert (
        isinstance(sample, BadSample)
        and "no column ['text']; set `columns` out of ['content']" in sample.message
    )


def test_a_column_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    assert bad_samples(ParquetReader(tmp_path)) == [("s: a.parquet", "duplicate key")]


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (lambda data: b"", "empty file"),
        (lambda data: data[: len(data) // 2], "damaged file"),
        (lambda data: data[:-4], "damaged file"),
        (lambda data: b"text", "damaged file"),
        (lambda data: b"PAR1" + os.urandom(500) + b"PAR1", "damaged file"),
    ],
)
def test_a_damaged_file_is_named_and_the_others_are_read(tmp_path: Path, damage: Any, kind: str) -> None:
    path = write_rows(tmp_path / "a.parquet", [{"text": "x" * 50}] * 20)
    path.write_bytes(damage(path.read_bytes()))
    write_rows(tmp_path / "b.parquet", [{"text": "good"}])
    reader = ParquetReader(tmp_path)
    assert bad_samples(reader) == [("s: a.parquet", kind)]
    assert read_texts(reader) == ["good"]


def test_a_flipped_byte_costs_its_row_group_alone(tmp_path: Path) -> None:
    rows = [{"text": f"{number} {os.urandom(500).hex()}"} for number in range(40)]
    options: dict[str, Any] = {"row_group_size": 10, "write_page_checksum": True, "use_dictionary": False}
    path = write_rows(tmp_path / "a.parquet", rows, **options)
    column = pq.read_metadata(path).row_group(1).column(0)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size - 20] ^= 1
    path.write_bytes(data)
    reader = ParquetReader(path)
    assert bad_samples(reader) == [("s: a.parquet, row group 1", "damaged file")]
    assert [int(text.split()[0]) for text in read_texts(reader)] == [*range(10), *range(20, 40)]


def test_a_file_that_expands_enormously_is_stopped(tmp_path: Path) -> None:
    column = pa.array(["first"] + ["x" * (1 << 20)] * 80)
    pq.write_table(
        pa.table({"text": column}), tmp_path / "a.parquet", compression="zstd", use_dictionary=False
    )
    assert bad_samples(ParquetReader(tmp_path)) == [("s: a.parquet, row group 0", "expands too much")]
    assert len(read_documents(ParquetReader(tmp_path, limits=Limits(expansion=1e9)))) == 81


def test_a_file_that_changes_between_plan_and_read_is_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.parquet", [{"text": "x"}] * 10, row_group_size=2)
    reader = ParquetReader(path)
    (unit,) = reader.plan()
    write_rows(path, [{"text": "x"}] * 2)
    with pytest.raises(CorpusChangedError, match="has changed or vanished"):
        list(reader.read(unit, "s"))


def test_a_file_is_read_in_constant_memory_without_the_columns_that_are_not_needed(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    schema = pa.schema([("text", pa.string()), ("junk", pa.binary())])
    with pq.ParquetWriter(path, schema, use_dictionary=False, compression="none") as writer:
        texts, junk = ["some words " * 180] * 10_000, [bytes(10_000)] * 10_000
        for _ in range(2):  # row groups of 120 MB, pages of 2 and 10 MB
            writer.write_table(pa.table([texts, junk], schema=schema))
    code = (
        f"reader = ParquetReader({str(path)!r}, unit_bytes=1)\n"
        "assert sum(1 for unit in reader.plan() for _ in reader.read(unit, 's')) == 20_000"
    )
    assert path.stat().st_size > 200e6
    assert grown_megabytes(code) < 40

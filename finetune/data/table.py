"""A CSV or Parquet table of photos: path, label and, where it has them, split and group."""

from __future__ import annotations

import csv
import io
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.data.folders import ClassFrom
from finetune.data.listed import Listed, is_label, read_split
from finetune.errors import FinetuneError, nearest
from finetune.stores import File, TableStore

COLUMNS = ("path", "label", "split", "group")
DELIMITERS = ",;\t|"


@dataclass(frozen=True, slots=True)
class Row:
    """One row as text. where: its line, for messages."""

    where: str
    path: str
    label: str
    split: str
    group: str


def list_table(store: TableStore, class_from: ClassFrom) -> list[Listed]:
    """Return the photo of every row; raises FinetuneError naming the line where the table is wrong."""
    needed = ("path",) if class_from == "none" else ("path", "label")
    read = _read_parquet if store.address.lower().endswith(".parquet") else _read_csv
    rows = [_clean(store.address, row, needed) for row in read(store, needed)]
    if not rows:
        raise FinetuneError(f"{store.address} has no rows below its column names")
    files = _find(store, [row.path for row in rows])
    first: dict[str, Row] = {}
    photos = []
    for row, file in zip(rows, files, strict=True):
        other = first.setdefault(file.path, row)
        if other is not row:
            raise FinetuneError(f"{store.address}: {other.where} and {row.where} both name {file.path}; keep one")
        label, split = ("", "") if class_from == "none" else (row.label, row.split)
        photos.append(Listed(file.path, label, split, row.group, file.size, file.mtime_ns, file.refusal))
    return photos


def _find(store: TableStore, paths: Sequence[str]) -> list[File]:
    """Find each file; where there is none, a path as Windows writes it may be meant, or one without its spaces."""
    files = list(store.find(paths))
    meant = [posixpath.normpath(path.replace("\\", "/").strip()) for path in paths]
    elsewhere = [number for number, file in enumerate(files) if file.problem and meant[number] != paths[number]]
    for number, file in zip(elsewhere, store.find([meant[number] for number in elsewhere]), strict=True):
        files[number] = file
    return files


def _clean(address: str, row: Row, needed: Sequence[str]) -> Row:
    where = f"{address}, {row.where}"
    if not row.path.strip():
        raise FinetuneError(f"{where}: the path is empty")
    label = row.label.strip()
    if "label" in needed and not label:
        raise FinetuneError(f"{where}: the label is empty")
    if label and not is_label(label):
        raise FinetuneError(f"{where}: the label {label!r} is not one line of text")
    path = row.path if "://" in row.path else posixpath.normpath(row.path)
    return Row(row.where, path, label, read_split(row.split, where), row.group.strip())


def _read_csv(store: TableStore, needed: Sequence[str]) -> Iterator[Row]:
    try:
        text = store.read_table().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise FinetuneError(f"{store.address}, line {line}: not UTF-8; save the table as UTF-8") from None
    header = text.split("\n", 1)[0]
    delimiter = max(DELIMITERS, key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = next(reader, [])
        places = _find_columns(f"{store.address}, line 1", names, needed)
        line = reader.line_num + 1
        for cells in reader:
            if len(cells) > len(names):
                raise FinetuneError(
                    f"{store.address}, line {line}: {len(cells)} cells, but {len(names)} columns; "
                    f"put cells with '{delimiter}' in them in quotes"
                )
            if any(cells):
                given = {name: cells[place] for name, place in places.items() if place < len(cells)}
                yield Row(f"line {line}", *(given.get(name, "") for name in COLUMNS))
            line = reader.line_num + 1
    except csv.Error as error:
        raise FinetuneError(f"{store.address}, line {reader.line_num}: {error}") from None


def _read_parquet(store: TableStore, needed: Sequence[str]) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(store.read_table()))
        names = file.schema_arrow.names
        places = _find_columns(store.address, names, needed)
        table = file.read([names[place] for place in places.values()])
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FinetuneError(f"{store.address} is no Parquet file that can be read: {reason}") from None
    columns = {name: table.column(names[place]).to_pylist() for name, place in places.items()}
    for number in range(table.num_rows):
        where = f"row {number + 1}"
        given = {
            name: _as_text(cells[number], f"{store.address}, {where}: the {name}") for name, cells in columns.items()
        }
        yield Row(where, *(given.get(name, "") for name in COLUMNS))


def _find_columns(where: str, names: Sequence[str], needed: Sequence[str]) -> dict[str, int]:
    """Return where the known columns stand; raises FinetuneError beginning with `where` if a needed one is missing."""
    known = [name.strip().lower() for name in names]
    for name in COLUMNS:
        if known.count(name) > 1:
            raise FinetuneError(f"{where}: {known.count(name)} columns are called {name}; keep one")
        if name in needed and name not in known:
            raise FinetuneError(
                f"{where}: no column '{name}'{nearest(name, known)} (the columns are {', '.join(known) or 'none'})"
            )
    return {name: known.index(name) for name in COLUMNS if name in known}


def _as_text(value: Any, what: str) -> str:
    """Write a Parquet cell as a CSV file would; numbers stand for themselves, and pandas makes 1 a 1.0."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int | float):
        raise FinetuneError(f"{what} is neither text nor a number but {type(value).__name__}")
    return str(value)

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.errors import AddressError
from finetune.stores import File, TableStore
from tests.stores.conftest import write_folder, write_memory, write_zip


def found(store: TableStore, *paths: str) -> list[tuple[str, int, str]]:
    return [(file.path, file.size, file.problem) for file in store.find(paths)]


def test_paths_are_relative_to_the_table(tmp_path: Path) -> None:
    write_folder(tmp_path, {"tables/photos.csv": b"rows", "tables/red/0.jpg": b"red", "blue/1.jpg": b"blue!"})
    store = TableStore(str(tmp_path / "tables" / "photos.csv"))
    absolute = str(tmp_path / "blue" / "1.jpg")
    rows = ["red/0.jpg", "../blue/1.jpg", absolute, f"file://{absolute}", "red/2.jpg", "red", "red/0.jpg/x"]
    assert found(store, *rows) == [
        ("red/0.jpg", 3, ""),
        ("../blue/1.jpg", 5, ""),
        (absolute, 5, ""),
        (f"file://{absolute}", 5, ""),
        ("red/2.jpg", 0, "no such file"),
        ("red", (tmp_path / "tables" / "red").stat().st_size, "not a regular file"),
        ("red/0.jpg/x", 0, "no such file"),
    ]
    assert [store.read(path) for path in rows[:4]] == [b"red", b"blue!", b"blue!", b"blue!"]
    assert [store.exists(path) for path in rows] == [True, True, True, True, False, False, False]
    assert store.read_table() == b"rows"


def test_a_table_in_memory_names_files_beside_it_and_elsewhere(tmp_path: Path) -> None:
    root = write_memory(f"memory://{tmp_path.name}", {"photos.csv": b"rows", "red/0.jpg": b"red", "red/1.jpg": b"more"})
    packed = write_zip(tmp_path / "x.zip", {"blue/2.jpg": b"blue!"})
    store = TableStore(f"{root}/photos.csv")
    rows = ["red/0.jpg", f"{root}/red/1.jpg", f"zip://blue/2.jpg::{packed}", "red/7.jpg", "grey/0.jpg"]
    assert found(store, *rows) == [
        ("red/0.jpg", 3, ""),
        (rows[1], 4, ""),
        (rows[2], 5, ""),
        ("red/7.jpg", 0, "no such file"),
        ("grey/0.jpg", 0, "no such file"),
    ]
    assert [store.read(path) for path in rows[:3]] == [b"red", b"more", b"blue!"]
    assert [store.exists(path) for path in rows] == [True, True, True, False, False]
    assert store.read_table() == b"rows"
    assert all(isinstance(file, File) and (file.mtime_ns > 0 or file.problem) for file in store.find(rows))


def test_a_table_inside_a_zip(tmp_path: Path) -> None:
    packed = write_zip(tmp_path / "x.zip", {"photos.csv": b"rows", "red/0.jpg": b"red"})
    store = TableStore(f"zip://photos.csv::{packed}")
    assert store.read_table() == b"rows"
    assert found(store, "red/0.jpg", "red/1.jpg") == [("red/0.jpg", 3, ""), ("red/1.jpg", 0, "no such file")]
    assert store.read("red/0.jpg") == b"red"


def test_a_table_that_is_missing_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "photos.csv").write_text("x")
    with pytest.raises(AddressError, match=r"/photso\.csv: no such file; did you mean 'photos\.csv'\?$"):
        TableStore(str(tmp_path / "photso.csv")).read_table()
    with pytest.raises(AddressError, match=r"^memory://nowhere/x\.csv: no such file$"):
        TableStore("memory://nowhere/x.csv").read_table()

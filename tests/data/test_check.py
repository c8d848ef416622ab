from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest

from finetune.cli import run
from tests.conftest import paint, paint_folder


def table(capsys: pytest.CaptureFixture[str], root: Path, *words: str) -> str:
    assert run(["check", f"data.root={root}", *words]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_the_table_of_a_folder_of_classes(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert table(capsys, photos) == (
        "class   train     val    test\n"
        "blue        4       2       2\n"
        "green       4       2       2\n"
        "red         4       2       2\n"
        "all        12       6       6\n"
        "\n"
        "every file can be read\n"
    )


def test_the_table_of_split_folders_with_a_long_name_and_skipped_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "photos"
    seeds = itertools.count()
    for split, counts in {"train": (10, 5), "val": (3, 1), "test": (0, 2)}.items():
        for label, count in zip(("a long class name", "b"), counts, strict=True):
            for number in range(count):
                paint(root / split / label / f"{number}.png", "red", next(seeds))
    (root / "val" / "b" / "note.txt").write_text("no photo")
    (root / "test" / "b" / "zero.jpg").write_bytes(b"")
    assert table(capsys, root) == (
        "class               train     val    test\n"
        "a long class name      10       3       0\n"
        "b                       5       1       2\n"
        "all                    15       4       2\n"
        "\n"
        "skipped 2 files:\n"
        "  test/b/zero.jpg: empty file (0 bytes)\n"
        "  val/b/note.txt: not an image in a format that can be read\n"
    )


def test_the_fractions_and_nothing_else_decide_the_counts(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("data.val_fraction=0.125", "data.test_fraction=0")
    first = table(capsys, photos, *words)
    assert first.splitlines()[-3].split() == ["all", "21", "3", "0"]
    assert table(capsys, photos, *words, "seed=1") == first


def test_checking_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = paint_folder(tmp_path / "photos", 2)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    table(capsys, root)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_table_does_not_point_to_a_file_that_is_not_there(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(11):
        (photos / "red" / f"{number}.txt").write_text("no photo")
    shown = table(capsys, photos)
    assert "manifest.csv" not in shown
    assert all(f"red/{number}.txt: not an image" in shown for number in range(11))


def test_copies_in_another_split_or_class_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leaking = tmp_path / "leaking"
    paint_folder(leaking / "train", 3)
    paint_folder(leaking / "test", 1)
    assert "3 files are copies" in table(capsys, leaking)  # the same seeds paint the same photos
    other = tmp_path / "other"
    paint_folder(other, 4)
    assert "cop" not in table(capsys, other)
    shutil.copy(other / "red" / "0.jpg", other / "blue" / "mislabelled.jpg")
    assert (
        "1 file is a copy of a photo in another split or class (blue/mislabelled.jpg and red/0.jpg): "
        "what is measured on them cannot be trusted" in table(capsys, other)
    )

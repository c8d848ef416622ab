from __future__ import annotations

import csv
import itertools
import json
import shutil
from pathlib import Path

import pytest

from finetune.cli import run
from tests.conftest import CLASSES, manifest_of, paint, paint_folder


def table(capsys: pytest.CaptureFixture[str], root: Path, *words: str) -> str:
    assert run(["check", f"data.root={root}", *words]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_the_table_of_split_folders_with_a_long_name_and_findings(
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
    lines = table(capsys, root).splitlines()
    assert lines[:5] == [
        "class               train     val    test",
        "a long class name      10       3       0",
        "b                       5       1       2",
        "all                    15       4       2",
        "",
    ]
    assert [line.split() for line in lines[5:9]] == [
        ["skipped", "Empty", "file", "1"],
        ["test/b/zero.jpg:", "empty", "file", "(0", "bytes)"],
        ["skipped", "Not", "an", "image", "1"],
        ["val/b/note.txt:", "not", "an", "image", "in", "a", "format", "that", "can", "be", "read"],
    ]
    assert lines[-1] == "audit: audit/audit.html"


def test_every_file_is_in_the_table_whatever_the_seed(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(3):
        line = table(capsys, photos, "data.test_fraction=0", f"seed={seed}").splitlines()[4].split()
        assert (line[0], int(line[1]) + int(line[2]), line[3]) == ("all", 24, "0")


def test_all_cases_stand_in_the_json_and_some_in_the_table_and_page(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(20):
        (photos / "red" / f"{number}.txt").write_text("no photo")
    shown = table(capsys, photos, f"output={tmp_path / 'found'}")
    assert shown.count("not an image") == 3
    assert "and 17 more" in shown
    facts = json.loads((tmp_path / "found" / "audit.json").read_text())
    (finding,) = (finding for finding in facts["findings"] if finding["kind"] == "not_an_image")
    assert (finding["count"], len(finding["cases"]), finding["severity"]) == (20, 20, "skipped")
    assert (facts["files"], facts["skipped"]) == (44, 20)
    page = (tmp_path / "found" / "audit.html").read_text()
    assert page.count("not an image in a format") == 12
    assert "and 8 more" in page


def test_a_folder_without_labels_is_audited(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "red" / "zero.jpg").write_bytes(b"")
    lines = table(capsys, photos, "data.class_from=none").splitlines()
    assert lines[0] == "24 photos without labels"
    assert any("zero.jpg" in line for line in lines)


def test_what_cannot_be_trained_is_audited_all_the_same(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in list((photos / "red").iterdir())[1:]:
        path.unlink()
    assert run(["check", f"data.root={photos}"]) == 2
    said = capsys.readouterr().err
    assert "class 'red'" in said
    assert json.loads(Path("audit/audit.json").read_text())["findings"][0]["kind"] == "untrainable"


def test_the_first_unusable_file_stops_where_that_is_asked(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "green" / "zero.jpg").write_bytes(b"")
    assert run(["check", f"data.root={photos}", "data.on_problem=error"]) == 2
    said = capsys.readouterr().err
    assert f"green/zero.jpg in {photos}: empty file (0 bytes) (data.on_problem=error stops here)" in said


def test_copies_in_another_split_or_class_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leaking = tmp_path / "leaking"
    shutil.copytree(paint_folder(tmp_path / "photos", 3), leaking / "train")
    for label in CLASSES:
        shutil.copytree(tmp_path / "photos" / label, leaking / "test" / label)
        (leaking / "test" / label / "0.jpg").unlink()
    for label in CLASSES:
        paint(leaking / "train" / label / "new.jpg", label, 7)
    lines = table(capsys, leaking).splitlines()
    assert lines[4].split() == ["all", "3", "3", "6"]
    assert any(line.split()[:1] == ["skipped"] and line.endswith(" 6") for line in lines)


def test_photos_keep_the_splits_of_a_former_run(tiny_run: Path, tmp_path: Path) -> None:
    photos = shutil.copytree(tiny_run.parent / "photos", tmp_path / "photos")
    paint(photos / "red" / "new.jpg", "red", 99)
    with (tiny_run / "manifest.csv").open() as file:
        before = {row["path"]: row["split"] for row in csv.DictReader(file)}
    for seed in range(1, 4):
        after = {photo.path: photo.split for photo in manifest_of(photos, seed, splits_from=tiny_run).photos}
        assert {path: split for path, split in after.items() if path != "red/new.jpg"} == before


def test_a_former_run_that_is_none_is_refused(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", f"data.root={photos}", f"data.splits_from={tmp_path / 'photoz'}"]) == 2
    assert "is no run folder or manifest.csv; did you mean 'photos'?" in capsys.readouterr().err

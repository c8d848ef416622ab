from __future__ import annotations

import csv
import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from finetune.cli import run
from tests.conftest import CLASSES, manifest_of, paint, paint_folder, run_finetune


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


def test_files_that_cannot_be_opened_cost_no_time_and_no_memory(photos: Path) -> None:
    os.mkfifo(photos / "red" / "pipe.jpg")
    (photos / "red" / "endless.jpg").symlink_to("/dev/zero")
    with (photos / "red" / "video.mp4").open("wb") as file:
        file.truncate(40_000_000_000)  # takes no room on the disk
    # a pipe would wait for ever, the others would fill the memory
    done = run_finetune("check", f"data.root={photos}", timeout=60)
    assert done.returncode == 0, done.stderr
    reasons = {case["paths"][0]: case["detail"] for case in cases("unreadable")}
    assert reasons == {
        "red/endless.jpg": "not a regular file",
        "red/pipe.jpg": "not a regular file",
        "red/video.mp4": "40.0 GB is more than 1 GB",
    }


def cases(kind: str) -> list[dict[str, Any]]:
    """Return the cases of a kind from the audit that was written here."""
    findings = json.loads(Path("audit/audit.json").read_text())["findings"]
    return next((finding["cases"] for finding in findings if finding["kind"] == kind), [])


def test_names_that_would_steer_a_terminal_are_shown_as_text(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "red" / "\x1b[31mx.jpg").write_bytes(b"")
    (photos / "red" / "a\nb.jpg").write_bytes(b"")
    out = table(capsys, photos)
    assert "\x1b" not in out
    assert r"red/\x1b[31mx.jpg: empty file" in out
    assert r"red/a\nb.jpg: empty file" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("data.folds=5", "data.fold=5"), "data.fold=5 is wrong: data.folds=5 are numbered 0 to 4"),
        (("data.fold=1",), "data.fold=1 is wrong: needs data.folds, how many there are"),
        (
            ("data.folds=3", "data.splits_from=run"),
            "keeps the validation photos as they were, data.folds",
        ),
        (("data.class_from=none", "augment.preview=a.png"), "augment.preview= shows a photo of each class"),
        (
            ('data.group_pattern="patient(\\d+)"',),
            "data.group_pattern=patient(\\d+) finds nothing in any of the 24",
        ),
    ],
)
def test_keys_that_do_not_go_together_are_refused(
    words: tuple[str, ...], message: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["check", f"data.root={photos}", *words]) == 2
    assert message in capsys.readouterr().err


def test_folds_of_folders_that_name_their_validation_photos_are_refused(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split = photos.parent / "split"
    for name in ("train", "val"):
        shutil.copytree(photos, split / name)
    assert run(["check", f"data.root={split}", "data.folds=4"]) == 2
    assert f"data.folds=4 chooses the validation photos, but {split} names its own" in capsys.readouterr().err


def test_groups_are_counted_and_photos_of_none_are_said(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "red" / "0.jpg").rename(photos / "red" / "other.jpg")
    out = table(capsys, photos, 'data.group_pattern="/(\\d)"')
    assert "23 of the photos belong to 8 groups\n" in out
    assert "red/other.jpg: in no group\n" in out


def test_photos_that_lie_in_no_class_folder_are_named_with_what_can_be_done(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["check", f"data.root={photos / 'red'}"]) == 2
    said = capsys.readouterr().err
    assert "0.jpg lies in no class folder, as 7 more" in said
    assert "data.class_from=none" in said


def test_the_json_of_a_folder_without_labels_has_no_classes(photos: Path) -> None:
    assert run(["check", f"data.root={photos}", "data.class_from=none"]) == 0
    facts = json.loads(Path("audit/audit.json").read_text())
    assert (facts["files"], facts["used"], facts["classes"]) == (24, 24, {})


@pytest.mark.parametrize("profile", [None, b"no profile"])
def test_the_audit_says_whether_a_profile_was_used(profile: bytes | None, photos: Path) -> None:
    Image.new("CMYK", (64, 64), (9, 99, 199, 0)).save(photos / "red" / "x.jpg", icc_profile=profile)
    assert run(["check", f"data.root={photos}"]) == 0
    assert cases("cmyk") == [{"paths": ["red/x.jpg"], "detail": "it has no profile that can be used"}]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_three_channels_of_16_bits_are_found(suffix: str, photos: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 65536, (64, 64, 3)).astype(np.uint16)
    cv2.imwrite(str(photos / "red" / f"x.{suffix}"), levels)
    assert run(["check", f"data.root={photos}"]) == 0
    assert [case["paths"] for case in cases("deep")] == [[f"red/x.{suffix}"]]


def test_a_format_that_cannot_seek_is_no_damage(photos: Path) -> None:
    Image.open(photos / "red" / "0.jpg").convert("F").save(photos / "red" / "x.spi", "SPIDER")
    assert run(["check", f"data.root={photos}"]) == 0
    assert cases("damaged") == []

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from finetune.cli import run
from finetune.data.audit import read_labelled
from finetune.data.manifest import Manifest, Photo, summarise_skipped
from finetune.errors import FinetuneError
from finetune.files import sha256
from finetune.stores import FolderStore, StoredFile
from tests.conftest import CLASSES, manifest_of, paint, paint_folder


def read(root: Path, seed: int = 0) -> Manifest:
    return manifest_of(root, seed, val_fraction=0.25, test_fraction=0.25)


def counts(manifest: Manifest) -> dict[str, int]:
    """Return the usable photos of each split."""
    return {split: len(manifest.of(split)) for split in ("train", "val", "test")}


def refusal(root: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Run `finetune check`, which must refuse this folder; return what it says."""
    assert run(["check", f"data.root={root}"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    message, _, page = err.removesuffix("\n").rpartition("\naudit: ")
    assert page == "audit/audit.html" or not message
    return message or page


def check(root: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Run `finetune check`, which must go on; return the lines it prints."""
    assert run(["check", f"data.root={root}"]) == 0
    return capsys.readouterr().out.splitlines()


# Layouts


def test_class_folders_are_split(photos: Path) -> None:
    manifest = read(photos)
    assert manifest.classes == CLASSES
    assert sum(counts(manifest).values()) == 24
    there = {(photo.label, photo.split) for photo in manifest.photos}
    assert {(label, split) for label in CLASSES for split in ("train", "val")} <= there
    assert manifest.skipped == ()


def test_every_photo_has_its_path_label_and_digest(photos: Path) -> None:
    for photo in read(photos).photos:
        assert photo.path.startswith(f"{photo.label}/")
        assert photo.sha256 == sha256(photos / photo.path)
        assert photo.problem == ""


def test_train_and_test_folders_give_val_out_of_train(tmp_path: Path) -> None:
    paint_folder(tmp_path / "train", 8)
    paint_folder(tmp_path / "test", 3)
    manifest = read(tmp_path)
    assert (counts(manifest)["test"], len(manifest.of("train", "val"))) == (9, 24)
    assert all(photo.path.startswith("train/") for photo in manifest.of("train", "val"))
    assert all(photo.path.startswith("test/") for photo in manifest.of("test"))


def test_a_train_folder_alone_gives_val_and_no_test(tmp_path: Path) -> None:
    paint_folder(tmp_path / "train", 8)
    manifest = read(tmp_path)
    assert (counts(manifest)["test"], len(manifest.of("train", "val"))) == (0, 24)
    assert {photo.label for photo in manifest.of("val")} == set(CLASSES)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_validation_folder_is_used_as_it_is(name: str, tmp_path: Path) -> None:
    paint_folder(tmp_path / "train", 4)
    paint_folder(tmp_path / name, 2)
    manifest = read(tmp_path)
    assert counts(manifest) == {"train": 12, "val": 6, "test": 0}
    assert all(photo.path.startswith(f"{name}/") for photo in manifest.of("val"))


@pytest.mark.parametrize("name", ["train", "my photos", "Bögen", "50%", ".hidden", "a.b"])
def test_the_name_of_the_root_does_not_matter(name: str, photos: Path) -> None:
    before = read(photos)
    root = photos.rename(photos.parent / name)
    assert read(root) == replace(before, store=FolderStore(str(root)))


def test_every_photo_of_a_labelled_folder_is_tested(tmp_path: Path) -> None:
    paint_folder(tmp_path / "train", 2)
    paint_folder(tmp_path / "val", 2)
    (tmp_path / "val" / "red" / "note.txt").write_text("text")
    manifest = read_labelled(str(tmp_path), "folder")
    assert counts(manifest) == {"train": 0, "val": 0, "test": 12}
    assert len(manifest.skipped) == 1


def test_one_split_of_a_labelled_folder_is_tested(tmp_path: Path) -> None:
    paint_folder(tmp_path / "train", 2)
    paint_folder(tmp_path / "val", 1)
    manifest = read_labelled(str(tmp_path), "folder", "val")
    assert counts(manifest) == {"train": 0, "val": 0, "test": 3}
    with pytest.raises(FinetuneError, match="has no photos for split=test: it has train, val"):
        read_labelled(str(tmp_path), "folder", "test")


def test_one_class_is_enough_to_be_evaluated(tmp_path: Path) -> None:
    paint(tmp_path / "red" / "0.jpg", "red", 0)
    assert counts(read_labelled(str(tmp_path), "folder"))["test"] == 1


def test_a_labelled_folder_without_photos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FinetuneError, match="has no photos in class folders"):
        read_labelled(str(tmp_path), "folder")


# What a manifest answers


def test_targets_are_the_places_of_the_sorted_classes(photos: Path) -> None:
    manifest = read(photos)
    some = manifest.of("val")
    assert [manifest.classes[target] for target in manifest.targets(some)] == [photo.label for photo in some]
    assert manifest.files(some) == [StoredFile(manifest.store, photo.path) for photo in some]


def test_skipped_photos_belong_to_no_split(photos: Path) -> None:
    (photos / "red" / "note.txt").write_text("text")
    manifest = read(photos)
    assert [photo.path for photo in manifest.skipped] == ["red/note.txt"]
    assert not {"red/note.txt"} & {photo.path for photo in manifest.of("train", "val", "test")}


def test_the_fingerprint_is_that_of_the_contents_and_not_of_the_names(photos: Path) -> None:
    before = read(photos).fingerprint()
    (photos / "red" / "0.jpg").rename(photos / "red" / "zzz.jpg")
    (photos / "red" / "note.txt").write_text("text")
    root = photos.rename(photos.parent / "moved")
    assert read(root).fingerprint() == before


CHANGES: dict[str, Callable[[Path], object]] = {
    "other pixels": lambda root: paint(root / "red" / "0.jpg", "red", 12345),
    "one less": lambda root: (root / "red" / "0.jpg").unlink(),
    "one more": lambda root: paint(root / "red" / "8.jpg", "red", 12345),
    "other label": lambda root: (root / "red" / "0.jpg").rename(root / "blue" / "8.jpg"),
    "class name": lambda root: (root / "red").rename(root / "scarlet"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_fingerprint_changes_with(change: str, photos: Path) -> None:
    before = read(photos).fingerprint()
    CHANGES[change](photos)
    assert read(photos).fingerprint() != before


def test_the_fingerprint_changes_with_the_splits(photos: Path) -> None:
    assert read(photos, seed=1).fingerprint() != read(photos, seed=0).fingerprint()


# On disk


AWKWARD = [
    "plain.jpg",
    "one, two.jpg",
    'said "so".jpg',
    "it's.jpg",
    " blanks at both ends ",
    "tab\there.jpg",
    "半分 Ñandú ☃.jpg",
    "e\u0301 decomposed.jpg",
    "=1+1.jpg",
    "semi;colon#hash%.jpg",
    "back\\slash.jpg",
    "\u2028 separator.jpg",
    "two\nlines\r\nor three\r.jpg",
    "",
]


def test_a_manifest_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    listed = tuple(
        Photo(f"red/{name}", f"class {name}", "train", "00ff", problem=f"damaged: {name}") for name in AWKWARD
    )
    manifest = Manifest(tmp_path, listed)
    manifest.save(tmp_path / "manifest.csv")
    assert Manifest.load(tmp_path / "manifest.csv", manifest.store) == manifest


def test_a_folder_of_awkward_names_comes_back_as_it_was(photos: Path, tmp_path: Path) -> None:
    for number, name in enumerate(filter(None, AWKWARD)):
        paint(tmp_path / "new.png", "red", number).rename(photos / "red" / name)
    (photos / "blue").rename(photos / 'blue, "dark"')
    manifest = read(photos)
    assert manifest.skipped == ()
    assert counts(manifest)["train"] + counts(manifest)["val"] + counts(manifest)["test"] == 24 + len(AWKWARD) - 1
    manifest.save(tmp_path / "manifest.csv")
    loaded = Manifest.load(tmp_path / "manifest.csv", FolderStore(str(photos)))
    assert loaded == manifest
    assert loaded.fingerprint() == manifest.fingerprint()


def test_a_file_name_that_is_not_utf8_is_a_problem_and_the_manifest_is_saved(photos: Path, tmp_path: Path) -> None:
    (photos / "red" / "0.jpg").rename(photos / "red" / os.fsdecode(b"caf\xe9.jpg"))
    manifest = read(photos)
    assert [(photo.path, photo.problem) for photo in manifest.skipped] == [
        ("red/caf\\udce9.jpg", "its name is not UTF-8; rename it")
    ]
    manifest.save(tmp_path / "manifest.csv")
    assert Manifest.load(tmp_path / "manifest.csv", FolderStore(str(photos))) == manifest


def test_the_file_has_a_header_and_a_line_a_photo(photos: Path, tmp_path: Path) -> None:
    manifest = read(photos)
    manifest.save(tmp_path / "manifest.csv")
    lines = (tmp_path / "manifest.csv").read_text().splitlines()
    first = manifest.photos[0]
    assert lines[0] == "path,label,split,sha256,problem,group,width,height,together,split_from"
    assert lines[1] == f"blue/0.jpg,blue,{first.split},{first.sha256},,,80,60,,drawn"
    assert len(lines) == 25


# What is refused, word for word


def test_no_such_folder_names_the_nearest_one(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = photos.parent / "phots"
    assert refusal(wrong, capsys) == f"finetune check: data.root={wrong}: no such folder; did you mean 'photos'?"


def test_no_such_folder_and_none_like_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = tmp_path / "nowhere" / "photos"
    assert refusal(wrong, capsys) == f"finetune check: data.root={wrong}: no such folder"


def test_the_root_is_a_file(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = photos / "red" / "0.jpg"
    assert refusal(root, capsys) == (
        f"finetune check: data.root={root} is a file; give the folder that holds the class folders"
    )


@pytest.mark.parametrize("content", [(), ("red", "blue"), ("train", "test"), ("train/red", "test/red")])
def test_a_folder_without_photos(content: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in content:
        (tmp_path / folder).mkdir(parents=True)
    assert refusal(tmp_path, capsys) == (
        f"finetune check: {tmp_path} has no photos in class folders; "
        f"put them as {tmp_path}/CLASS/photo.jpg, one folder a class"
    )


def test_photos_that_lie_in_no_class_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paint(tmp_path / "0.jpg", "red", 0)
    assert refusal(tmp_path, capsys).startswith(f"finetune check: {tmp_path} has no photos in class folders; ")


def test_one_class(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(photos / "red")
    shutil.rmtree(photos / "blue")
    assert refusal(photos, capsys) == (
        f"finetune check: {photos} has one class, 'green'; a classifier needs two or more, a folder each"
    )


@pytest.mark.parametrize(("kept", "count"), [(1, "1 usable photo"), (0, "0 usable photos")])
def test_a_class_with_too_few_photos(kept: int, count: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(kept, 8):
        (photos / "red" / f"{number}.jpg").write_bytes(b"")
    assert refusal(photos, capsys) == (
        f"finetune check: class 'red' in {photos} has {count}; it needs at least 2, one to train "
        "on and one to validate with: add photos or move the folder away"
    )


def test_photos_to_test_with_do_not_make_up_for_missing_ones_to_train_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paint_folder(tmp_path / "train", 2)
    paint_folder(tmp_path / "test", 8)
    (tmp_path / "train" / "red" / "0.jpg").unlink()
    assert refusal(tmp_path, capsys).startswith(f"finetune check: class 'red' in {tmp_path} has 1 usable photo; ")


@pytest.mark.parametrize(
    ("label", "suggestion"), [("greeen", "; did you mean 'green'?"), ("violet", "")], ids=["near", "far"]
)
def test_a_class_in_test_that_train_lacks(
    label: str, suggestion: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paint_folder(tmp_path / "train", 4)
    paint_folder(tmp_path / "test", 4)
    extra = (tmp_path / "test" / "green").rename(tmp_path / "test" / label)
    assert refusal(tmp_path, capsys) == (
        f"finetune check: {extra} is a class that {tmp_path / 'train'} lacks{suggestion}"
    )


def test_none_of_the_files_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in ("blue/a.txt", "red/b.jpg"):
        (tmp_path / path).parent.mkdir()
    (tmp_path / "blue" / "a.txt").write_text("text")
    (tmp_path / "red" / "b.jpg").write_bytes(b"")
    assert refusal(tmp_path, capsys).splitlines() == [
        f"finetune check: none of the 2 files in {tmp_path} is an image that can be read",
        "skipped 2 files:",
        "  blue/a.txt: not an image in a format that can be read",
        "  red/b.jpg: empty file (0 bytes)",
    ]


# What is skipped


def test_bad_files_are_named_and_counted_and_the_command_goes_on(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (photos / "green" / "0.jpg").read_bytes()
    (photos / "blue" / "zero.jpg").write_bytes(b"")
    (photos / "green" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "red" / "note.txt").write_text("no photo")
    lines = check(photos, capsys)
    assert sum(map(int, lines[4].split()[1:])) == 24
    found = [line.strip() for line in lines[6:]]
    assert "blue/zero.jpg: empty file (0 bytes)" in found
    assert any(line.startswith("green/cut.jpg: damaged: image file is truncated") for line in found)
    assert "red/note.txt: not an image in a format that can be read" in found


def test_one_skipped_file_is_one_file(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "red" / "note.txt").write_text("no photo")
    lines = check(photos, capsys)
    (heading,) = (line for line in lines if line.startswith("skipped"))
    assert heading.split() == ["skipped", "Not", "an", "image", "1"]


def test_only_the_first_skipped_files_are_named() -> None:
    skipped = tuple(Photo(f"red/{number:02}.jpg", "red", "", "", "empty file (0 bytes)") for number in range(13))
    lines = summarise_skipped(skipped).splitlines()
    assert lines[0] == "skipped 13 files:"
    assert lines[1:11] == [f"  red/{number:02}.jpg: empty file (0 bytes)" for number in range(10)]
    assert lines[11:] == ["  and 3 more"]


def test_skipped_files_do_not_move_the_splits_of_the_others(photos: Path) -> None:
    before = read(photos).photos
    (photos / "red" / "000.jpg").write_bytes(b"")
    assert tuple(photo for photo in read(photos).photos if not photo.problem) == before


def test_a_val_folder_without_a_usable_photo_does_not_leave_validation_empty(tmp_path: Path) -> None:
    paint_folder(tmp_path / "train", 4)
    (tmp_path / "val" / "blue").mkdir(parents=True)
    (tmp_path / "val" / "blue" / "zero.jpg").write_bytes(b"")
    assert counts(read(tmp_path))["val"] > 0


def test_copies_of_one_photo_stay_in_one_split(photos: Path) -> None:
    for number in range(1, 8):
        shutil.copy(photos / "red" / "0.jpg", photos / "red" / f"{number}.jpg")
        paint(photos / "red" / f"other{number}.jpg", "red", 500 + number)
    copied = sha256(photos / "red" / "0.jpg")
    for seed in range(5):
        assert len({photo.split for photo in read(photos, seed).photos if photo.sha256 == copied}) == 1


def test_an_empty_class_folder_is_said(photos: Path) -> None:
    (photos / "yellow").mkdir()
    with pytest.raises(FinetuneError, match=r"class 'yellow' in .* has 0 usable photos; it needs at least 2"):
        read(photos)


def test_with_a_val_folder_one_photo_to_train_on_is_enough(tmp_path: Path) -> None:
    paint_folder(tmp_path / "train", 1)
    paint_folder(tmp_path / "val", 1)
    assert counts(read(tmp_path)) == {"train": 3, "val": 3, "test": 0}


def test_copies_count_once(tmp_path: Path) -> None:
    for label in ("red", "blue"):
        paint(tmp_path / label / "0.png", label, 0)
        for number in range(1, 5):
            shutil.copy(tmp_path / label / "0.png", tmp_path / label / f"{number}.png")
    with pytest.raises(FinetuneError, match=r"class 'blue' in .* has 1 usable photo; it needs at least 2"):
        read(tmp_path)

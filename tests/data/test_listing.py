from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from finetune.cli import run
from finetune.data.folders import ClassFrom
from finetune.data.listing import Listing, Note, list_source
from finetune.errors import FinetuneError
from tests.conftest import manifest_of, paint_folder
from tests.stores.conftest import write_folder, write_memory, write_tar, write_zip

Make = Callable[[Iterable[str]], str]


@pytest.fixture(params=["folder", "zip", "memory", "tar"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Put files of these names, and folders where a name ends with a slash, into every kind of place."""

    def making(names: Iterable[str]) -> str:
        files = {name: name.encode() for name in names if not name.endswith("/")}
        if request.param == "folder":
            for name in names:
                (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
                if name.endswith("/"):
                    (tmp_path / "root" / name).mkdir()
            return str(write_folder(tmp_path / "root", files))
        if request.param == "zip":
            return str(write_zip(tmp_path / "root.zip", {name: files.get(name, b"") for name in names}))
        if request.param == "memory":
            return write_memory(f"memory://{tmp_path.name}/root", files)
        return str(write_tar(tmp_path / "root.tar", files))

    return making


def listed(address: str, class_from: ClassFrom = "folder") -> dict[str, tuple[str, str]]:
    """Return label and split of each file, by its path below the tar file it may be in."""
    photos = list_source(address, class_from, None).photos
    return {photo.path.partition(".tar/")[2] or photo.path: (photo.label, photo.split) for photo in photos}


def notes(listing: Listing) -> list[tuple[str, str, str]]:
    return [(note.kind, note.path.partition(".tar/")[2] or note.path, note.message) for note in listing.notes]


def refusal(address: str, class_from: ClassFrom = "folder") -> str:
    with pytest.raises(FinetuneError) as caught:
        list_source(address, class_from, None)
    return str(caught.value)


# Class folders


def test_the_top_folder_is_the_class(make: Make) -> None:
    address = make(["red/0.jpg", "red/2024/may/1.jpg", "blue/2.jpg"])
    listing = list_source(address, "folder", None)
    assert listed(address) == {
        "red/0.jpg": ("red", ""),
        "red/2024/may/1.jpg": ("red", ""),
        "blue/2.jpg": ("blue", ""),
    }
    assert listing.classes == ("blue", "red")
    assert listing.notes == ()
    assert listing.store.address == address


def test_photos_stand_in_path_order_with_their_size(make: Make) -> None:
    names = [f"{label}/{number}.jpg" for number in (10, 9, 1) for label in "cab"]
    address = make(names)
    photos = list_source(address, "folder", None).photos
    assert [photo.path for photo in photos] == sorted(photo.path for photo in photos)
    assert [photo.size for photo in photos] == [len(name) for name in sorted(names)]
    assert list_source(address, "folder", None).photos == photos


def test_every_file_can_be_read_from_the_listings_store(make: Make) -> None:
    listing = list_source(make(["red/0.jpg", "blue/1.jpg"]), "folder", None)
    contents = {listing.store.read(photo.path) for photo in listing.photos}
    assert contents == {b"red/0.jpg", b"blue/1.jpg"}


def test_hidden_files_and_folders_are_passed_over(make: Make) -> None:
    hidden = [".cache/0.jpg", "red/.thumbnails/0.jpg", "red/.DS_Store", "red/._0.jpg", "red/Thumbs.db"]
    assert set(listed(make(["red/0.jpg", "blue/0.jpg", *hidden]))) == {"red/0.jpg", "blue/0.jpg"}


def test_photos_beside_the_class_folders_are_noted(make: Make) -> None:
    listing = list_source(make(["red/0.jpg", "blue/0.jpg", "b.jpg", "a.PNG", "notes.txt"]), "folder", None)
    assert len(listing.photos) == 2
    assert notes(listing)[:1] == [("outside_classes", "a.PNG", "lies in no class folder, as 1 more")]


def test_photos_without_any_class_folder_are_noted(make: Make) -> None:
    listing = list_source(make(["0.jpg"]), "folder", None)
    assert (listing.photos, listing.classes) == ((), ())
    assert notes(listing) == [("outside_classes", "0.jpg", "lies in no class folder")]


def test_an_empty_class_folder_is_a_class(tmp_path: Path) -> None:
    write_folder(tmp_path, {"red/0.jpg": b"x"})
    (tmp_path / "blue").mkdir()
    assert list_source(str(tmp_path), "folder", None).classes == ("blue", "red")
    packed = write_zip(tmp_path / "x.zip", {"red/0.jpg": b"x", "blue/": b""})
    assert list_source(str(packed), "folder", None).classes == ("blue", "red")


def test_an_archive_of_a_folder_is_what_that_folder_is(tmp_path: Path) -> None:
    names = ["photos/train/red/0.jpg", "photos/train/blue/0.jpg", "photos/test/red/1.jpg"]
    files = dict.fromkeys(names, b"x")
    for packed in (write_zip(tmp_path / "x.zip", {"photos/": b"", **files}), write_tar(tmp_path / "x.tar", files)):
        assert listed(str(packed)) == {
            "photos/train/red/0.jpg": ("red", "train"),
            "photos/train/blue/0.jpg": ("blue", "train"),
            "photos/test/red/1.jpg": ("red", "test"),
        }


def test_an_archive_of_one_class_is_that_class(tmp_path: Path) -> None:
    packed = write_zip(tmp_path / "x.zip", {"red/0.jpg": b"x", "red/more/1.jpg": b"x"})
    assert list_source(str(packed), "folder", None).classes == ("red",)


def test_an_archive_of_train_alone_is_a_split(tmp_path: Path) -> None:
    packed = write_zip(tmp_path / "x.zip", {"train/red/0.jpg": b"x", "train/blue/1.jpg": b"x"})
    assert set(listed(str(packed)).values()) == {("red", "train"), ("blue", "train")}


# Split folders


@pytest.mark.parametrize("name", ["val", "valid", "validation", "VAL"])
def test_split_folders(name: str, make: Make) -> None:
    address = make(["Train/red/0.jpg", "Train/blue/deep/0.jpg", f"{name}/red/0.jpg", "TEST/blue/0.jpg", ".git/x"])
    assert listed(address) == {
        "Train/red/0.jpg": ("red", "train"),
        "Train/blue/deep/0.jpg": ("blue", "train"),
        f"{name}/red/0.jpg": ("red", "val"),
        "TEST/blue/0.jpg": ("blue", "test"),
    }


def test_photos_directly_in_a_split_folder_are_noted(make: Make) -> None:
    listing = list_source(make(["train/red/0.jpg", "train/1.jpg", "test/red/2.jpg"]), "folder", None)
    assert listing.classes == ("red",)
    assert notes(listing) == [("outside_classes", "train/1.jpg", "lies in no class folder")]


@pytest.mark.parametrize("name", ["train", "test", "Val"])
def test_a_class_may_be_called_like_a_split(name: str, make: Make) -> None:
    address = make([f"{name}/0.jpg", "bus/0.jpg"])
    assert listed(address) == {f"{name}/0.jpg": (name, ""), "bus/0.jpg": ("bus", "")}


@pytest.mark.parametrize("class_from", ["folder", "path"])
def test_split_folders_beside_others_are_ambiguous(class_from: ClassFrom, make: Make) -> None:
    address = make(["train/red/0.jpg", "val/red/0.jpg", "extra/red/0.jpg"])
    assert refusal(address, class_from) == (
        f"{address} has split folders (train, val) and others beside them (extra): "
        "move the others away, or into the splits as classes"
    )


@pytest.mark.parametrize("class_from", ["folder", "path"])
def test_split_folders_without_train_are_no_classes(class_from: ClassFrom, make: Make) -> None:
    address = make(["val/red/0.jpg", "test/red/0.jpg"])
    assert refusal(address, class_from) == (
        f"{address} has test and val but no train; name the folder of training photos train"
    )


@pytest.mark.parametrize(("label", "hint"), [("greeen", "; did you mean 'green'?"), ("violet", "")])
def test_a_class_that_train_lacks(label: str, hint: str, make: Make) -> None:
    address = make(["Train/green/0.jpg", "Train/red/0.jpg", f"test/{label}/0.jpg"])
    assert refusal(address) == f"{address}/test/{label} is a class that {address}/Train lacks{hint}"


@pytest.mark.parametrize(("name", "shown"), [("re\nd", r"re\nd"), ("re\x07d", r"re\x07d")])
def test_a_class_name_that_fits_no_line_is_refused(name: str, shown: str, make: Make) -> None:
    address = make([f"{name}/0.jpg", "blue/0.jpg"])
    assert refusal(address) == (
        f"the folder {shown} in {address} has a name that cannot be written in a line of UTF-8; rename it"
    )


# Nested class folders


def test_the_whole_folder_path_is_the_class(make: Make) -> None:
    address = make(["a/b/0.jpg", "a/c/1.jpg", "a/2.jpg", "d/e/f/3.jpg"])
    listing = list_source(address, "path", None)
    assert listed(address, "path") == {
        "a/b/0.jpg": ("a/b", ""),
        "a/c/1.jpg": ("a/c", ""),
        "a/2.jpg": ("a", ""),
        "d/e/f/3.jpg": ("d/e/f", ""),
    }
    assert listing.classes == ("a", "a/b", "a/c", "d/e/f")


def test_the_folder_path_below_a_split_is_the_class(make: Make) -> None:
    address = make(["train/a/b/0.jpg", "train/c/1.jpg", "val/a/b/2.jpg", "val/3.jpg"])
    listing = list_source(address, "path", None)
    assert listed(address, "path") == {
        "train/a/b/0.jpg": ("a/b", "train"),
        "train/c/1.jpg": ("c", "train"),
        "val/a/b/2.jpg": ("a/b", "val"),
    }
    assert notes(listing) == [("outside_classes", "val/3.jpg", "lies in no class folder")]


def test_a_folder_path_that_train_lacks(make: Make) -> None:
    address = make(["train/a/b/0.jpg", "val/a/bb/2.jpg"])
    assert refusal(address, "path").startswith(f"{address}/val/a/bb is a class that {address}/train lacks")


# No labels


def test_an_unlabelled_folder_has_photos_anywhere(make: Make) -> None:
    address = make(["0.jpg", "train/1.jpg", "extra/deep/2.jpg", "val/3.jpg"])
    listing = list_source(address, "none", None)
    assert set(listed(address, "none")) == {"0.jpg", "train/1.jpg", "extra/deep/2.jpg", "val/3.jpg"}
    assert {(photo.label, photo.split, photo.problem) for photo in listing.photos} == {("", "", "")}
    assert (listing.classes, listing.notes) == ((), ())


# Groups


@pytest.mark.parametrize(
    ("pattern", "groups"),
    [
        (r"p(\d+)", ["1", "1", "22", ""]),
        (r"p\d+", ["p1", "p1", "p22", ""]),
        (r"(?:p(\d)_a)|p", ["1", "", "", ""]),
        (r"^red/p(?P<who>\d+)_(\w)", ["1", "1", "22", ""]),
    ],
)
def test_groups_are_found_in_paths(pattern: str, groups: list[str], make: Make) -> None:
    address = make(["red/p1_a.jpg", "red/p1_b.jpg", "red/p22_c.jpg", "rex/other.jpg"])
    found = list_source(address, "folder", pattern.replace("^", "(?:^|tar/)")).photos
    assert [photo.group for photo in found] == groups


def test_an_invalid_pattern_is_refused(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", f"data.root={photos}", "data.group_pattern='p(\\d'"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("finetune check: data.group_pattern=p(\\d is wrong: not a regular expression: ")


# Local folders


def test_a_relative_root_gives_the_same_photos(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos)
    assert list_source(".", "folder", None).photos == list_source(str(photos), "folder", None).photos


def test_a_class_folder_that_is_a_link_is_followed_and_noted(photos: Path) -> None:
    before = list_source(str(photos), "folder", None).photos
    moved = (photos / "red").rename(photos.parent / "elsewhere")
    (photos / "red").symlink_to(moved)
    listing = list_source(str(photos), "folder", None)
    assert [photo.path for photo in listing.photos] == [photo.path for photo in before]
    assert listing.notes == (Note("link_outside", "red", f"leads out, to {moved}"),)


def test_what_is_odd_about_files_is_their_problem(tmp_path: Path) -> None:
    write_folder(tmp_path, {"red/ok.jpg": b"x"})
    os.mkfifo(tmp_path / "red" / "pipe.jpg")
    (tmp_path / "red" / "gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "red" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    found = list_source(str(tmp_path), "folder", None).photos
    assert [(photo.path, photo.label, photo.problem) for photo in found] == [
        ("red/caf\\udce9.jpg", "red", "its name is not UTF-8; rename it"),
        ("red/gone.jpg", "red", "link to nothing"),
        ("red/ok.jpg", "red", ""),
        ("red/pipe.jpg", "red", "not a regular file"),
    ]


def test_a_class_folder_whose_name_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9")).mkdir()
    assert refusal(str(tmp_path)).startswith(f"the folder caf\\udce9 in {tmp_path} has a name that cannot be written")


def test_a_folder_deeper_down_whose_name_is_not_utf8_is_the_photos_problem(tmp_path: Path) -> None:
    write_folder(tmp_path, {f"red/{os.fsdecode(bytes([0xE9]))}/0.jpg": b"x"})
    (photo,) = list_source(str(tmp_path), "folder", None).photos
    assert (photo.label, photo.problem) == ("red", "its name is not UTF-8; rename it")


def test_a_loop_of_links_ends_and_is_noted(photos: Path) -> None:
    before = list_source(str(photos), "folder", None).photos
    (photos / "red" / "again").symlink_to("..")
    listing = list_source(str(photos), "folder", None)
    assert listing.photos == before
    assert [(note.kind, note.path) for note in listing.notes] == [("link_loop", "red/again")]


# From an address to a manifest


@pytest.mark.parametrize("place", ["zip", "memory", "tar"])
def test_an_archive_gives_the_manifest_of_its_folder(place: str, photos: Path, tmp_path: Path) -> None:
    files = {str(path.relative_to(photos)): path.read_bytes() for path in photos.rglob("*.jpg")}
    (photos / "red" / "bad.jpg").write_bytes(b"")
    files["red/bad.jpg"] = b""
    address = {
        "zip": lambda: str(write_zip(tmp_path / "x.zip", files)),
        "memory": lambda: write_memory(f"memory://{tmp_path.name}/photos", files),
        "tar": lambda: str(write_tar(tmp_path / "x.tar", files)),
    }[place]()
    manifest, there = manifest_of(photos), manifest_of(address)
    assert there.fingerprint() == manifest.fingerprint()
    assert [photo.problem for photo in there.skipped] == ["empty file (0 bytes)"]


def test_check_takes_a_zip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    photos = paint_folder(tmp_path / "photos")
    write_zip(
        tmp_path / "x.zip", {str(path.relative_to(tmp_path)): path.read_bytes() for path in photos.rglob("*.jpg")}
    )
    monkeypatch.chdir(tmp_path)
    for address in ("x.zip", "zip://photos::x.zip", "zip://*::x.zip"):
        assert run(["check", f"data.root={address}"]) == 0
        assert "green" in capsys.readouterr().out
    assert run(["check", "data.root=y.zip"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"finetune check: data.root={tmp_path}/y.zip: no such file; did you mean 'x.zip'?")

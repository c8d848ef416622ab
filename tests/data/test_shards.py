from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from finetune.data.folders import ClassFrom
from finetune.data.listing import Listing, list_source
from finetune.errors import FinetuneError
from tests.conftest import manifest_of, paint_folder
from tests.stores.conftest import tar_bytes, write_memory, write_tar


def placed(listing: Listing) -> dict[str, tuple[str, str]]:
    return {photo.path: (photo.label, photo.split) for photo in listing.photos}


def listed(root: Path | str, class_from: ClassFrom = "folder") -> dict[str, tuple[str, str]]:
    return placed(list_source(str(root), class_from, None))


# Samples


def test_samples_name_their_class(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"0.jpg": b"x", "0.cls": b"red\n", "1.png": b"x", "1.cls": b" blue "})
    write_tar(tmp_path / "b.tar", {"deep/0.cls": b"green", "deep/0.jpeg": b"x", "deep/0.txt": b"a caption"})
    listing = list_source(str(tmp_path), "folder", None)
    assert placed(listing) == {
        "a.tar/0.jpg": ("red", ""),
        "a.tar/1.png": ("blue", ""),
        "b.tar/deep/0.jpeg": ("green", ""),
    }
    assert listing.classes == ("blue", "green", "red")
    assert listing.notes == ()
    assert listing.store.read("a.tar/0.jpg") == b"x"


def test_class_numbers_are_names_where_a_list_lies_beside(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"0.jpg": b"x", "0.cls": b"1", "1.jpg": b"x", "1.json": b'{"label": 0}'})
    assert listed(tmp_path) == {"a.tar/0.jpg": ("1", ""), "a.tar/1.jpg": ("0", "")}
    (tmp_path / "classnames.txt").write_text("tench\ngreat white shark\n")
    assert listed(tmp_path) == {"a.tar/0.jpg": ("great white shark", ""), "a.tar/1.jpg": ("tench", "")}
    assert listed(tmp_path / "a.tar") == listed(tmp_path)


def test_a_class_number_beyond_the_list_is_noted(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"0.jpg": b"x", "0.cls": b"2", "1.jpg": b"x", "1.cls": b"0"})
    (tmp_path / "classnames.txt").write_text("tench\nshark\n")
    listing = list_source(str(tmp_path), "folder", None)
    assert set(placed(listing)) == {"a.tar/1.jpg"}
    assert [(note.kind, note.path, note.message) for note in listing.notes] == [
        ("outside_classes", "a.tar/0.jpg", "class number 2 is beyond the 2 lines of classnames.txt")
    ]


@pytest.mark.parametrize("field", ["label", "class", "cls"])
def test_json_names_class_split_and_group(field: str, tmp_path: Path) -> None:
    fields = {field: "red", "split": "Validation", "group": 7, "caption": "x"}
    write_tar(tmp_path / "a.tar", {"0.jpg": b"x", "0.json": json.dumps(fields).encode()})
    (photo,) = list_source(str(tmp_path), "folder", "no match").photos
    assert (photo.label, photo.split, photo.group) == ("red", "val", "7")


@pytest.mark.parametrize("order", [("0.cls", "0.json"), ("0.json", "0.cls")])
def test_cls_goes_before_json(order: tuple[str, str], tmp_path: Path) -> None:
    texts = {"0.cls": b"red", "0.json": b'{"label": "blue", "group": "g"}'}
    write_tar(tmp_path / "a.tar", {"0.jpg": b"x", **{name: texts[name] for name in order}})
    (photo,) = list_source(str(tmp_path), "folder", None).photos
    assert (photo.label, photo.group) == ("red", "g")


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"0.jpg": b"x", "0.json": b'{"label": "red", "split": "trian"}'})
    with pytest.raises(FinetuneError, match=r"^a\.tar/0\.json: unknown split 'trian'; did you mean 'train'\?"):
        list_source(str(tmp_path), "folder", None)


@pytest.mark.parametrize(
    ("member", "text", "reason"),
    [
        ("1.cls", b"", "its class is empty or not one line of text"),
        ("1.cls", b"two\nlines", "its class is empty or not one line of text"),
        ("1.cls", b"\xff\xfe", "its .cls is not text"),
        ("1.json", b"{", "its .json cannot be read"),
        ("1.json", b"[1]", "its .json is no object"),
        ("1.json", b'{"caption": "x"}', "no .cls or .json beside it names a class"),
        ("2.cls", b"red", "no .cls or .json beside it names a class"),
    ],
)
def test_photos_without_a_class_are_noted(member: str, text: bytes, reason: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"0.jpg": b"x", "0.cls": b"red", "1.jpg": b"x", member: text})
    listing = list_source(str(tmp_path), "folder", None)
    assert placed(listing) == {"a.tar/0.jpg": ("red", "")}
    assert listing.classes == ("red",)
    assert [(note.kind, note.path, note.message) for note in listing.notes] == [
        ("outside_classes", "a.tar/1.jpg", reason)
    ]


def test_other_members_of_a_sample_are_no_photos(tmp_path: Path) -> None:
    sample = {"0.jpg": b"x", "0.cls": b"red", "0.mask.png": b"x", "0.npy": b"x", "0.txt": b"x"}
    write_tar(
        tmp_path / "a.tar", {**sample, "1.v2.jpg": b"x", "1.v2.cls": b"blue", "2.left.jpg": b"x", "2.cls": b"red"}
    )
    assert listed(tmp_path) == {
        "a.tar/0.jpg": ("red", ""),
        "a.tar/1.v2.jpg": ("blue", ""),
        "a.tar/2.left.jpg": ("red", ""),
    }


def test_the_same_key_in_two_shards_is_two_photos(tmp_path: Path) -> None:
    for name, label in (("a", b"red"), ("b", b"blue")):
        write_tar(tmp_path / f"{name}.tar", {"0.jpg": b"x", "0.cls": label})
    assert listed(tmp_path) == {"a.tar/0.jpg": ("red", ""), "b.tar/0.jpg": ("blue", "")}


# Splits


@pytest.mark.parametrize(
    ("shard", "split"),
    [
        ("train-000.tar", "train"),
        ("Training_0.tar", "train"),
        ("val0.tar", "val"),
        ("validation/0.tar", "val"),
        ("valid.tar", "val"),
        ("test/deep-0.tar", "test"),
        ("values.tar", ""),
        ("trained.tar", ""),
        ("my-train.tar", ""),
    ],
)
def test_shards_name_their_split(shard: str, split: str, tmp_path: Path) -> None:
    write_tar(tmp_path / shard, {"0.jpg": b"x", "0.cls": b"red"})
    assert listed(tmp_path) == {f"{shard}/0.jpg": ("red", split)}


# Class folders inside


def test_class_folders_in_shards(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"red/0.jpg": b"x", "blue/1.jpg": b"x"})
    write_tar(tmp_path / "b.tar", {"red/deep/2.jpg": b"x", "3.jpg": b"x"})
    listing = list_source(str(tmp_path), "folder", None)
    assert placed(listing) == {
        "a.tar/red/0.jpg": ("red", ""),
        "a.tar/blue/1.jpg": ("blue", ""),
        "b.tar/red/deep/2.jpg": ("red", ""),
    }
    assert [(note.kind, note.path) for note in listing.notes] == [("outside_classes", "b.tar/3.jpg")]
    assert listed(tmp_path, "path")["b.tar/red/deep/2.jpg"] == ("red/deep", "")


def test_class_folders_in_shards_that_name_splits(tmp_path: Path) -> None:
    write_tar(tmp_path / "train.tar", {"train/red/0.jpg": b"x", "train/blue/1.jpg": b"x"})
    write_tar(tmp_path / "val.tar", {"val/red/2.jpg": b"x"})
    expected = {("red", "train"), ("blue", "train"), ("red", "val")}
    assert set(listed(tmp_path).values()) == expected
    write_tar(tmp_path / "train.tar", {"red/0.jpg": b"x", "blue/1.jpg": b"x"})
    write_tar(tmp_path / "val.tar", {"red/2.jpg": b"x"})
    assert set(listed(tmp_path).values()) == expected


def test_an_empty_class_folder_in_a_tar_file_is_a_class(tmp_path: Path) -> None:
    (tmp_path / "photos" / "empty").mkdir(parents=True)
    (tmp_path / "photos" / "red").mkdir()
    (tmp_path / "photos" / "red" / "0.jpg").write_bytes(b"x")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "photos", "photos")
    assert list_source(str(tmp_path / "x.tar"), "folder", None).classes == ("empty", "red")


def test_unlabelled_shards(tmp_path: Path) -> None:
    write_tar(tmp_path / "train.tar", {"0.jpg": b"x", "0.cls": b"red", "deep/1.jpg": b"x", "deep/1.txt": b"x"})
    listing = list_source(str(tmp_path), "none", None)
    assert placed(listing) == {"train.tar/0.jpg": ("", ""), "train.tar/deep/1.jpg": ("", "")}
    assert listing.classes == ()


# From shards to a manifest


def test_shards_give_the_manifest_of_the_same_photos_in_folders(tmp_path: Path) -> None:
    photos = sorted(paint_folder(tmp_path / "photos").rglob("*.jpg"))
    for number in range(3):
        sample: dict[str, bytes] = {}
        for key, photo in enumerate(photos[number::3]):
            sample |= {f"{key:06}.jpg": photo.read_bytes(), f"{key:06}.cls": photo.parent.name.encode()}
        write_memory(f"memory://{tmp_path.name}/shards", {f"part-{number}.tar": tar_bytes(sample)})
    expected = manifest_of(tmp_path / "photos")
    for address in ("shards", "shards/part-{0..2}.tar"):
        assert manifest_of(f"memory://{tmp_path.name}/{address}").fingerprint() == expected.fingerprint()

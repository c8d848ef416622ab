from __future__ import annotations

import io
import random
import re
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.errors import AddressError
from finetune.stores import File, Folder, FolderStore, TarStore, open_store
from tests.stores.conftest import tar_bytes, write_folder, write_memory, write_tar

NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=120).filter(
    lambda name: not name.startswith(".") and name not in ("Thumbs.db", "__MACOSX")
)


def open_tars(address: str | Path) -> TarStore:
    store = open_store(str(address))
    assert isinstance(store, TarStore)
    return store


def paths(store: TarStore) -> list[str]:
    return sorted(found.path for found in store.walk() if isinstance(found, File))


@given(
    st.dictionaries(NAMES, st.binary(max_size=2000), max_size=8),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_any_names_and_bytes_come_back(files: dict[str, bytes], form: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.tar")
        with tarfile.open(path, "w", format=form) as tar:
            for name, content in files.items():
                info = tarfile.TarInfo(f"folder/{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        store = open_tars(path)
        assert paths(store) == sorted(f"x.tar/folder/{name}" for name in files)
        for name, content in files.items():
            assert store.read(f"x.tar/folder/{name}") == content


def test_members_written_as_shells_do(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {"./red/0.jpg": b"0", "/blue/1.jpg": b"1"})
    store = open_tars(tmp_path / "x.tar")
    assert paths(store) == ["x.tar/blue/1.jpg", "x.tar/red/0.jpg"]
    assert store.read("x.tar/red/0.jpg") == b"0"


def test_folders_links_and_pipes_in_a_tar_file(tmp_path: Path) -> None:
    write_folder(tmp_path / "red", {"0.jpg": b"content"})
    (tmp_path / "red" / "1.jpg").hardlink_to(tmp_path / "red" / "0.jpg")
    (tmp_path / "red" / "2.jpg").symlink_to("0.jpg")
    (tmp_path / "red" / "3.jpg").symlink_to("nowhere")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("", "/0.jpg", "/1.jpg", "/2.jpg", "/3.jpg"):
            tar.add(tmp_path / f"red{name}", f"red{name}", recursive=False)
        pipe = tarfile.TarInfo("red/4.jpg")
        pipe.type = tarfile.FIFOTYPE
        tar.addfile(pipe)
    store = open_tars(tmp_path / "x.tar")
    found = list(store.walk())
    assert [item for item in found if isinstance(item, Folder)] == [Folder("x.tar/red")]
    problems = {item.path: item.problem for item in found if isinstance(item, File)}
    assert problems == {
        "x.tar/red/0.jpg": "",
        "x.tar/red/1.jpg": "",
        "x.tar/red/2.jpg": "",
        "x.tar/red/3.jpg": "link to nothing",
        "x.tar/red/4.jpg": "not a regular file",
    }
    for number in range(3):
        assert store.read(f"x.tar/red/{number}.jpg") == b"content"
    assert not store.exists("x.tar/red/3.jpg")


def test_the_last_member_of_a_name_counts(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for content in (b"old", b"newer"):
            info = tarfile.TarInfo("0.jpg")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    store = open_tars(tmp_path / "x.tar")
    assert [found for found in store.walk() if isinstance(found, File)] == [File("x.tar/0.jpg", 5, 0)]
    assert store.read("x.tar/0.jpg") == b"newer"


def test_members_are_read_by_a_process_that_never_listed_them(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {"red/0.jpg": b"0"})
    assert open_tars(tmp_path / "x.tar").read("x.tar/red/0.jpg") == b"0"


@pytest.mark.parametrize("kept", [100, 512, 700, 1024 + 100, 1536 + 256])
def test_a_tar_file_that_is_cut_off_is_refused(kept: int, tmp_path: Path) -> None:
    whole = tar_bytes({"0.bin": random.Random(0).randbytes(700), "1.bin": random.Random(1).randbytes(700)})
    (tmp_path / "x.tar").write_bytes(whole[:kept])
    with pytest.raises(AddressError, match=r"x\.tar is no whole tar file \(.*\); copy it again"):
        paths(open_tars(tmp_path / "x.tar"))


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    whole = bytearray(tar_bytes({"0.bin": b"x" * 700, "1.bin": b"y" * 700}))
    whole[1536 + 10] ^= 0xFF
    (tmp_path / "x.tar").write_bytes(whole)
    with pytest.raises(AddressError, match=r"is no whole tar file \(bad header\)"):
        paths(open_tars(tmp_path / "x.tar"))


# Shards


def test_a_folder_of_tar_files(tmp_path: Path) -> None:
    for place in ("train-000.tar", "train-001.tar"):
        write_tar(tmp_path / place, {"0.jpg": place.encode()})
    (tmp_path / "classnames.txt").write_text("red\n")
    store = open_tars(tmp_path)
    assert store == TarStore(str(tmp_path), str(tmp_path), ("train-000.tar", "train-001.tar"))
    assert paths(store) == ["train-000.tar/0.jpg", "train-001.tar/0.jpg"]
    assert store.read("train-001.tar/0.jpg") == b"train-001.tar"
    assert store.read_beside("classnames.txt") == b"red\n"
    assert store.read_beside("other.txt") is None


def test_tar_files_in_folders(tmp_path: Path) -> None:
    for place in ("train/0.tar", "val/0.tar"):
        write_tar(tmp_path / place, {"0.jpg": place.encode()})
    store = open_tars(tmp_path)
    assert store.shards == ("train/0.tar", "val/0.tar")
    assert store.read("val/0.tar/0.jpg") == b"val/0.tar"


@pytest.mark.parametrize("beside", ["red/0.jpg", "0.jpg", "train/deep/0.jpg"])
def test_tar_files_beside_photos_are_no_shards(beside: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "old.tar", {"0.jpg": b"x"})
    write_folder(tmp_path, {beside: b"x"})
    assert open_store(str(tmp_path)) == FolderStore(str(tmp_path))


def test_an_empty_folder_holds_no_shards(tmp_path: Path) -> None:
    (tmp_path / "red").mkdir()
    assert open_store(str(tmp_path)) == FolderStore(str(tmp_path))


def test_shards_in_memory(tmp_path: Path) -> None:
    for number in range(3):
        write_memory(
            f"memory://{tmp_path.name}/shards", {f"train-{number:03}.tar": tar_bytes({"0.jpg": b"%d" % number})}
        )
    write_memory(f"memory://{tmp_path.name}/shards", {"classnames.txt": b"red\n"})
    for address in (f"memory://{tmp_path.name}/shards", f"memory://{tmp_path.name}/shards/train-{{000..002}}.tar"):
        store = open_tars(address)
        assert store.shards == ("train-000.tar", "train-001.tar", "train-002.tar")
        assert [store.read(path) for path in paths(store)] == [b"0", b"1", b"2"]
        assert store.read_beside("classnames.txt") == b"red\n"
        assert store.read_beside("other.txt") is None


@given(st.integers(0, 120), st.integers(0, 30), st.integers(0, 4))
def test_braces_are_what_a_shell_makes_of_them(first: int, more: int, width: int) -> None:
    numbers = [f"{number:0{width}}" for number in range(first, first + more + 1)]
    store = open_tars(f"/a/{{train,val}}/x-{{{numbers[0]}..{numbers[-1]}}}.tar")
    # a shell pads all of them as soon as the first is padded
    padded = [name.zfill(len(numbers[0]) if numbers[0].startswith("0") else 0) for name in numbers]
    assert store.root == "/a"
    assert list(store.shards) == [f"{split}/x-{name}.tar" for split in ("train", "val") for name in padded]


def test_braces_that_are_no_pattern_are_a_name(tmp_path: Path) -> None:
    write_tar(tmp_path / "{1}" / "x{}.tar", {"0.jpg": b"x"})
    assert paths(open_tars(tmp_path / "{1}" / "x{}.tar")) == ["x{}.tar/0.jpg"]


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-000.tar", {"0.jpg": b"x"})
    address = f"{tmp_path}/train-{{000..001}}.tar"
    message = f"{tmp_path}/train-001.tar: no such file; did you mean 'train-000.tar'?"
    with pytest.raises(AddressError, match=re.escape(message)):
        paths(open_tars(address))
    assert not open_tars(address).exists("train-001.tar/0.jpg")

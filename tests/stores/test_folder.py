from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.errors import AddressError
from finetune.stores import File, Folder, FolderStore, Note
from tests.stores.conftest import write_folder

NOBODY = 65534


def walk(root: Path) -> tuple[dict[str, str], set[tuple[str, str, str]]]:
    """Return the problem of each file, and the notes."""
    found = list(FolderStore(str(root)).walk())
    files = [item for item in found if isinstance(item, File)]
    assert len({file.path for file in files}) == len(files)
    notes = {(item.kind, item.path, item.message) for item in found if isinstance(item, Note)}
    return {file.path: file.problem for file in files}, notes


def test_sizes_and_times_are_those_of_the_files(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"12345")
    os.utime(tmp_path / "a.jpg", ns=(1, 1_600_000_000_123_456_789))
    (tmp_path / "b.jpg").symlink_to("a.jpg")
    found = {item.path: item for item in FolderStore(str(tmp_path)).walk() if isinstance(item, File)}
    assert found["a.jpg"] == File("a.jpg", 5, 1_600_000_000_123_456_789)
    assert found["b.jpg"] == File("b.jpg", 5, 1_600_000_000_123_456_789)


def test_empty_folders_are_found(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert set(FolderStore(str(tmp_path)).walk()) == {Folder("a"), Folder("a/b")}


# Links


def test_links_inside_are_followed_without_a_note(tmp_path: Path) -> None:
    write_folder(tmp_path, {"real/0.jpg": b"x"})
    (tmp_path / "folder").symlink_to("real")
    (tmp_path / "real" / "1.jpg").symlink_to("0.jpg")
    files, notes = walk(tmp_path)
    assert files == {"real/0.jpg": "", "real/1.jpg": "", "folder/0.jpg": "", "folder/1.jpg": ""}
    assert notes == set()
    assert FolderStore(str(tmp_path)).read("folder/1.jpg") == b"x"


def test_a_linked_folder_outside_is_followed_and_noted_once(tmp_path: Path) -> None:
    write_folder(tmp_path / "elsewhere", {"deep/0.jpg": b"x", "1.jpg": b"x"})
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "red").symlink_to("../elsewhere")
    files, notes = walk(tmp_path / "root")
    assert files == {"red/deep/0.jpg": "", "red/1.jpg": ""}
    assert notes == {("link_outside", "red", f"leads out, to {tmp_path}/elsewhere")}


def test_a_folder_of_links_outside_gives_one_note(tmp_path: Path) -> None:
    write_folder(tmp_path / "elsewhere", {f"{number}.jpg": b"x" for number in range(3)})
    write_folder(tmp_path / "root", {"red/own.jpg": b"x"})
    for number in range(3):
        (tmp_path / "root" / "red" / f"{number}.jpg").symlink_to(tmp_path / "elsewhere" / f"{number}.jpg")
    files, notes = walk(tmp_path / "root")
    assert len(files) == 4
    assert notes == {
        ("link_outside", "red/0.jpg", f"leads out, to {tmp_path}/elsewhere/0.jpg, as do 2 links beside it")
    }


def test_a_link_inside_that_leads_on_outside_is_noted(tmp_path: Path) -> None:
    write_folder(tmp_path / "elsewhere", {"0.jpg": b"x"})
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "far.jpg").symlink_to(tmp_path / "elsewhere" / "0.jpg")
    (tmp_path / "root" / "near.jpg").symlink_to("far.jpg")
    _, notes = walk(tmp_path / "root")
    assert {note[0] for note in notes} == {"link_outside"}
    assert "as do 1 links beside it" in next(iter(notes))[2]


def test_a_root_that_is_a_link_leads_nowhere_out(tmp_path: Path) -> None:
    write_folder(tmp_path / "real", {"red/0.jpg": b"x"})
    (tmp_path / "real" / "blue").symlink_to("red")
    (tmp_path / "root").symlink_to("real")
    files, notes = walk(tmp_path / "root")
    assert files == {"red/0.jpg": "", "blue/0.jpg": ""}
    assert notes == set()


@pytest.mark.parametrize("target", [".", "..", "../..", "../../.."])
def test_a_link_to_a_folder_above_is_not_followed(target: str, tmp_path: Path) -> None:
    write_folder(tmp_path / "root", {"red/deep/0.jpg": b"x"})
    (tmp_path / "root" / "red" / "deep" / "again").symlink_to(target)
    files, notes = walk(tmp_path / "root")
    assert files == {"red/deep/0.jpg": ""}
    held = (tmp_path / "root" / "red" / "deep" / target).resolve()
    assert notes == {("link_loop", "red/deep/again", f"leads back to {held}, which holds it")}


def test_folders_that_link_to_each_other_are_each_followed_once(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a/0.jpg": b"x", "b/1.jpg": b"x"})
    (tmp_path / "a" / "to_b").symlink_to("../b")
    (tmp_path / "b" / "to_a").symlink_to("../a")
    files, notes = walk(tmp_path)
    assert set(files) == {"a/0.jpg", "b/1.jpg", "a/to_b/1.jpg", "b/to_a/0.jpg"}
    assert {(kind, path) for kind, path, _ in notes} == {
        ("link_loop", "a/to_b/to_a"),
        ("link_loop", "b/to_a/to_b"),
    }


def test_a_loop_through_a_folder_outside_ends(tmp_path: Path) -> None:
    write_folder(tmp_path / "outside", {"0.jpg": b"x"})
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "out").symlink_to(tmp_path / "outside")
    (tmp_path / "outside" / "back").symlink_to(tmp_path / "root")
    files, notes = walk(tmp_path / "root")
    assert files == {"out/0.jpg": ""}
    assert {(kind, path) for kind, path, _ in notes} == {("link_outside", "out"), ("link_loop", "out/back")}


def test_a_link_to_itself(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").symlink_to("a.jpg")
    assert walk(tmp_path) == ({}, {("link_loop", "a.jpg", "leads to itself")})


@pytest.mark.parametrize("target", ["nowhere.jpg", "0.jpg/below"])
def test_a_link_to_nothing(target: str, tmp_path: Path) -> None:
    write_folder(tmp_path, {"0.jpg": b"x"})
    (tmp_path / "gone.jpg").symlink_to(target)
    assert walk(tmp_path) == ({"0.jpg": "", "gone.jpg": "link to nothing"}, set())


def test_a_folder_whose_name_another_begins_with_is_no_folder_above(tmp_path: Path) -> None:
    write_folder(tmp_path, {"red/0.jpg": b"x", "red2/1.jpg": b"x"})
    (tmp_path / "red2" / "more").symlink_to("../red")
    files, notes = walk(tmp_path)
    assert set(files) == {"red/0.jpg", "red2/1.jpg", "red2/more/0.jpg"}
    assert notes == set()


# Files that are none


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to("pipe.jpg")
    assert walk(tmp_path)[0] == {"pipe.jpg": "not a regular file", "link.jpg": "not a regular file"}


# Permissions


def as_nobody(code: str, root: Path) -> str:
    """Run some lines in `root` as a user who may do nothing."""
    begin = f"import os\nfrom finetune.stores import *\nos.chdir({str(root)!r})\nos.getuid() or os.setuid({NOBODY})\n"
    done = subprocess.run([sys.executable, "-c", begin + code], capture_output=True, text=True, check=False)
    if "Operation not permitted" in done.stderr:
        pytest.skip("this user can neither be denied a folder nor become another")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def locked(tmp_path: Path) -> Path:
    root = write_folder(tmp_path / "root", {"open/0.jpg": b"x", "closed/1.jpg": b"x", "open/deep/2.jpg": b"x"})
    for folder in (root, root / "open"):
        folder.chmod(0o755)
    (root / "closed").chmod(0)
    (root / "open" / "deep").chmod(0)
    return root


def test_folders_that_cannot_be_opened_are_noted(locked: Path) -> None:
    said = as_nobody("for f in sorted(map(str, FolderStore('.').walk())): print(f)", locked).splitlines()
    assert [line for line in said if line.startswith("Note")] == [
        "Note(kind='unreadable_folder', path='closed', message='cannot be opened: permission denied')",
        "Note(kind='unreadable_folder', path='open/deep', message='cannot be opened: permission denied')",
    ]
    assert [line.split(",")[0] for line in said if line.startswith("File")] == ["File(path='open/0.jpg'"]


def test_a_link_into_a_folder_that_cannot_be_opened(locked: Path) -> None:
    (locked / "open" / "link.jpg").symlink_to("../closed/1.jpg")
    said = as_nobody("for f in FolderStore('open').walk(): print(f)", locked)
    assert "path='link.jpg', size=0, mtime_ns=0, problem='cannot be read: Permission denied'" in said


def test_a_root_that_cannot_be_opened(locked: Path) -> None:
    code = "try:\n    list(FolderStore('closed').walk())\nexcept Exception as error: print(type(error).__name__, error)"
    assert as_nobody(code, locked) == "AddressError closed: no permission to read this folder\n"


def test_the_root_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    with pytest.raises(AddressError, match=r"x is a file; give the folder that holds the class folders$"):
        walk(tmp_path / "x")

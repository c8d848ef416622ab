from __future__ import annotations

import csv
import re
import shutil
import tempfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.cli import run
from finetune.data.folders import ClassFrom
from finetune.data.listing import Listed, list_source
from finetune.errors import FinetuneError
from tests.conftest import manifest_of
from tests.stores.conftest import write_folder, write_memory, write_zip

PHOTOS = {"red/0.jpg": b"12345", "blue/1.jpg": b"123", "blue/2.jpg": b"1"}


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """The folder of a table, with photos in it."""
    return write_folder(tmp_path, PHOTOS)


def write_table(folder: Path, text: str, encoding: str = "utf-8") -> str:
    (folder / "photos.csv").write_bytes(text.encode(encoding))
    return str(folder / "photos.csv")


def rows(address: str, class_from: ClassFrom = "folder") -> list[tuple[str, str, str, str, str]]:
    found = list_source(address, class_from, None).photos
    return [(photo.path, photo.label, photo.split, photo.group, photo.problem) for photo in found]


def refusal(address: str) -> str:
    with pytest.raises(FinetuneError) as caught:
        list_source(address, "folder", None)
    return str(caught.value).removeprefix(address)


def test_paths_and_labels(beside: Path) -> None:
    address = write_table(beside, "path,label\nred/0.jpg,rot\nblue/1.jpg,blau\n")
    listing = list_source(address, "folder", None)
    assert listing.photos == (
        Listed("blue/1.jpg", "blau", "", "", 3, (beside / "blue/1.jpg").stat().st_mtime_ns),
        Listed("red/0.jpg", "rot", "", "", 5, (beside / "red/0.jpg").stat().st_mtime_ns),
    )
    assert (listing.classes, listing.notes) == (("blau", "rot"), ())
    assert [listing.store.read(photo.path) for photo in listing.photos] == [b"123", b"12345"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_the_usual_dialects(delimiter: str, encoding: str, ending: str, beside: Path) -> None:
    cells = [
        [" Label ", "notes", "PATH ", "Split", "group"],
        ["rot", "x", "red/0.jpg", "", f'"p{delimiter}1"'],
        [],
        ["blau", '"say ""x"""', "blue/1.jpg", "VALID", ""],
    ]
    text = "".join(delimiter.join(line) + ending for line in cells)
    assert rows(write_table(beside, text, encoding)) == [
        ("blue/1.jpg", "blau", "val", "", ""),
        ("red/0.jpg", "rot", "", f"p{delimiter}1", ""),
    ]


@given(
    st.dictionaries(
        st.sampled_from(sorted(PHOTOS)),
        st.text(min_size=1).filter(lambda text: text.strip().isprintable() and text.strip() != ""),
        min_size=1,
    )
)
def test_whatever_a_csv_writer_writes_comes_back(labels: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        with Path(folder, "photos.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "label"])
            writer.writerows(labels.items())
        found = {photo.path: photo.label for photo in list_source(f"{folder}/photos.csv", "folder", None).photos}
    assert found == {path: label.strip() for path, label in labels.items()}


def test_splits_are_those_of_folders_in_any_case(beside: Path) -> None:
    names = ["train", "Val", "VALID", "validation", "test", " ", ""]
    lines = [f"{number}.jpg,x,{name}" for number, name in enumerate(names)]
    found = rows(write_table(beside, "\n".join(["path,label,split", *lines])))
    assert [row[2] for row in found] == ["train", "val", "val", "val", "test", "", ""]


def test_missing_files_are_a_problem_and_not_an_error(beside: Path) -> None:
    address = write_table(beside, "path,label\nred/0.jpg,a\nred/7.jpg,b\nred,c\n")
    assert [(row[0], row[4]) for row in rows(address)] == [
        ("red", "not a regular file"),
        ("red/0.jpg", ""),
        ("red/7.jpg", "no such file"),
    ]


def test_paths_lie_anywhere(beside: Path) -> None:
    packed = write_zip(beside / "x.zip", {"a/b.jpg": b"packed"})
    memory = write_memory(f"memory://{beside.name}", {"c.jpg": b"memory"})
    (beside / "tables").mkdir()
    paths = ["../red/0.jpg", str(beside / "blue" / "1.jpg"), f"zip://a/b.jpg::{packed}", f"{memory}/c.jpg"]
    address = write_table(beside / "tables", "\n".join(["path,label", *(f"{path},x" for path in paths)]))
    listing = list_source(address, "folder", None)
    assert {photo.path: listing.store.read(photo.path) for photo in listing.photos} == dict(
        zip(paths, [b"12345", b"123", b"packed", b"memory"], strict=True)
    )


def test_windows_paths_are_accepted_where_no_file_is_called_so(beside: Path) -> None:
    (beside / "odd\\name.jpg").write_bytes(b"x")
    address = write_table(beside, "path,label\nred\\0.jpg,a\nodd\\name.jpg,b\nno\\where.jpg,c\n.\\blue\\1.jpg,d\n")
    assert [(row[0], row[4]) for row in rows(address)] == [
        ("blue/1.jpg", ""),
        ("no/where.jpg", "no such file"),
        ("odd\\name.jpg", ""),
        ("red/0.jpg", ""),
    ]


def test_spaces_around_a_path_are_passed_over_where_no_file_is_called_so(beside: Path) -> None:
    (beside / " odd.jpg").write_bytes(b"x")
    address = write_table(beside, "path, label\n red/0.jpg , a\n odd.jpg, b\n")
    assert [(row[0], row[1], row[4]) for row in rows(address)] == [(" odd.jpg", "b", ""), ("red/0.jpg", "a", "")]


def test_labels_are_not_needed_where_none_are_wanted(beside: Path) -> None:
    address = write_table(beside, "path\nred/0.jpg\nblue/1.jpg\n")
    assert rows(address, "none") == [("blue/1.jpg", "", "", "", ""), ("red/0.jpg", "", "", "", "")]
    assert list_source(address, "none", None).classes == ()
    labelled = write_table(beside, "path,label,split\nred/0.jpg,red,train\n")
    assert rows(labelled, "none") == [("red/0.jpg", "", "", "", "")]


def test_groups_of_the_table_go_before_the_pattern(beside: Path) -> None:
    address = write_table(beside, "path,label,group\nred/0.jpg,a,p1\nblue/1.jpg,b,\n")
    photos = list_source(address, "folder", r"(\d)\.jpg").photos
    assert [(photo.path, photo.group) for photo in photos] == [("blue/1.jpg", "1"), ("red/0.jpg", "p1")]


# What is refused, word for word


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,lable\na,b\n", ", line 1: no column 'label'; did you mean 'lable'? (the columns are path, lable)"),
        ("", ", line 1: no column 'path' (the columns are none)"),
        ("path,label,Path\na,b,c\n", ", line 1: 2 columns are called path; keep one"),
        ("path,label\n", " has no rows below its column names"),
        ("path,label\na,b\n,c\n", ", line 3: the path is empty"),
        ("path,label\n\na,b\nc, \n", ", line 4: the label is empty"),
        ('path,label\n"a",b\n"c","d\ne"\n', ", line 3: the label 'd\\ne' is not one line of text"),
        ('path,x,label\na,"\n\n",b\nc,,\n', ", line 5: the label is empty"),
        (
            "path,label,split\na,b,train\nc,d,trian\n",
            ", line 3: unknown split 'trian'; did you mean 'train'? "
            "(it takes train, val, valid, validation, test, or nothing)",
        ),
        ("path,label\na,b\nc,d\n./a,e\n", ": line 2 and line 4 both name a; keep one"),
        ("path,label\na,b\nc,d,e\n", ", line 3: 3 cells, but 2 columns; put cells with ',' in them in quotes"),
        ('path,label\na,"b\n', ", line 2: unexpected end of data"),
    ],
)
def test_what_is_wrong_is_named_by_its_line(text: str, message: str, tmp_path: Path) -> None:
    assert refusal(write_table(tmp_path, text)) == message


def test_a_table_that_is_not_utf8(tmp_path: Path) -> None:
    address = write_table(tmp_path, "path,label\na,b\nc,Bögen\n", "latin-1")
    assert refusal(address) == ", line 3: not UTF-8; save the table as UTF-8"


def test_a_table_that_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(tmp_path, "")
    assert run(["check", f"data.root={tmp_path}/photso.csv"]) == 2
    assert f"data.root={tmp_path}/photso.csv: no such file; did you mean 'photos.csv'?" in capsys.readouterr().err


# Parquet


def write_parquet(folder: Path, **columns: object) -> str:
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "photos.parquet")
    return str(folder / "photos.parquet")


def test_parquet(beside: Path) -> None:
    address = write_parquet(
        beside,
        other=[[1], [2], []],
        Label=pyarrow.array(["a", "b", "a"]).dictionary_encode(),
        path=["red/0.jpg", "blue\\1.jpg", "blue/2.jpg"],
        split=["Train", None, ""],
        group=pyarrow.array([7, None, 8], pyarrow.int64()),
    )
    assert rows(address) == [
        ("blue/1.jpg", "b", "", "", ""),
        ("blue/2.jpg", "a", "", "8", ""),
        ("red/0.jpg", "a", "train", "7", ""),
    ]


@pytest.mark.parametrize(
    "labels", [[1, 0, 12], [1.0, 0.0, 12.0], pyarrow.array([1, 0, 12], pyarrow.uint8())], ids=["int", "float", "uint8"]
)
def test_whole_numbers_are_labels(labels: object, beside: Path) -> None:
    address = write_parquet(beside, path=sorted(PHOTOS), label=labels)
    assert [row[1] for row in rows(address)] == ["1", "0", "12"]


def test_parquet_and_csv_give_the_same(beside: Path) -> None:
    text = write_table(beside, "path,label,split\nred/0.jpg,1,test\nblue/1.jpg,2,\n")
    parquet = write_parquet(beside, path=["red/0.jpg", "blue/1.jpg"], label=[1, 2], split=["test", None])
    assert rows(parquet) == rows(text)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"path": ["a"], "labels": ["b"]},
            ": no column 'label'; did you mean 'labels'? (the columns are path, labels)",
        ),
        ({"path": ["a", "b"], "label": ["c", None]}, ", row 2: the label is empty"),
        ({"path": ["a", "a"], "label": ["c", "d"]}, ": row 1 and row 2 both name a; keep one"),
        ({"path": ["a"], "label": [["c"]]}, ", row 1: the label is neither text nor a number but list"),
        ({"path": ["a"], "label": [b"c"]}, ", row 1: the label is neither text nor a number but bytes"),
    ],
)
def test_what_is_wrong_with_parquet_is_named_by_its_row(
    columns: dict[str, object], message: str, tmp_path: Path
) -> None:
    assert refusal(write_parquet(tmp_path, **columns)) == message


def test_what_is_no_parquet_file(tmp_path: Path) -> None:
    (tmp_path / "photos.parquet").write_text("path,label\n")
    assert re.match(r" is no Parquet file that can be read: .+", refusal(str(tmp_path / "photos.parquet")))


# At an address, and to a manifest


def test_a_table_and_its_photos_in_memory(tmp_path: Path) -> None:
    root = write_memory(
        f"memory://{tmp_path.name}", {**PHOTOS, "photos.csv": b"path,label\nred/0.jpg,a\nred/9.jpg,b\n"}
    )
    assert rows(f"{root}/photos.csv") == [("red/0.jpg", "a", "", "", ""), ("red/9.jpg", "b", "", "", "no such file")]


def test_a_table_gives_the_manifest_of_its_folder(photos: Path) -> None:
    paths = sorted(path.relative_to(photos) for path in photos.rglob("*.jpg"))
    address = write_table(photos, "\n".join(["path,label", *(f"{path},{path.parent}" for path in paths)]))
    expected = manifest_of(photos)
    found = manifest_of(address)
    assert (found.photos, found.fingerprint()) == (expected.photos, expected.fingerprint())


def test_the_manifest_of_a_run_is_a_table(tiny_run: Path, tmp_path: Path) -> None:
    root = shutil.copytree(tiny_run.parent / "photos", tmp_path / "photos")
    shutil.copy(tiny_run / "manifest.csv", root / "manifest.csv")
    found = list_source(str(root / "manifest.csv"), "folder", None).photos
    assert len(found) == 24
    assert {photo.problem for photo in found} == {""}
    assert {photo.split for photo in found} == {"train", "val", "test"}
    assert {photo.path.split("/")[0] for photo in found} == {photo.label for photo in found}

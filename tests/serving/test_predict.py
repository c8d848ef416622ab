from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from finetune.cli import run
from tests.conftest import CLASSES, paint, run_finetune
from tests.stores.conftest import write_memory, write_tar, write_zip


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_becomes_a_table(tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for label in CLASSES:
        for index in range(5):
            paint(tmp_path / "new" / "deep" / f"{label}{index}.png", label, seed=index)
    (tmp_path / "new" / "readme.txt").write_text("no photo")
    output = tmp_path / "out" / "predictions.csv"
    assert run(["predict", f"model={tiny_models / 'tiny'}", f"input={tmp_path / 'new'}", f"output={output}"]) == 0
    rows = table(output)
    assert list(rows[0]) == ["path", "label", "probability", "error"]
    assert len(rows) == 16
    for row in rows:
        if row["path"] == "readme.txt":
            assert (row["label"], row["probability"]) == ("", "")
            assert row["error"] == "not an image in a format that can be read"
        else:
            assert row["label"] == Path(row["path"]).stem[:-1]
            assert 0.5 < float(row["probability"]) <= 1
            assert row["error"] == ""
    said = capsys.readouterr().out
    assert said.startswith(f"15 photos predicted with tiny version 1: {output}\n")
    assert "1  could not be read" in said


def test_one_photo_with_all_probabilities(tiny_models: Path, tmp_path: Path) -> None:
    photo = paint(tmp_path / "red.jpg", "red", seed=1)
    output = tmp_path / "one.csv"
    words = ["predict", f"model={tiny_models / 'tiny' / '1'}", f"input={photo}", f"output={output}"]
    assert run([*words, "probabilities=true"]) == 0
    (row,) = table(output)
    assert row["label"] == "red"
    assert sum(float(row[label]) for label in CLASSES) == pytest.approx(1, abs=1e-4)


def test_files_of_any_format_that_training_reads_are_predicted(tiny_models: Path, tmp_path: Path) -> None:
    for suffix in ("tga", "jp2"):
        paint(tmp_path / "new" / f"red.{suffix}", "red", seed=1)
    assert predict(tiny_models, tmp_path / "new", tmp_path / "x.csv") == 0
    assert [(row["label"], row["error"]) for row in table(tmp_path / "x.csv")] == [("red", ""), ("red", "")]


def test_the_batch_size_does_not_change_the_answers(tiny_models: Path, tmp_path: Path) -> None:
    photos = tiny_models.parent / "photos"
    tables = []
    for size in (1, 7):
        output = tmp_path / f"{size}.csv"
        words = [f"model={tiny_models / 'tiny'}", f"input={photos}", f"output={output}", f"batch_size={size}"]
        assert run(["predict", *words]) == 0
        tables.append([(row["path"], row["label"]) for row in table(output)])
    assert tables[0] == tables[1]


def test_missing_input_and_model_suggest_the_nearest(
    tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    words = ["predict", f"output={tmp_path / 'x.csv'}"]
    assert run([*words, f"model={tiny_models / 'tiny'}", f"input={tmp_path / 'photso'}"]) == 2
    assert "no such file or folder; did you mean 'photos'?" in capsys.readouterr().err
    assert run([*words, f"model={tiny_models / 'tinny'}", f"input={tmp_path / 'photos'}"]) == 2
    assert "no such bundle; did you mean 'tiny'?" in capsys.readouterr().err
    assert run([*words, f"model={tiny_models / 'tiny'}", f"input={tmp_path / 'photos'}"]) == 2
    assert "holds no files" in capsys.readouterr().err
    assert not (tmp_path / "x.csv").exists()


def predict(models: Path, address: object, output: Path) -> int:
    return run(["predict", f"model={models / 'tiny'}", f"input={address}", f"output={output}"])


def without_probability(path: Path) -> list[tuple[str, str, str]]:
    return [(row["path"].partition(".tar/")[2] or row["path"], row["label"], row["error"]) for row in table(path)]


@pytest.mark.parametrize("place", ["zip", "tar", "memory", "zip in memory"])
def test_photos_are_read_from_any_address(place: str, tiny_models: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "red" / "note.txt").write_text("no photo")
    files = {str(path.relative_to(photos)): path.read_bytes() for path in photos.rglob("*.*")}
    if place == "tar":
        # what describes a photo is none
        del files["red/note.txt"]
        (photos / "red" / "note.txt").unlink()
        files["red/0.cls"] = files["red/0.txt"] = files["red/0.json"] = b"1"
    address = {
        "zip": lambda: f"zip://*::{write_zip(tmp_path / 'x.zip', files)}",
        "tar": lambda: str(write_tar(tmp_path / "x.tar", files)),
        "memory": lambda: write_memory(f"memory://{tmp_path.name}/photos", files),
        "zip in memory": lambda: (
            write_memory(f"memory://{tmp_path.name}", {"x.zip": write_zip(tmp_path / "packed.zip", files).read_bytes()})
            + "/x.zip"
        ),
    }[place]()
    assert predict(tiny_models, photos, tmp_path / "folder.csv") == 0
    assert predict(tiny_models, address, tmp_path / "address.csv") == 0
    assert without_probability(tmp_path / "address.csv") == without_probability(tmp_path / "folder.csv")
    assert len(table(tmp_path / "address.csv")) == 24 + (place != "tar")


def test_one_photo_at_an_address(tiny_models: Path, photos: Path, tmp_path: Path) -> None:
    address = (
        write_memory(f"memory://{tmp_path.name}", {"one.jpg": (photos / "red" / "0.jpg").read_bytes()}) + "/one.jpg"
    )
    assert predict(tiny_models, address, tmp_path / "one.csv") == 0
    (row,) = table(tmp_path / "one.csv")
    assert (row["path"], row["label"], row["error"]) == (address, "red", "")


def test_what_a_former_run_left_among_the_photos_is_no_photo(
    tiny_models: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "old").mkdir()
    (photos / "old" / "predictions.csv").write_text("another file of that name")
    for _ in range(2):
        assert predict(tiny_models, photos, photos / "predictions.csv") == 0
        assert len(table(photos / "predictions.csv")) == 25
    monkeypatch.chdir(photos)
    assert predict(tiny_models, ".", Path("predictions.csv")) == 0
    assert len(table(photos / "predictions.csv")) == 25


def test_what_cannot_be_opened_is_a_row_and_what_is_not_followed_is_said(
    tiny_models: Path, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.mkfifo(photos / "red" / "pipe.jpg")
    (photos / "red" / "gone.jpg").symlink_to("nowhere.jpg")
    (photos / "red" / "again").symlink_to("..")
    assert predict(tiny_models, photos, tmp_path / "x.csv") == 0
    errors = {row["path"]: row["error"] for row in table(tmp_path / "x.csv") if row["error"]}
    assert errors == {"red/gone.jpg": "link to nothing", "red/pipe.jpg": "not a regular file"}
    assert f"passed over: red/again leads back to {photos}" in caplog.text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("photos.csv", "photos.csv is a table; give the folder or archive of the photos"),
        ("photso.zip", "photso.zip: no such file; did you mean 'photos.zip'?"),
        ("photos.tar.gz", "photos.tar.gz is a compressed tar file, which can only be read from its start; unpack it"),
    ],
)
def test_what_cannot_be_predicted(
    name: str, message: str, tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_zip(tmp_path / "photos.zip", {})
    assert predict(tiny_models, tmp_path / name, tmp_path / "x.csv") == 2
    assert capsys.readouterr().err == f"finetune predict: input={tmp_path}/{message}\n"


def test_an_archive_without_photos(tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(tiny_models, write_zip(tmp_path / "x.zip", {}), tmp_path / "x.csv") == 2
    assert capsys.readouterr().err == f"finetune predict: input={tmp_path}/x.zip holds no files\n"


@pytest.mark.parametrize("command", ["predict", "serve"])
def test_serving_commands_never_import_torch(tiny_models: Path, command: str) -> None:
    done = run_finetune(command, "--help")
    assert done.returncode == 0
    import subprocess
    import sys

    module = {"predict": "finetune.serving.predict", "serve": "finetune.serving.serve"}[command]
    heavy = {"torch", "timm", "pytorch_lightning", "cv2", "fsspec", "pyarrow"}
    code = f"import {module}, sys; print(sorted(set(sys.modules) & {heavy}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from finetune.cli import run
from tests.conftest import CLASSES, paint, run_finetune


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


@pytest.mark.parametrize("command", ["predict", "serve"])
def test_serving_commands_never_import_torch(tiny_models: Path, command: str) -> None:
    done = run_finetune(command, "--help")
    assert done.returncode == 0
    import subprocess
    import sys

    module = {"predict": "finetune.serving.predict", "serve": "finetune.serving.serve"}[command]
    code = f"import {module}, sys; print(sorted(set(sys.modules) & {{'torch', 'timm', 'pytorch_lightning', 'cv2'}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from finetune.cli import run
from tests.conftest import CLASSES, paint


def test_the_runs_own_split(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", f"run={tiny_run}", f"output={tmp_path}", "split=val"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("accuracy 100.0 % on 7 photos (95 % interval 64.6 to 100.0 %), calibration error ")
    assert "\nbalanced accuracy 100.0 %, the mean recall of the classes\n" in said
    assert "class  photos  precision  recall     F1\nblue        2      1.000   1.000  1.000\n" in said
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "label", "answer", "probability", *CLASSES]
    assert [row["answer"] for row in rows] == [row["label"] for row in rows]


def test_another_folder_with_mistakes_and_damage(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(3):
        paint(tmp_path / "new" / "red" / f"{index}.png", "red", seed=50 + index)
    paint(tmp_path / "new" / "red" / "mislabelled<b>.png", "blue", seed=60)
    (tmp_path / "new" / "red" / "empty.png").touch()
    words = ["evaluate", f"run={tiny_run}", f"data.root={tmp_path / 'new'}", f"output={tmp_path / 'out'}"]
    assert run(words) == 0
    said = capsys.readouterr().out
    assert said.startswith("accuracy 75.0 % on 4 photos")
    assert "skipped 1 file:\n  red/empty.png: empty file (0 bytes)" in said
    report = (tmp_path / "out" / "report.html").read_text()
    assert "<b>red</b>, answered blue" in report
    # file names are text in the report, never markup
    assert "mislabelled&lt;b&gt;.png" in report
    assert "data:image/jpeg;base64," in report


def test_a_class_the_model_does_not_know_is_named(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paint(tmp_path / "new" / "redd" / "0.png", "red", seed=1)
    assert run(["evaluate", f"run={tiny_run}", f"data.root={tmp_path / 'new'}"]) == 2
    assert capsys.readouterr().err.strip() == (
        f"finetune evaluate: data.root={tmp_path / 'new'} has a class 'redd' that the model does not know; "
        "did you mean 'red'? (it knows blue, green, red)"
    )


def test_damaged_weights_are_named(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    run_folder = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    weights = run_folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert run(["evaluate", f"run={run_folder}"]) == 2
    assert f"{weights} cannot be read:" in capsys.readouterr().err

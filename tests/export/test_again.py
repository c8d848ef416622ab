"""Exporting what has been exported before."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from finetune.bundle import open_bundle
from finetune.cli import run


@pytest.fixture
def words(tiny_models: Path, tiny_run: Path, tmp_path: Path) -> list[str]:
    shutil.copytree(tiny_models / "tiny", tmp_path / "models" / "tiny")
    return ["export", f"run={tiny_run}", f"output={tmp_path / 'models'}", "name=tiny"]


def versions(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "models" / "tiny").iterdir() if path.is_dir())


def test_the_same_run_is_exported_once(words: list[str], tmp_path: Path) -> None:
    assert run(words) == 0
    assert versions(tmp_path) == ["1"]


def test_a_closer_limit_compares_again(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*words, "parity_limit=1e-30"]) == 1
    assert "more than parity_limit=1e-30, on cpu; no bundle was written" in capsys.readouterr().err
    assert versions(tmp_path) == ["1"]


def test_what_triton_reads_beside_the_versions_is_mended(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "models" / "tiny"
    right = (home / "labels.txt").read_text()
    (home / "config.pbtxt").unlink()
    (home / "labels.txt").write_text("green\nblue\nred\n")
    assert run(["export", f"verify={home}"]) == 0
    said = capsys.readouterr().out
    for name in ("config.pbtxt", "labels.txt"):
        assert f"{home / name} is not as it was exported: Triton reads it; exporting again mends it" in said
    assert run(words) == 0
    assert (home / "labels.txt").read_text() == right
    assert run(["export", f"verify={home}"]) == 0
    assert "is not as it was exported" not in capsys.readouterr().out.split("next:")[-1]


def test_a_photo_that_changed_since_training_is_said_and_known_as_it_is(
    tiny_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(tiny_run.parent, tmp_path / "there", ignore=shutil.ignore_patterns("models*")))
    moved = folder / tiny_run.name
    for name in ("config.yaml", "manifest.csv", "result.json"):
        file = next(moved.rglob(name), None)
        if file is not None:
            file.write_text(file.read_text().replace(str(tiny_run.parent), str(folder)))
    photos = folder / "photos"
    for photo in photos.rglob("*.jpg"):
        Image.new("RGB", (70, 70), (200, 30, 90)).save(photo)
    words = ["export", f"run={moved}", f"output={tmp_path / 'models'}", "name=tiny"]
    assert run(words) == 0
    assert "7 of the 7 compared photos are no longer what they were in training" in caplog.text
    assert run(["export", f"verify={tmp_path / 'models' / 'tiny'}", f"data.root={photos}"]) == 0
    assert open_bundle(tmp_path / "models" / "tiny").version == "1"

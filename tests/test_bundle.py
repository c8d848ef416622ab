from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from finetune.bundle import find_bundles, open_bundle
from finetune.cli import run
from finetune.errors import FinetuneError


@pytest.fixture
def models(tiny_models: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(tiny_models, tmp_path / "models"))


@pytest.mark.parametrize("command", ["serve", "predict"])
def test_a_changed_model_file_is_refused(models: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = models / "tiny" / "1" / "model.onnx"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    words = {
        "serve": [f"models={models}", "port=0"],
        "predict": [f"model={models / 'tiny'}", f"input={models}", f"output={models / 'out.csv'}"],
    }
    assert run([command, *words[command]]) == 2
    assert capsys.readouterr().err.strip() == (
        f"finetune {command}: {file} is not the file that was exported (its sha256 differs from bundle.json): "
        "it was changed or damaged; export the run again"
    )


def test_the_newest_version_is_opened_by_number_and_an_older_one_by_its_folder(models: Path) -> None:
    for version in ("2", "10"):
        shutil.copytree(models / "tiny" / "1", models / "tiny" / version)
    assert open_bundle(models / "tiny").version == "10"
    assert open_bundle(models / "tiny" / "2").version == "2"


def test_a_version_still_being_copied_in_is_not_seen(models: Path) -> None:
    (models / "tiny" / "2").mkdir()
    assert open_bundle(models / "tiny").version == "1"


def test_a_bundle_of_a_later_program_is_refused_with_what_to_do(models: Path) -> None:
    file = models / "tiny" / "1" / "bundle.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema_version": 9}))
    with pytest.raises(FinetuneError, match="has schema version 9, this program reads 1; export the run again"):
        open_bundle(models / "tiny")


def test_a_damaged_bundle_json_is_named(models: Path) -> None:
    (models / "tiny" / "1" / "bundle.json").write_text("{")
    with pytest.raises(FinetuneError, match=r"bundle.json cannot be read: 1 validation error"):
        open_bundle(models / "tiny")


def test_a_missing_model_file_is_named(models: Path) -> None:
    (models / "tiny" / "1" / "model.onnx").unlink()
    with pytest.raises(FinetuneError, match=r"model.onnx is missing; export the run again"):
        open_bundle(models / "tiny")


def test_a_repository_or_one_model_may_be_named(models: Path) -> None:
    shutil.copytree(models / "tiny", models / "other")
    assert [bundle.folder.parent.name for bundle in find_bundles(models)] == ["other", "tiny"]
    assert [bundle.name for bundle in find_bundles(models / "tiny")] == ["tiny"]


def test_folders_without_bundles_say_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(FinetuneError, match=r"holds no bundle .* finetune export run=RUN output="):
        find_bundles(tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(FinetuneError, match=r"models=.*modles: no such folder; did you mean 'models'\?"):
        find_bundles(tmp_path / "modles")
    with pytest.raises(FinetuneError, match=r"is no bundle: it has no version folder"):
        open_bundle(tmp_path / "models")

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest

from finetune.bundle import bundle_folders, open_bundle
from finetune.cli import run
from finetune.errors import FinetuneError
from finetune.files import sha256


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
        "serve": [f"models={models}", "port=0", "logs=text"],
        "predict": [f"model={models / 'tiny'}", f"input={models}", f"output={models / 'out.csv'}"],
    }
    assert run([command, *words[command]]) == 2
    # a server says first where it listens
    assert capsys.readouterr().err.strip().splitlines()[-1] == (
        f"finetune {command}: {file} is not the file that was exported (its sha256 differs from bundle.json): "
        "it was changed or damaged; export the run again"
    )


def test_the_newest_version_is_opened_by_number_and_an_older_one_by_its_folder(models: Path) -> None:
    for version in ("2", "10"):
        shutil.copytree(models / "tiny" / "1", models / "tiny" / version)
    assert open_bundle(models / "tiny").version == "10"
    assert open_bundle(models / "tiny" / "2").version == "2"


@pytest.mark.parametrize("name", ["07", "0", "٣", "2.0"])
def test_a_folder_that_is_not_named_as_a_version_is_none(models: Path, name: str) -> None:
    shutil.copytree(models / "tiny" / "1", models / "tiny" / name)
    assert open_bundle(models / "tiny").version == "1"
    shutil.rmtree(models / "tiny" / "1")
    with pytest.raises(FinetuneError, match=r"tiny is no bundle: it has no version folder"):
        open_bundle(models / "tiny")


def test_a_version_still_being_copied_in_is_not_seen(models: Path) -> None:
    (models / "tiny" / "2").mkdir()
    assert open_bundle(models / "tiny").version == "1"


def test_a_bundle_of_a_later_program_is_refused_with_what_to_do(models: Path) -> None:
    file = models / "tiny" / "1" / "bundle.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema_version": 9}))
    with pytest.raises(FinetuneError, match="has schema version 9, this program reads 1 to 2; export the run again"):
        open_bundle(models / "tiny")


@pytest.mark.parametrize("version", ["2", True, 2.0, None])
def test_a_schema_version_that_is_no_number_is_told_as_it_stands(models: Path, version: object) -> None:
    file = models / "tiny" / "1" / "bundle.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema_version": version}))
    with pytest.raises(FinetuneError) as refused:
        open_bundle(models / "tiny")
    assert str(refused.value) == (
        f"{file} cannot be read: its schema_version is {json.dumps(version)}, no whole number; export the run again"
    )


def test_a_first_bundle_that_lacks_a_key_is_told_so(models: Path) -> None:
    file = models / "tiny" / "1" / "bundle.json"
    file.write_text(json.dumps({"schema_version": 1, "model": {}, "parity": {}}))
    with pytest.raises(FinetuneError, match=r"bundle.json cannot be read: it has no sha256; export the run again"):
        open_bundle(models / "tiny")


def test_a_damaged_bundle_json_is_named(models: Path) -> None:
    (models / "tiny" / "1" / "bundle.json").write_text("{")
    with pytest.raises(FinetuneError, match=r"bundle.json cannot be read: Expecting property name"):
        open_bundle(models / "tiny")


def test_a_byte_altered_in_any_file_of_a_version_is_noticed(models: Path) -> None:
    version = models / "tiny" / "1"
    files = [path for path in version.rglob("*") if path.is_file()]
    assert len(files) > 8
    for file in files:
        content = file.read_bytes()
        for place in {0, len(content) // 3, len(content) // 2, len(content) - 1}:
            altered = bytearray(content)
            altered[place] ^= 1
            file.write_bytes(bytes(altered))
            with pytest.raises(FinetuneError):
                open_bundle(models / "tiny")
        file.write_bytes(content)
    open_bundle(models / "tiny")


def test_labels_that_were_exchanged_are_noticed(models: Path) -> None:
    file = models / "tiny" / "1" / "bundle.json"
    file.write_text(file.read_text().replace('"blue"', '"B"').replace('"red"', '"blue"').replace('"B"', '"red"'))
    with pytest.raises(FinetuneError, match=r"bundle.json is not as it was written"):
        open_bundle(models / "tiny")


def test_a_bundle_of_the_first_schema_is_read(models: Path) -> None:
    """It had one comparison and the digest of one file."""
    version = models / "tiny" / "1"
    now = open_bundle(version).info
    first = {
        "schema_version": 1,
        "model": now.model.model_dump(mode="json"),
        "parity": now.parity[0].model_dump(mode="json"),
        "sha256": now.files["model.onnx"],
    }
    for key in ("crop_pct", "interpolation"):
        del first["model"]["preprocessing"][key]
    shutil.rmtree(version / "golden")
    (version / "bundle.json").write_text(json.dumps(first))
    old = open_bundle(models / "tiny").info
    assert (old.model, old.parity, old.precision) == (now.model, now.parity, "fp32")
    (version / "model.onnx").write_bytes(b"other")
    with pytest.raises(FinetuneError, match="is not the file that was exported"):
        open_bundle(models / "tiny")


def test_weights_in_another_file_are_refused_though_the_digests_fit(models: Path) -> None:
    version = models / "tiny" / "1"
    info = open_bundle(version).info
    proto = onnx.load(version / "model.onnx")
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")
    (version / "model.onnx").write_bytes(proto.SerializeToString())
    info = info.model_copy(update={"files": info.files | {"model.onnx": sha256(version / "model.onnx")}})
    (version / "bundle.json").write_text(info.model_copy(update={"seal": info.expected_seal}).as_text)
    with pytest.raises(FinetuneError, match=rf"keeps {tensor.name} in another file; only files that hold all weights"):
        open_bundle(models / "tiny")


def test_a_missing_model_file_is_named(models: Path) -> None:
    (models / "tiny" / "1" / "model.onnx").unlink()
    with pytest.raises(FinetuneError, match=r"model.onnx is missing; export the run again"):
        open_bundle(models / "tiny")


def test_a_repository_or_one_model_may_be_named(models: Path) -> None:
    shutil.copytree(models / "tiny", models / "other")
    assert bundle_folders(models) == [models / "other", models / "tiny"]
    assert bundle_folders(models / "tiny") == [models / "tiny"]
    with pytest.raises(FinetuneError, match=rf"tiny/1 is one version of a model; .* models={models / 'tiny'}$"):
        bundle_folders(models / "tiny" / "1")


def test_folders_without_bundles_say_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(FinetuneError, match=r"holds no bundle .* finetune export run=RUN output="):
        bundle_folders(tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(FinetuneError, match=r"models=.*modles: no such folder; did you mean 'models'\?"):
        bundle_folders(tmp_path / "modles")
    with pytest.raises(FinetuneError, match=r"is no bundle: it has no version folder"):
        open_bundle(tmp_path / "models")

from __future__ import annotations

import csv
import errno
import json
import shutil
from pathlib import Path
from typing import NoReturn

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

import finetune.export.graph as graph_module
import finetune.export.parity as parity_module
from finetune.bundle import open_bundle
from finetune.cli import run
from finetune.errors import ParityError
from finetune.export.parity import BATCH_SIZES, _batches, require_agreement
from finetune.files import sha256
from finetune.models.graph import lasting_graph
from tests.conftest import CLASSES, TINY, paint, rewrite_bundle


def test_the_bundle_is_an_entry_of_a_triton_repository(tiny_models: Path) -> None:
    files = sorted(path.relative_to(tiny_models).as_posix() for path in tiny_models.rglob("*") if path.is_file())
    golden = ["tiny/1/golden/answers.npz", "tiny/1/golden/photos.json"]
    golden = sorted([*(f"tiny/1/golden/{number}.jpg" for number in range(7)), *golden])
    inside = ["tiny/1/README.md", "tiny/1/bundle.json", *golden, "tiny/1/model.onnx"]
    assert files == [*inside, "tiny/config.pbtxt", "tiny/labels.txt"]
    assert (tiny_models / "tiny" / "labels.txt").read_text().split() == list(CLASSES)
    config = (tiny_models / "tiny" / "config.pbtxt").read_text()
    for line in ('name: "tiny"', 'platform: "onnxruntime_onnx"', "TYPE_UINT8 format: FORMAT_NHWC dims: [ 64, 64, 3 ]"):
        assert line in config
    assert 'name: "probabilities" data_type: TYPE_FP32 dims: [ 3 ] label_filename: "labels.txt"' in config


def test_the_bundle_says_what_it_is_and_how_it_was_verified(tiny_models: Path, tiny_run: Path) -> None:
    bundle = open_bundle(tiny_models / "tiny")
    (parity,) = bundle.info.parity
    assert (bundle.name, bundle.version) == ("tiny", "1")
    assert bundle.info.model.labels == CLASSES
    assert bundle.info.files["model.onnx"] == sha256(bundle.model)
    assert parity.photos == 7
    assert parity.batch_sizes == (1, 2, 7)
    assert 0 <= parity.mean_difference <= parity.max_difference <= 1e-4
    assert parity.same_answer == parity.torch_accuracy == parity.onnx_accuracy == 1.0
    with (tiny_run / "parity.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 7
    assert all(row["torch"] == row["onnx"] == row["label"] for row in rows)


def test_the_file_alone_answers_photos_with_nothing_but_onnxruntime_and_pillow(tiny_models: Path) -> None:
    model = tiny_models / "tiny" / "1" / "model.onnx"
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    labels = json.loads(metadata["finetune.labels"])
    size = json.loads(metadata["finetune.preprocessing"])["image_size"]
    photo = Image.open(tiny_models.parent / "photos" / "red" / "0.jpg").resize((size, size), Image.Resampling.BICUBIC)
    (entry,) = session.get_inputs()
    assert (entry.name, entry.type, entry.shape) == ("images", "tensor(uint8)", ["photos", 64, 64, 3])
    for photos in (1, 3):
        (probabilities,) = session.run(["probabilities"], {"images": np.stack([np.asarray(photo)] * photos)})
        assert probabilities.dtype == np.float32
        assert probabilities.shape == (photos, 3)
        np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
        assert labels[int(probabilities[0].argmax())] == "red"


def test_the_same_run_is_exported_once(tiny_models: Path, tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", f"run={tiny_run}", f"output={tiny_models}", "name=tiny"]) == 0
    assert capsys.readouterr().out.startswith(f"already exported: {tiny_models / 'tiny' / '1'}\n")
    assert not (tiny_models / "tiny" / "2").exists()


def test_a_run_on_photos_of_rare_formats_is_exported_and_verified(tmp_path: Path) -> None:
    for number, label in enumerate(CLASSES):
        for index, suffix in enumerate(("tga", "jp2") * 4):
            paint(tmp_path / "rare" / label / f"{index}.{suffix}", label, seed=100 * number + index)
    assert run(["train", f"data.root={tmp_path / 'rare'}", f"output={tmp_path / 'run'}", *TINY]) == 0
    assert run(["export", f"run={tmp_path / 'run'}", f"output={tmp_path / 'models'}", "name=rare"]) == 0
    assert run(["export", f"verify={tmp_path / 'models' / 'rare'}", f"data.root={tmp_path / 'rare'}"]) == 0


def test_another_run_becomes_the_next_version(tiny_models: Path, tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_models, tmp_path / "models")
    rewrite_bundle(tmp_path / "models" / "tiny" / "1", weights_sha256="another")
    assert run(["export", f"run={tiny_run}", f"output={tmp_path / 'models'}", "name=tiny"]) == 0
    assert open_bundle(tmp_path / "models" / "tiny").version == "2"
    assert (tmp_path / "models" / "tiny" / "1" / "model.onnx").is_file()


def test_a_model_that_answers_differently_is_not_published(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def skewed(module: object, image_size: int, output: str) -> onnx.ModelProto:
        """The most common mistake of all: the served model normalises with other constants."""
        module.classifier.normalise.mean.add_(60.0)  # type: ignore[attr-defined]
        proto = lasting_graph(module, image_size, output)  # type: ignore[arg-type]
        module.classifier.normalise.mean.sub_(60.0)  # type: ignore[attr-defined]
        return proto

    monkeypatch.setattr(graph_module, "lasting_graph", skewed)
    assert run(["export", f"run={tiny_run}", f"output={tmp_path / 'models'}"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("finetune export: the ONNX model differs from the trained one by ")
    assert "more than parity_limit=0.0001, on cpu; no bundle was written" in said
    assert "Traceback" not in said
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize("limit", [None, 1e-4])
def test_answers_that_are_no_numbers_are_never_published(tiny_models: Path, limit: float | None) -> None:
    (parity,) = open_bundle(tiny_models / "tiny").info.parity
    require_agreement(parity.model_copy(update={"limit": limit}), "")
    with pytest.raises(ParityError, match="differs from the trained one by nan"):
        require_agreement(parity.model_copy(update={"limit": limit, "max_difference": np.nan}), "")


def test_a_limit_that_cannot_be_met_leaves_no_bundle(tiny_run: Path, tmp_path: Path) -> None:
    words = ["export", f"run={tiny_run}", f"output={tmp_path / 'models'}", "parity_limit=1e-30"]
    assert run(words) == 1
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize("photos", [1, 3, 6, 10, 23, 600])
def test_every_photo_is_compared_and_every_batch_size_is_run_whole(photos: int) -> None:
    batches = list(_batches(photos))
    assert {len(batch) for batch in batches} == set(BATCH_SIZES)
    flat = [number for batch in batches for number in batch]
    assert flat[:photos] == list(range(photos))
    assert all(number == position % photos for position, number in enumerate(flat))


def test_photos_that_are_gone_are_named(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(tiny_run.parent, tmp_path / "moved")
    folder = tmp_path / "moved" / "run"
    config = folder / "config.yaml"
    gone = tmp_path / "elsewhere"
    config.write_text(config.read_text().replace(str(tiny_run.parent / "photos"), str(gone)))
    assert run(["export", f"run={folder}", f"output={tmp_path / 'models'}"]) == 2
    said = capsys.readouterr().err
    assert "7 of the 7 photos to compare on are gone, the first is " in said
    assert str(gone) in said


def test_what_is_no_run_is_refused(tmp_path: Path, tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", f"run={tiny_run.parent / 'rum'}", f"output={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert said.strip() == (
        f"finetune export: run={tiny_run.parent / 'rum'} is no run folder of `finetune train`; did you mean 'run'?"
    )
    shutil.copytree(tiny_run, tmp_path / "unfinished")
    (tmp_path / "unfinished" / "result.json").unlink()
    assert run(["export", f"run={tmp_path / 'unfinished'}", f"output={tmp_path}"]) == 2
    assert "has not finished; the command that began it goes on from where it was:" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["my run", "café", "-run", "stats"])
def test_a_run_folder_whose_name_cannot_be_a_model_s_asks_for_one(
    name: str, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(tiny_run, tmp_path / name))
    assert run(["export", f"run={copy}", f"output={tmp_path / 'models'}"]) == 2
    assert capsys.readouterr().err == (
        f"finetune export: '{name}' cannot be a model's name; give name=, of letters, digits, . _ - and none of stats\n"
    )
    assert not (tmp_path / "models").exists()


def test_a_name_that_a_route_of_the_server_hides_is_refused(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", f"run={tiny_run}", f"output={tmp_path / 'models'}", "name=stats"]) == 2
    assert "name=stats is wrong: /v2/models/stats counts what all models did, so that nobody" in capsys.readouterr().err


def test_a_table_that_cannot_be_written_is_no_reason_to_stop(
    tiny_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path) -> NoReturn:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(parity_module, "replacing", refused)
    assert run(["export", f"run={tiny_run}", f"output={tmp_path / 'models'}", "name=2024"]) == 0
    assert f"{tiny_run / 'parity.csv'} cannot be written: Read-only file system" in caplog.text

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from finetune.bundle import BundleInfo
from finetune.cli import run
from finetune.files import sha256


@pytest.fixture
def models(tiny_models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_models, tmp_path / "models"))


def reseal(version: Path, proto: onnx.ModelProto) -> None:
    """Put another model into a version whose digests then fit."""
    (version / "model.onnx").write_bytes(proto.SerializeToString())
    info = BundleInfo.model_validate_json((version / "bundle.json").read_text())
    info = info.model_copy(update={"files": info.files | {"model.onnx": sha256(version / "model.onnx")}})
    info = info.model_copy(update={"seal": info.expected_seal})
    (version / "bundle.json").write_text(info.as_text)


def photos_of(models: Path) -> Path:
    return models.parent / "photos"


def test_a_bundle_answers_as_it_was_exported(tiny_models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", f"verify={tiny_models / 'tiny'}", f"data.root={photos_of(tiny_models)}"]) == 0
    first, golden, known, decoded = capsys.readouterr().out.splitlines()
    assert first == f"{tiny_models / 'tiny' / '1'}: fp32, every file is as it was exported"
    assert golden.startswith("golden photos on cpu: largest difference ")
    assert golden.endswith("same answer on 7 of 7")
    assert known.startswith(
        f"7 of the 24 files in {photos_of(tiny_models)}, which are known, on cpu: largest difference "
    )
    assert "(limit 0.0001)" in known
    assert known.endswith("same answer on 7 of 7")
    assert decoded == "decoded to the same pixels: 7 of 7"


def test_it_needs_neither_torch_nor_the_run(tiny_models: Path) -> None:
    program = (
        "import sys; from finetune.cli import run\n"
        f"assert run(['export', 'verify={tiny_models / 'tiny'}', 'data.root={photos_of(tiny_models)}']) == 0\n"
        "print({'torch', 'timm', 'onnx', 'cv2', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_with_its_run_it_is_compared_in_torch_again(
    tiny_models: Path, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", f"verify={tiny_models / 'tiny'}", f"run={tiny_run}"]) == 0
    said = capsys.readouterr().out
    assert "verified on 7 photos at batch sizes 1, 2, 7 on cpu: largest difference " in said
    assert "accuracy: 100.0 % in torch, 100.0 % in onnxruntime" in said


def test_a_file_that_answers_otherwise_fails_though_all_digests_fit(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    version = models / "tiny" / "1"
    proto = onnx.load(version / "model.onnx")
    weights = next(tensor for tensor in proto.graph.initializer if len(tensor.dims) == 4)
    weights.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weights), weights.name))
    reseal(version, proto)
    assert run(["export", f"verify={models / 'tiny'}"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("finetune export: the bundle answers otherwise here than it should:\n")
    assert "more than 0.0001, NOT as exported" in said


def test_a_reduced_file_is_held_to_its_own_answers(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shift that leaves all answers as they were, but is larger than what a processor may add."""
    words = ["export", f"run={tiny_run}", f"output={tmp_path}", "name=tiny", "precision=int8"]
    assert run([*words, "max_accuracy_loss=1"]) == 0
    assert run(["export", f"verify={tmp_path / 'tiny'}", f"data.root={tiny_run.parent / 'photos'}"]) == 0
    version = tmp_path / "tiny" / "1"
    proto = onnx.load(version / "model.onnx")
    bias = next(tensor for tensor in proto.graph.initializer if tensor.name == "classifier.head.linear.bias")
    shifted = numpy_helper.to_array(bias).copy()
    shifted[0] += 9
    bias.CopyFrom(numpy_helper.from_array(shifted, bias.name))
    reseal(version, proto)
    capsys.readouterr()
    assert run(["export", f"verify={tmp_path / 'tiny'}", f"data.root={tiny_run.parent / 'photos'}"]) == 1
    assert "more than 0.02, NOT as exported" in capsys.readouterr().err


def test_photos_that_nobody_compared_are_no_proof(
    tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (64, 64), "pink").save(tmp_path / "new.png")
    assert run(["export", f"verify={tiny_models / 'tiny'}", f"data.root={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert f"data.root={tmp_path}: none of its 1 files is a photo that " in said


def test_a_bundle_without_golden_photos_says_what_it_needs(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", f"run={tiny_run}", f"output={tmp_path}", "name=private", "golden=0"]) == 0
    assert not list(tmp_path.rglob("*.jpg"))
    capsys.readouterr()
    assert run(["export", f"verify={tmp_path / 'private'}"]) == 2
    assert "was exported without golden photos; give data.root=" in capsys.readouterr().err
    assert run(["export", f"verify={tmp_path / 'private'}", f"data.root={photos_of(tiny_run)}"]) == 0
    assert "7 of the 24 files" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "give run=RUN, a run folder of `finetune train`, or checkpoint.file=WEIGHTS"),
        (["run=a"], "output is missing: the model repository to write into, such as output=models"),
        (["run=a", "output=b", "data.root=c"], "a run has photos of its own: leave data.root= out"),
        (["run=a", "output=b", "checkpoint.file=c"], "checkpoint.file= stands alone: leave run= and verify= out"),
        (
            ["run=a", "output=b", "checkpoint.backbone=resnet50"],
            "checkpoint.* describe checkpoint.file=, which is not given",
        ),
        (
            ["verify=a", "precision=int8"],
            "verify= changes nothing: leave output=, name=, kserve= and what is done to a bundle out",
        ),
        (
            ["run=a", "output=b", "precision=fp16", "weights=fp16"],
            "precision=fp16 stores weights in 16 bits already: leave weights=fp16 out",
        ),
        (["verify=nowhere"], "nowhere: no such bundle"),
    ],
)
def test_words_that_do_not_go_together_are_refused(
    words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", *words]) == 2
    assert capsys.readouterr().err == f"finetune export: {reason}\n"

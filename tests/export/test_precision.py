from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from finetune.bundle import open_bundle
from finetune.cli import run


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_precision_is_judged_and_published(
    precision: str, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", f"run={tiny_run}", f"output={tmp_path}", "name=tiny", f"precision={precision}"]
    assert run(words) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert {"fp32", precision} <= {row[0] for row in table if row}
    bundle = open_bundle(tmp_path / "tiny")
    (parity,) = bundle.info.parity
    assert bundle.info.precision == precision
    assert parity.limit is None
    assert 0 < parity.max_difference < 0.5
    assert parity.onnx_accuracy >= parity.torch_accuracy - 0.005
    proto = onnx.load(bundle.model)
    assert {entry.key for entry in proto.metadata_props} >= {"finetune.labels", "finetune.preprocessing"}
    assert run(["export", f"verify={tmp_path / 'tiny'}", f"data.root={tiny_run.parent / 'photos'}"]) == 0
    capsys.readouterr()
    assert run(words) == 0
    assert capsys.readouterr().out.startswith("already exported")


def test_what_loses_more_than_is_allowed_is_not_published(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The CPU has no kernels for bf16: asked for here, it is float32 that is published, and said."""
    assert run(["export", f"run={tiny_run}", f"output={tmp_path}", "name=tiny", "precision=bf16"]) == 0
    said = capsys.readouterr().out
    assert said.count("bf16 does not run on this device") == 1
    assert "bf16 is not published; fp32 is kept" in said
    assert open_bundle(tmp_path / "tiny").info.precision == "fp32"


def test_auto_leaves_out_what_the_triton_of_a_manifest_cannot_open(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", f"run={tiny_run}", f"output={tmp_path}", "name=tiny", "precision=auto"]
    assert run([*words, "kserve=s3://photos/models"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.endswith(("yes", "no"))] == [
        "fp32",
        "fp16",
        "mixed",
        "int8",
    ]

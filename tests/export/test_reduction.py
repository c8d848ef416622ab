from __future__ import annotations

import re
from pathlib import Path

import onnx
import pytest
import yaml

from finetune.bundle import Bundle, open_bundle
from finetune.cli import run


def export(tiny_run: Path, output: Path, *words: str) -> Bundle:
    assert run(["export", f"run={tiny_run}", f"output={output}", "name=tiny", *words]) == 0
    return open_bundle(output / "tiny")


def test_batch_norms_are_folded_and_the_nodes_counted(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = export(tiny_run, tmp_path)
    nodes = onnx.load(bundle.model).graph.node
    assert "BatchNormalization" not in {node.op_type for node in nodes}
    before, after = (int(word) for word in capsys.readouterr().out.splitlines()[0].split() if word.isdigit())
    assert after == len(nodes) < before


def test_weights_in_half_halve_the_file(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = export(tiny_run, tmp_path / "whole").model.stat().st_size
    bundle = export(tiny_run, tmp_path, "weights=fp16")
    assert re.search(r"weights stored as fp16: 1\.\d MB become 0\.\d", capsys.readouterr().out)
    assert bundle.model.stat().st_size < 0.55 * whole
    assert bundle.info.precision == "fp32"
    assert bundle.info.parity[0].limit is None


def test_an_optimised_graph_still_keeps_the_limit_and_knows_its_labels(tiny_run: Path, tmp_path: Path) -> None:
    bundle = export(tiny_run, tmp_path, "optimised=true")
    assert bundle.info.parity[0].limit == 1e-4
    proto = onnx.load(bundle.model)
    assert "finetune.labels" in {entry.key for entry in proto.metadata_props}
    assert len({entry.key for entry in proto.metadata_props}) == len(proto.metadata_props)


def test_pruning_says_what_went(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = export(tiny_run, tmp_path / "whole").model.stat().st_size
    bundle = export(tiny_run, tmp_path / "free", "prune=0.5", "max_accuracy_loss=1")
    said = capsys.readouterr().out
    assert re.search(r"^pruned: [\d,]+ of [\d,]+ filters, 1\.\d MB to 0\.\d MB$", said, re.MULTILINE)
    assert bundle.model.stat().st_size < 0.6 * whole
    assert bundle.info.parity[0].limit is None


def test_where_the_share_loses_too_much_a_smaller_one_is_taken_and_said(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = export(tiny_run, tmp_path / "strict", "prune=0.99", "max_accuracy_loss=0")
    said = capsys.readouterr().out
    smaller = r"; this is prune=0\.\d+, as prune=0\.99 loses [\d.]+ points of accuracy \(100\.0 to "
    assert re.search(r"pruned: .* filters, .* MB" + smaller, said)
    assert bundle.info.parity[0].onnx_accuracy == 1


def test_channels_that_do_nothing_go_and_the_limit_is_kept(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sample network of timm has some."""
    bundle = export(tiny_run, tmp_path, "prune=0")
    assert "\npruned: " in capsys.readouterr().out
    assert bundle.info.parity[0].limit == 1e-4
    (change,) = bundle.info.changes
    assert re.fullmatch(r"[\d,]+ of [\d,]+ filters removed", change)
    assert f"After training it was changed: {change}." in (bundle.folder / "README.md").read_text()


def test_a_manifest_for_kserve_lies_beside_it_by_option(tiny_run: Path, tmp_path: Path) -> None:
    export(tiny_run, tmp_path, "kserve=s3://photos/models")
    manifest = yaml.safe_load((tmp_path / "tiny" / "kserve.yaml").read_text())
    assert manifest["spec"]["predictor"]["model"]["storageUri"] == "s3://photos/models"


def test_it_is_written_for_a_bundle_that_is_there_already_and_a_wrong_address_costs_nothing(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", f"run={tiny_run}", f"output={tmp_path / 'models'}", "name=tiny"]
    assert run([*words, "kserve=models"]) == 2
    assert "kserve=models names no place that a cluster can read" in capsys.readouterr().err
    assert not (tmp_path / "models").exists()
    export(tiny_run, tmp_path / "models")
    export(tiny_run, tmp_path / "models", "kserve=s3://photos/models")
    assert [path.name for path in sorted((tmp_path / "models" / "tiny").iterdir())] == [
        "1",
        "config.pbtxt",
        "kserve.yaml",
        "labels.txt",
    ]


def test_half_weights_that_would_be_made_whole_again_are_refused(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", f"run={tiny_run}", f"output={tmp_path}", "weights=fp16", "optimised=true"]) == 2
    assert "optimised=true stores weights in full again" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["optimised=true", "precision=bf16"])
def test_what_the_triton_of_a_manifest_cannot_open_is_refused(
    word: str, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", f"run={tiny_run}", f"output={tmp_path / 'models'}", "kserve=s3://photos/models", word]) == 2
    assert f"{word} needs a newer onnxruntime than that of the Triton in kserve.yaml" in capsys.readouterr().err
    assert not (tmp_path / "models").exists()

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

import finetune.export.checkpoint as checkpoint_module
from finetune.bundle import open_bundle
from finetune.cli import run
from finetune.serving.predictor import open_predictor
from tests.conftest import CLASSES, paint_folder

LABELS = tuple(reversed(CLASSES))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of timm that was trained elsewhere, here: made at random, with statistics of its own."""
    torch.manual_seed(0)
    network = timm.create_model("test_efficientnet", num_classes=len(LABELS))
    network.train()(torch.randn(8, 3, 64, 64))
    with torch.no_grad():
        network.get_classifier().weight.mul_(20)
    folder = tmp_path_factory.mktemp("elsewhere")
    safetensors.torch.save_file(network.state_dict(), folder / "net.safetensors")
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS))
    return folder


@pytest.fixture(scope="module")
def words(checkpoint: Path, tiny_run: Path) -> list[str]:
    return [
        "export",
        f"checkpoint.file={checkpoint / 'net.safetensors'}",
        "checkpoint.backbone=test_efficientnet",
        f"checkpoint.labels={checkpoint / 'labels.txt'}",
        f"data.root={tiny_run.parent / 'photos'}",
        f"output={checkpoint / 'models'}",
    ]


def test_a_network_of_timm_is_shipped_with_its_own_preprocessing(
    words: list[str], checkpoint: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(words) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["net-parity.csv"]
    bundle = open_bundle(checkpoint / "models" / "net")
    card, (parity,) = bundle.info.model, bundle.info.parity
    network = timm.create_model("test_efficientnet", num_classes=len(LABELS)).eval()
    network.load_state_dict(safetensors.torch.load_file(checkpoint / "net.safetensors"))
    wanted = timm.data.resolve_data_config({}, model=network)
    assert card.labels == LABELS
    assert card.preprocessing.image_size == wanted["input_size"][-1]
    assert (card.preprocessing.fit, card.preprocessing.crop_pct) == ("crop", wanted["crop_pct"])
    assert card.preprocessing.interpolation == wanted["interpolation"]
    assert (parity.photos, parity.limit) == (24, 1e-4)
    assert parity.max_difference <= 1e-4
    # timm itself, on pixels that need no resizing
    pixels = np.random.default_rng(0).integers(0, 256, (3, 160, 160, 3), dtype=np.uint8)
    transform = timm.data.create_transform(**wanted | {"crop_pct": 1.0})
    with torch.inference_mode():
        answers = torch.softmax(network(torch.stack([transform(Image.fromarray(one)) for one in pixels])), 1)
    np.testing.assert_allclose(open_predictor(bundle, "cpu").run(pixels), answers.numpy(), atol=1e-4)
    assert run(["export", f"verify={checkpoint / 'models' / 'net'}", f"data.root={tiny_run.parent / 'photos'}"]) == 0


def test_its_precision_can_be_chosen_though_its_head_is_its_own(words: list[str], tmp_path: Path) -> None:
    assert run([*words, f"output={tmp_path}", "precision=fp16", "max_accuracy_loss=1", "name=half"]) == 0
    bundle = open_bundle(tmp_path / "half")
    assert bundle.info.precision == "fp16"
    assert bundle.info.parity[0].max_difference < 0.05


@pytest.mark.parametrize(
    ("instead", "reason"),
    [
        ("checkpoint.backbone=test_resnet", "does not fit test_resnet with 3 classes: of its tensors "),
        (
            "checkpoint.backbone=test_efficientnets",
            "checkpoint.backbone=test_efficientnets: timm has no such architecture; did you mean 'test_efficientnet'?",
        ),
        ("checkpoint.backbone=null", "a checkpoint needs checkpoint.file=WEIGHTS"),
        ("checkpoint.file=nowhere.pth", "checkpoint.file=nowhere.pth: no such file"),
        (
            "checkpoint.labels=nowhere.txt",
            "checkpoint.labels=nowhere.txt: no such file or directory; give a text file with a class name a line",
        ),
        ("checkpoint.labels=.", "checkpoint.labels=.: is a directory; give a text file with a class name a line"),
        ("data.root=null", "and data.root=PHOTOS, labelled photos to compare on"),
    ],
)
def test_what_does_not_fit_is_named(
    words: list[str], instead: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    key = instead.partition("=")[0]
    assert run([instead if word.startswith(key) else word for word in words]) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_of_a_training_that_diverged_are_bad_input(
    words: list[str], checkpoint: Path, value: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = safetensors.torch.load_file(checkpoint / "net.safetensors")
    state["blocks.0.0.conv.weight"][0, 0, 0, 0] = value
    file = tmp_path / "diverged.safetensors"
    safetensors.torch.save_file(state, file)
    assert run([*words, f"checkpoint.file={file}"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"finetune export: checkpoint.file={file}: 1 of its {len(state)} tensors hold NaN or infinity, the first is "
        "blocks.0.0.conv.weight; give weights from before their training diverged"
    )


def test_a_few_photos_of_every_class_are_put_through_timm_s_own_preprocessing(
    words: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    forward = checkpoint_module.TimmNetwork.forward
    monkeypatch.setattr(
        checkpoint_module.TimmNetwork,
        "forward",
        lambda network, images: asked.append(len(images)) or forward(network, images),
    )
    many = paint_folder(tmp_path / "many", per_class=10)
    with caplog.at_level("INFO", logger="finetune"):
        assert run([*words, f"data.root={many}", f"output={tmp_path / 'models'}", "name=many"]) == 0
    assert asked[0] == 24
    assert re.search(r"timm's own preprocessing gives the same answer on \d+ of 24 photos \(RGB, ", caplog.text)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("red\nred\nblue\n", "must name each class once, one a line, and two at least"),
        ("red\nblue\n", "does not fit test_efficientnet with 2 classes"),
        ("red\nblue\ngreed\n", "has a class that the model does not know: 'green'; did you mean 'greed'?"),
        (b"\xff\xfe\x00", "is no text in UTF-8; write one class name a line"),
    ],
)
def test_labels_that_cannot_be_are_refused(
    words: list[str], content: str | bytes, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "labels.txt"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert run([f"checkpoint.labels={file}" if "labels=" in word else word for word in words]) == 2
    assert reason in capsys.readouterr().err


def test_a_size_that_the_architecture_cannot_take_is_refused_by_its_key(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*words, "checkpoint.backbone=test_vit", "checkpoint.image_size=40"]) == 2
    assert "checkpoint.image_size=40: test_vit does not take it: " in capsys.readouterr().err


def test_other_labels_make_another_version(words: list[str], checkpoint: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    again = [*words, f"output={tmp_path / 'models'}", f"checkpoint.labels={labels}", "name=net"]
    for names in (LABELS, tuple(reversed(LABELS))):
        labels.write_text("".join(f"{name}\n" for name in names))
        assert run(again) == 0
    bundle = open_bundle(tmp_path / "models" / "net")
    assert (bundle.version, bundle.info.model.labels) == ("2", tuple(reversed(LABELS)))
    assert (tmp_path / "models" / "net" / "labels.txt").read_text() == labels.read_text()

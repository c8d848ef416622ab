from __future__ import annotations

import copy
from pathlib import Path

import pytest
import timm
import torch

from finetune.cli import run
from finetune.models.backbone import Backbone
from finetune.models.blocks import MOST_WIDTH, Block, find_blocks, outputs_of
from tests.conftest import TINY


def blocks_of(network: torch.nn.Module, size: int) -> list[Block]:
    return find_blocks(network, lambda: network.forward_features(torch.zeros(2, 3, size, size)))  # type: ignore[operator]


def network(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    built = timm.create_model(name).eval()
    built.reset_classifier(0)  # type: ignore[operator]
    return built


@pytest.mark.parametrize(
    ("name", "last", "reduced"),
    [
        ("tf_efficientnet_lite0", "blocks.6.0", {(2, 3)}),
        ("test_convnext", "stages.3.blocks.1", {(2, 3)}),
        ("test_vit", "blocks.5", {(1,), (1, 2)}),
        ("test_mambaout", "stages.3", {(1, 2)}),
    ],
)
def test_blocks_are_found_in_the_order_of_the_forward_pass(name: str, last: str, reduced: set[object]) -> None:
    blocks = blocks_of(network(name), 96 if name != "test_vit" else 160)
    assert blocks[-1].name == last
    assert {block.reduced for block in blocks} == reduced
    assert len({block.name for block in blocks}) == len(blocks)


def test_a_wide_networks_blocks_are_thinned_out_and_the_last_one_stays() -> None:
    with torch.device("meta"):
        built = timm.create_model("resnet50").eval()
        built.reset_classifier(0)  # type: ignore[operator]
        blocks = blocks_of(built, 64)
    assert blocks[-1].name == "layer4.2"
    assert MOST_WIDTH / 2 < 2 * sum(block.width for block in blocks) <= 1.1 * MOST_WIDTH


def test_looking_at_blocks_leaves_no_hook_behind() -> None:
    built = network("test_resnet")
    names = [block.name for block in blocks_of(built, 64)]
    with outputs_of(built, names) as outputs:
        built.forward_features(torch.zeros(1, 3, 64, 64))  # type: ignore[operator]
    assert list(outputs) == names
    assert not any(module._forward_hooks for module in built.modules())


@pytest.mark.parametrize("name", ["test_efficientnet", "tf_efficientnet_lite0", "test_convnext", "test_vit"])
def test_every_feature_set_has_its_columns_in_everything(name: str) -> None:
    size = 160 if name == "test_vit" else 64
    backbone = Backbone(network(name), name, size).eval()
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        everything = backbone.everything(images)
        for features in backbone.feature_sets:
            alone = backbone(images, features)
            assert alone.shape == (2, backbone.width(features))
            torch.testing.assert_close(everything[:, backbone.columns(features)], alone)
    assert everything.shape[1] == backbone.widest


def test_a_copy_has_its_own_blocks() -> None:
    backbone = Backbone(network("tf_efficientnet_lite0"), "tf_efficientnet_lite0", 64).eval()
    other = copy.deepcopy(backbone)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
        images = torch.randn(1, 3, 64, 64)
        assert other(images, "blocks").abs().sum() < backbone(images, "blocks").abs().sum()


def test_a_backbone_without_such_features_is_named_with_what_it_has(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "finetune")
    words = [f"data.root={photos}", f"output={tmp_path / 'run'}", *TINY, "freeze=head", "model.features=blocks"]
    words = [word.replace("test_resnet", "tf_efficientnet_lite0") for word in words]
    assert run(["train", *words, "data.image_size=160", "probe.backbones=[test_vit]"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "finetune train: model.features=blocks: test_vit has hardly more blocks than stages, so it has only last, "
        "stages, all; use one of those, or auto, which takes what each backbone has"
    )
    assert "lite0 at" not in caplog.text, "none was tried"

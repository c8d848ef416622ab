from __future__ import annotations

import pytest
import torch

from finetune.errors import FinetuneError
from finetune.models.backbone import build_backbone, describe_backbone
from finetune.models.classifier import Classifier
from finetune.models.freezing import Depth, apply_freezing, depth_groups, trainable_names

NETWORKS = ["test_resnet", "test_efficientnet", "test_vit", "test_convnext"]


def build(name: str) -> Classifier:
    torch.manual_seed(0)
    spec = describe_backbone(name)
    backbone, _ = build_backbone(name, spec.image_size, "none")
    classifier = Classifier(spec, backbone, "last", classes=3)
    with torch.no_grad():
        for parameter in classifier.parameters():
            # scales that start at zero keep gradients from the layers before them
            parameter.add_(0.05 * torch.randn_like(parameter))
    return classifier


@pytest.mark.parametrize("name", NETWORKS)
def test_depth_groups_hold_every_backbone_parameter_once(name: str) -> None:
    classifier = build(name)
    grouped = [parameter for group in depth_groups(classifier) for parameter in group]
    wanted = [parameter for parameter, _ in classifier.named_parameters() if parameter.startswith("backbone.")]
    assert sorted(grouped) == sorted(wanted)
    assert len(depth_groups(classifier)) >= 3


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("depth", "top"), [("head", 1), ("partial", 1), ("partial", 0.5), ("full", 1)])
def test_one_step_moves_exactly_what_is_planned(name: str, depth: Depth, top: float) -> None:
    classifier = build(name)
    planned = trainable_names(classifier, depth, top)
    apply_freezing(classifier, planned)
    before = {key: tensor.clone() for key, tensor in classifier.state_dict().items()}
    # strong decay moves every parameter an optimizer may touch, dead units included
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=0.1, weight_decay=0.5)
    size = classifier.backbone.network.pretrained_cfg["input_size"][-1]  # type: ignore[index]
    images = torch.randint(0, 256, (4, size, size, 3), dtype=torch.uint8)
    torch.nn.functional.cross_entropy(classifier(images), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    after = classifier.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    parameters = {key for key, _ in classifier.named_parameters()}
    assert moved & parameters == planned
    # buffers move only in batch norms that train
    for key in moved - parameters:
        assert f"{key.rpartition('.')[0]}.weight" in planned


@pytest.mark.parametrize("name", NETWORKS)
def test_partial_trains_a_top_part_of_the_backbone(name: str) -> None:
    classifier = build(name)
    groups = depth_groups(classifier)
    one = trainable_names(classifier, "partial", 1)
    assert set(groups[-1]) <= one
    assert not set(groups[0]) & one
    assert trainable_names(classifier, "head", 1) < one < trainable_names(classifier, "full", 1)


def test_frozen_dropout_is_off_and_trained_dropout_is_on() -> None:
    classifier = build("test_resnet")
    stages = [classifier.backbone.network.get_submodule(f"layer{n}") for n in (1, 4)]
    for stage in stages:
        stage.append(torch.nn.Dropout(0.5))  # type: ignore[operator]
    apply_freezing(classifier, trainable_names(classifier, "partial", 1))
    assert [stage[-1].training for stage in stages] == [False, True]  # type: ignore[index]


def test_more_groups_than_there_are_is_an_error_with_the_range() -> None:
    classifier = build("test_resnet")
    count = len(depth_groups(classifier))
    with pytest.raises(FinetuneError) as refused:
        trainable_names(classifier, "partial", 99)
    assert str(refused.value) == (
        f"freeze.top_groups=99, but this backbone has {count} depth groups; use 1 to {count}, or freeze=full"
    )

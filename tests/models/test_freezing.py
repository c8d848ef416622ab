from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError

from finetune.errors import FinetuneError
from finetune.models.backbone import FeatureSet, build_backbone, describe_backbone
from finetune.models.classifier import Classifier
from finetune.models.depth import depth_groups
from finetune.models.freezing import (
    PREFIX,
    Depth,
    FreezingPlan,
    apply_freezing,
    decay_per_depth,
    keep_statistics,
    plan_freezing,
)
from tests.conftest import freeze_config, optimizer_config

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


def plan(classifier: Classifier, depth: Depth, layer_decay: float = 1.0, **freeze: object) -> FreezingPlan:
    return plan_freezing(classifier, freeze_config(**freeze), depth, layer_decay)


def trainable_names(classifier: Classifier, depth: Depth, top: float = 1) -> frozenset[str]:
    return plan(classifier, depth, top_groups=top).trainable(0)


@pytest.mark.parametrize("name", NETWORKS)
def test_depth_groups_hold_every_backbone_parameter_once(name: str) -> None:
    network = build(name).backbone.network
    grouped = [parameter for group in depth_groups(network) for parameter in group.names]
    assert sorted(grouped) == sorted(parameter for parameter, _ in network.named_parameters())
    assert len(depth_groups(network)) >= 3


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
    groups = plan(classifier, "full").groups
    one = trainable_names(classifier, "partial", 1)
    assert one == {*groups[-1].names, *groups[-2].names}
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
    count = len(depth_groups(classifier.backbone.network))
    with pytest.raises(FinetuneError) as refused:
        trainable_names(classifier, "partial", 99)
    assert str(refused.value) == (
        f"freeze.top_groups=99, but this backbone has {count} depth groups; use 1 to {count}, or freeze=full"
    )


@pytest.mark.parametrize(
    ("groups", "names"), [((0, 0), ["conv1", "bn1"]), ((1, 2), ["layer1", "layer2"]), ((4, 4), ["layer4"])]
)
def test_a_range_of_depths_trains_with_the_head(groups: tuple[int, int], names: list[str]) -> None:
    trains = plan(build("test_resnet"), "partial", groups=groups).trainable(0)
    assert {name.removeprefix(PREFIX).split(".")[0] for name in trains} == {*names, "head"}


def test_a_range_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(FinetuneError) as refused:
        plan(build("test_resnet"), "partial", groups=(2, 5))
    assert str(refused.value) == "freeze.groups=[2,5], but this backbone has 5 depth groups, 0 to 4"


@pytest.mark.parametrize(
    ("epochs", "begins"), [(1, [5, 4, 3, 2, 1, 0]), (2, [10, 8, 6, 4, 2, 0]), (0.5, [3, 2, 2, 1, 1, 0])]
)
def test_gradually_the_next_depth_from_the_top_begins_to_train(epochs: float, begins: list[int]) -> None:
    classifier = build("test_resnet")
    made = plan(classifier, "gradual", epochs_per_group=epochs)
    assert [group.from_epoch for group in made.groups] == begins
    assert made.trainable(0) == trainable_names(classifier, "head")
    assert (
        made.trainable(max(begins) - 1)
        < made.trainable(max(begins))
        == made.ever
        == trainable_names(classifier, "full")
    )


def test_each_depth_learns_at_a_share_of_the_rate_above_it() -> None:
    made = plan(build("test_resnet"), "full", layer_decay=0.5)
    assert [group.rate for group in made.groups] == [1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1]
    assert made.rates["head.linear.weight"] == 1
    assert made.rates[f"{PREFIX}conv1.0.weight"] == 1 / 32


def test_a_last_norm_is_no_depth_of_its_own() -> None:
    groups = depth_groups(build("test_vit").backbone.network)
    assert {name.split(".")[0] for name in groups[-1].names} == {"blocks", "norm"}


def test_a_dropout_between_frozen_layers_is_off() -> None:
    classifier = build("test_vit")
    network = classifier.backbone.network
    apply_freezing(classifier, trainable_names(classifier, "partial", 1))
    assert not network.pos_drop.training  # type: ignore[union-attr]
    assert network.head_drop.training  # type: ignore[union-attr]
    apply_freezing(classifier, trainable_names(classifier, "full"))
    assert network.pos_drop.training  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("depth", "begins"),
    [("full", [2, 2, 2, 2, 2, 0]), ("partial", [None] * 4 + [2, 0]), ("gradual", [5, 4, 3, 2, 2, 0])],
)
def test_the_head_may_have_epochs_of_its_own(depth: Depth, begins: list[int | None]) -> None:
    classifier = build("test_resnet")
    made = plan(classifier, depth, head_epochs=2, top_groups=1, epochs_per_group=1)
    assert [group.from_epoch for group in made.groups] == begins
    assert made.head_epochs == 2
    assert made.trainable(1) == trainable_names(classifier, "head") < made.trainable(2)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_the_stem_learns_at_a_share_of_the_rate_whatever_the_number_of_depths(name: str) -> None:
    classifier = build(name)
    decay = decay_per_depth(classifier, optimizer_config(stem_rate=0.01))
    rates = [group.rate for group in plan(classifier, "full", decay).groups]
    assert rates[0] == pytest.approx(0.01)
    assert rates[-1] == 1
    steps = [above / below for below, above in pairwise(rates)]
    assert steps == [pytest.approx(steps[0])] * len(steps)
    assert decay_per_depth(classifier, optimizer_config(layer_decay=0.7)) == 0.7


def test_only_one_rule_sets_the_rates_of_depths() -> None:
    with pytest.raises(ValidationError, match=r"optimizer\.layer_decay=0\.5 sets the rates too"):
        optimizer_config(stem_rate=0.01, layer_decay=0.5)


def test_kept_statistics_stay_while_everything_else_of_a_batch_norm_trains() -> None:
    classifier = build("test_resnet")
    assert plan(classifier, "full", statistics="keep").keeps_statistics
    apply_freezing(classifier, trainable_names(classifier, "full"))
    keep_statistics(classifier)
    before = {name: buffer.clone() for name, buffer in classifier.named_buffers()}
    images = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8)
    classifier(images).sum().backward()
    assert all(torch.equal(buffer, before[name]) for name, buffer in classifier.named_buffers())
    norms = [module for module in classifier.backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms
    assert all(norm.weight.grad is not None for norm in norms)


def test_what_would_begin_after_the_last_epoch_stays_frozen() -> None:
    classifier = build("test_resnet")
    whole = plan(classifier, "gradual", epochs_per_group=1.0)
    within = whole.within(3)
    begins = [group.from_epoch for group in whole.groups]
    assert [group.from_epoch for group in within.groups] == [
        begin if begin is not None and begin < 3 else None for begin in begins
    ]
    assert None in [group.from_epoch for group in within.groups]
    assert within.ever == whole.trainable(2)
    assert whole.within(100) == whole


@pytest.mark.parametrize(("features", "depth"), [("stages", "full"), ("all", "full"), ("stages", "partial")])
def test_what_no_answer_depends_on_does_not_train(features: FeatureSet, depth: Depth) -> None:
    classifier = build("test_efficientnet")
    above = {PREFIX + name for name in dict(classifier.backbone.network.named_parameters()) if "conv_head" in name}
    seen = Classifier(describe_backbone("test_efficientnet"), classifier.backbone, features, classes=3)
    seen.backbone.network.conv_stem.weight.requires_grad_(False)  # type: ignore[union-attr]
    made = plan(seen, depth, top_groups=2)
    assert bool(above & made.ever) == (features == "all") == bool(above & made.trainable(0))
    assert bool(above & made.idle) == (features != "all")
    assert above <= made.rates.keys()
    # looking leaves everything as it was
    assert seen.training
    assert [name for name, parameter in seen.named_parameters() if not parameter.requires_grad] == [
        f"{PREFIX}conv_stem.weight"
    ]
    apply_freezing(seen, made.ever)
    seen(torch.zeros(2, 64, 64, 3, dtype=torch.uint8)).sum().backward()
    assert {name for name, parameter in seen.named_parameters() if parameter.grad is not None} == made.ever


def test_training_only_what_no_answer_depends_on_is_refused() -> None:
    spec = describe_backbone("mobilenetv3_small_050")
    backbone, _ = build_backbone(spec.name, 64, "none")
    seen = Classifier(spec, backbone, "stages", classes=3)
    with pytest.raises(FinetuneError, match="freeze=partial would train nothing of the backbone: model") as refused:
        plan(seen, "partial", top_groups=1)
    assert "model.features=stages sees none of the depths that it opens" in str(refused.value)
    assert [group.from_epoch for group in plan(seen, "partial", top_groups=2).groups][-3:] == [0, None, 0]

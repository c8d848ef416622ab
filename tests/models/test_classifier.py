from __future__ import annotations

import pytest
import torch

from finetune.errors import FinetuneError
from finetune.models.backbone import FeatureSet, build_backbone, describe_backbone
from finetune.models.classifier import Classifier, Normalise

NETWORKS = ["test_resnet", "test_efficientnet", "test_vit"]


def test_normalise_agrees_with_the_textbook() -> None:
    spec = describe_backbone("resnet18")
    images = torch.randint(0, 256, (2, 5, 4, 3), dtype=torch.uint8)
    wanted = (images.float() / 255 - torch.tensor(spec.mean)) / torch.tensor(spec.std)
    torch.testing.assert_close(Normalise(spec)(images), wanted.permute(0, 3, 1, 2))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("features", ["last", "stages", "all"])
def test_probabilities_of_each_feature_set(name: str, features: FeatureSet) -> None:
    spec = describe_backbone(name)
    backbone, _ = build_backbone(name, spec.image_size, "none")
    classifier = Classifier(spec, backbone, features, classes=5).eval()
    images = torch.randint(0, 256, (3, spec.image_size, spec.image_size, 3), dtype=torch.uint8)
    with torch.inference_mode():
        probabilities = classifier.probabilities(images)
    assert probabilities.shape == (3, 5)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(3))


@pytest.mark.parametrize("name", NETWORKS)
def test_feature_sets_are_columns_of_all(name: str) -> None:
    spec = describe_backbone(name)
    backbone, _ = build_backbone(name, spec.image_size, "none")
    backbone.eval()
    images = torch.rand(2, 3, spec.image_size, spec.image_size)
    with torch.inference_mode():
        everything = backbone(images, "all")
        for features in ("last", "stages"):
            part = backbone(images, features)
            torch.testing.assert_close(everything[:, backbone.columns(features)], part)
            assert part.shape[1] == backbone.width(features)
    assert everything.shape[1] == backbone.width("all")


def test_temperature_softens_without_changing_the_answer() -> None:
    spec = describe_backbone("test_resnet")
    backbone, _ = build_backbone("test_resnet", 64, "none")
    classifier = Classifier(spec, backbone, "last", classes=4).eval()
    images = torch.randint(0, 256, (6, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        sharp = classifier.probabilities(images)
        classifier.temperature.fill_(5.0)
        soft = classifier.probabilities(images)
    assert torch.equal(sharp.argmax(1), soft.argmax(1))
    assert bool((soft.max(1).values < sharp.max(1).values).all())


def test_drop_path_skips_blocks_while_training_and_has_no_weights_of_its_own() -> None:
    plain, _ = build_backbone("test_resnet", 64, "none")
    dropping, _ = build_backbone("test_resnet", 64, "none", drop_path=0.5)
    assert dropping.state_dict().keys() == plain.state_dict().keys()
    chances = [module.drop_prob for module in dropping.modules() if type(module).__name__ == "DropPath"]
    assert max(chances) == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["inception_v4", "vgg11"])
def test_drop_path_where_nothing_can_be_skipped_is_refused(name: str) -> None:
    with pytest.raises(FinetuneError) as refused:
        build_backbone(name, 224, "none", drop_path=0.1)
    assert str(refused.value) == f"model.drop_path=0.1: {name} has no blocks that could be skipped; use 0"

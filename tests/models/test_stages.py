from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from finetune.errors import FinetuneError
from finetune.models.backbone import Backbone, build_backbone, build_empty_backbone, describe_backbone
from finetune.models.classifier import Classifier
from finetune.models.freezing import apply_freezing
from finetune.models.graph import lasting_graph, quick_graph
from finetune.runtime import open_session
from tests.models.test_freezing import plan

# CNNs, ViTs, hybrids and others: name, image size in px, stages dropped, stages there are
NETWORKS = [
    ("test_resnet", 64, 1, 5),
    ("test_efficientnet", 64, 2, 5),
    ("test_convnext", 64, 1, 4),
    ("test_nfnet", 64, 2, 5),
    ("test_vit", 160, 3, 6),
    ("test_coatnet", 64, 1, 5),
    ("test_mambaout", 64, 1, 4),
    ("mobilevit_xxs", 64, 1, 5),
    ("mobilenetv3_small_050", 64, 2, 5),
    ("regnetx_002", 64, 1, 5),
    ("gmlp_ti16_224", 224, 20, 30),
    ("swin_tiny_patch4_window7_224", 64, 2, 4),
]
SAMPLE = pytest.mark.parametrize(("name", "size", "drop", "count"), NETWORKS, ids=[network[0] for network in NETWORKS])


def pair(name: str, size: int, drop: int) -> tuple[Backbone, Backbone]:
    """Return a network that is whole and the same one without its top stages."""
    made = []
    for stages in (0, drop):
        torch.manual_seed(0)
        made.append(build_backbone(name, size, "none", drop_stages=stages)[0].eval())
    return made[0], made[1]


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@SAMPLE
def test_the_stages_left_answer_as_before_and_the_others_are_gone(name: str, size: int, drop: int, count: int) -> None:
    whole, shortened = pair(name, size, drop)
    assert shortened.stages == count - drop
    assert parameters(shortened) < 0.95 * parameters(whole)
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        stages, below = whole(images, "stages"), shortened(images, "stages")
        last, everything = shortened(images, "last"), shortened(images, "all")
    assert torch.allclose(below, stages[:, : below.shape[1]], atol=1e-5)
    # average, then maximum of each stage: the last pair is of the highest stage left
    torch.testing.assert_close(last, below[:, -2 * last.shape[1] : -last.shape[1]])
    torch.testing.assert_close(everything, torch.cat([below, last], dim=1))
    assert (shortened.last_width, shortened.stages_width) == (last.shape[1], below.shape[1])


@SAMPLE
def test_one_step_moves_exactly_what_is_planned(name: str, size: int, drop: int, count: int) -> None:
    _, backbone = pair(name, size, drop)
    classifier = Classifier(describe_backbone(name), backbone, "last", classes=3)
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    for depth in ("partial", "full"):
        planned = plan(classifier, depth, top_groups=1).trainable(0)  # type: ignore[arg-type]
        apply_freezing(classifier, planned)
        before = {key: parameter.clone() for key, parameter in classifier.named_parameters()}
        optimizer = torch.optim.SGD(classifier.parameters(), lr=0.001, weight_decay=5)
        images = torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8)
        nn.functional.cross_entropy(classifier(images), torch.tensor([0, 1])).backward()
        optimizer.step()
        after = dict(classifier.named_parameters())
        assert {key for key in before if not torch.equal(before[key], after[key])} == planned


def answers_alike(classifier: Classifier, size: int, graph: bytes) -> bool:
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    with torch.inference_mode():
        wanted = classifier(torch.from_numpy(images)).numpy()
    (answer,) = open_session(graph, "cpu", threads=1).ort.run(["logits"], {"images": images})
    return np.allclose(answer, wanted, atol=1e-5)


@SAMPLE
def test_the_quick_graph_answers_as_the_shortened_network(name: str, size: int, drop: int, count: int) -> None:
    _, backbone = pair(name, size, drop)
    classifier = Classifier(describe_backbone(name), backbone, "all", classes=3).eval()
    assert answers_alike(classifier, size, quick_graph(classifier, size, "logits"))


@pytest.mark.parametrize(("name", "size"), [("test_resnet", 64), ("test_vit", 160)])
def test_the_lasting_graph_answers_as_the_shortened_network(name: str, size: int) -> None:
    _, backbone = pair(name, size, 2)
    classifier = Classifier(describe_backbone(name), backbone, "last", classes=3).eval()
    assert answers_alike(classifier, size, lasting_graph(classifier, size, "logits").SerializeToString())


def test_it_is_rebuilt_empty_with_the_same_names() -> None:
    _, backbone = pair("test_efficientnet", 64, 2)
    empty = build_empty_backbone("test_efficientnet", 64, drop_stages=2)
    empty.load_state_dict(backbone.state_dict())


def test_more_stages_than_there_are_is_an_error_with_the_range() -> None:
    with pytest.raises(FinetuneError) as refused:
        build_backbone("test_resnet", 64, "none", drop_stages=5)
    assert str(refused.value) == ("model.drop_stages=5: test_resnet has 5 stages, of which one must stay; use 0 to 4")


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [("coat_tiny", 64, "hardly anything of it would go"), ("crossvit_tiny_240", 240, "the stages below would change")],
)
def test_branches_through_all_stages_are_refused(name: str, size: int, reason: str) -> None:
    with pytest.raises(FinetuneError) as refused:
        build_backbone(name, size, "none", drop_stages=1)
    assert str(refused.value) == f"model.drop_stages=1: timm cannot take stages off {name} ({reason}); use 0"

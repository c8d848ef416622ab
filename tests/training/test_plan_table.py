from __future__ import annotations

from finetune.models.backbone import build_backbone, describe_backbone
from finetune.models.classifier import Classifier
from finetune.training.plan_table import describe_plan
from tests.conftest import ROOT
from tests.models.test_freezing import build, plan


def test_the_document_shows_what_is_printed() -> None:
    spec = describe_backbone("tf_efficientnet_lite0")
    backbone, _ = build_backbone(spec.name, 64, "none")
    made = plan(Classifier(spec, backbone, "last", classes=3), "gradual", layer_decay=0.8, epochs_per_group=0.1)
    made = made.within(2)
    printed = describe_plan(made, 3e-4).splitlines()
    shown = (ROOT / "docs/training.md").read_text().split("```\n")
    (block,) = [part for part in shown if part.startswith("depth ")]
    assert len(block.splitlines()) > 4
    assert set(block.splitlines()) - {"..."} <= set(printed)
    # seven frozen depths share a line
    assert len(printed) == 1 + len(made.groups) - 6


def test_neighbours_that_are_treated_alike_share_a_line() -> None:
    made = plan(build("test_resnet"), "partial", groups=(1, 2))
    lines = [line.split() for line in describe_plan(made, 0.01).splitlines()]
    assert [(line[0], line[-3:]) for line in lines[1:]] == [
        ("0", [f"{made.groups[0].parameters:,}", "frozen", "-"]),
        ("1-2", ["epoch", "1", "0.01"]),
        ("3-4", [f"{sum(group.parameters for group in made.groups[3:5]):,}", "frozen", "-"]),
        ("5", ["epoch", "1", "0.01"]),
    ]
    assert "layer1.0 ... layer2.0" in describe_plan(made, 0.01)


def test_what_stands_above_what_the_head_sees_is_not_counted_as_trained() -> None:
    spec = describe_backbone("test_efficientnet")
    backbone, _ = build_backbone(spec.name, 64, "none")
    printed = {}
    for features in ("last", "stages"):
        made = plan(Classifier(spec, backbone, features, classes=3), "full")  # type: ignore[arg-type]
        printed[features] = describe_plan(made, 0.01).splitlines()
    above = sum(p.numel() for name, p in backbone.network.named_parameters() if name.startswith(("conv_head", "bn2")))
    counts = [sum(int(line.split()[-4].replace(",", "")) for line in printed[key][1:-1]) for key in printed]
    assert counts[0] == sum(parameter.numel() for parameter in backbone.parameters())
    assert counts[0] - counts[1] == above > 0

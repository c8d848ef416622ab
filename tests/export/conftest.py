from __future__ import annotations

import onnx
import pytest


@pytest.fixture(scope="session")
def stages_graph() -> onnx.ModelProto:
    """A network of depthwise convolutions whose head looks at the features of all stages, 64 px; weights are random."""
    import torch

    from finetune.export.graph import exported_graph
    from finetune.models.backbone import build_backbone, describe_backbone
    from finetune.models.classifier import Classifier

    torch.manual_seed(0)
    backbone, _ = build_backbone("test_efficientnet", 64, "none")
    classifier = Classifier(describe_backbone("test_efficientnet"), backbone, "stages", 3)
    return exported_graph(classifier.eval(), 64)[0]

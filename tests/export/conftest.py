from __future__ import annotations

import onnx
import pytest


@pytest.fixture(scope="session")
def stages_graph() -> onnx.ModelProto:
    """A network of depthwise convolutions whose head looks at the features of all stages, 64 px; weights are random."""
    import torch

    from finetune.bundle import OUTPUT
    from finetune.export.export import _Exported
    from finetune.models.backbone import build_backbone, describe_backbone
    from finetune.models.classifier import Classifier
    from finetune.models.graph import lasting_graph

    torch.manual_seed(0)
    backbone, _ = build_backbone("test_efficientnet", 64, "none")
    classifier = Classifier(describe_backbone("test_efficientnet"), backbone, "stages", 3)
    with torch.no_grad():
        return lasting_graph(_Exported(classifier.eval()), 64, OUTPUT)

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from finetune.models.backbone import build_backbone, describe_backbone
from finetune.models.classifier import Classifier
from finetune.models.graph import INPUT, lasting_graph, quick_graph
from finetune.runtime import open_session


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    spec = describe_backbone("test_efficientnet")
    backbone, _ = build_backbone("test_efficientnet", 64, "none")
    return Classifier(spec, backbone, "all", classes=3).eval()


@pytest.mark.parametrize("photos", [1, 2, 5])
def test_both_graphs_answer_as_the_module_at_any_batch_size(classifier: Classifier, photos: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (photos, 64, 64, 3), dtype=np.uint8)
    with torch.inference_mode():
        wanted = classifier(torch.from_numpy(images)).numpy()
    lasting = lasting_graph(classifier, 64, "logits").SerializeToString()
    for graph in (quick_graph(classifier, 64, "logits"), lasting):
        (answer,) = open_session(graph, "cpu", threads=1).ort.run(["logits"], {INPUT: images})
        np.testing.assert_allclose(answer, wanted, atol=1e-5)


def test_the_lasting_graph_is_one_file_with_the_contracts_interface(classifier: Classifier) -> None:
    proto = lasting_graph(classifier, 64, "logits")
    onnx.checker.check_model(proto, full_check=True)
    assert not any(tensor.HasField("data_location") and tensor.data_location for tensor in proto.graph.initializer)
    (entry,) = proto.graph.input
    dimensions = entry.type.tensor_type.shape.dim
    assert entry.name == "images"
    assert entry.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert dimensions[0].dim_param == "photos"
    assert [dimension.dim_value for dimension in dimensions[1:]] == [64, 64, 3]

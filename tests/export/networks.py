"""Exported graphs of small timm networks, whose batch norms have something to fold."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from finetune.export.folding import lean
from finetune.export.graph import raw_graph
from finetune.models.backbone import build_backbone, describe_backbone
from finetune.models.classifier import Classifier
from finetune.runtime import open_session

SIZES = {"test_resnet": 64, "test_efficientnet": 64, "test_vit": 160, "resnetv2_18": 64}
NETWORKS = tuple(SIZES)


@functools.cache
def graph_of(name: str) -> onnx.ModelProto:
    """Return the lean graph of an untrained network and a linear head over stages and last layer; not to be changed."""
    return lean(raw_graph_of(name))


@functools.cache
def raw_graph_of(name: str) -> onnx.ModelProto:
    """Return the same as it comes from the exporter."""
    torch.manual_seed(0)
    backbone, _ = build_backbone(name, SIZES[name], "none")
    classifier = Classifier(describe_backbone(name), backbone, "all", 3).eval()
    for module in classifier.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    # answers that are neither all alike nor all certain
    photos = torch.randint(0, 256, (4, SIZES[name], SIZES[name], 3)) * torch.linspace(0.1, 1, 4).view(4, 1, 1, 1)
    with torch.no_grad():
        nn.init.normal_(classifier.head.linear.weight)
        classifier.temperature.copy_(classifier(photos).std())
    return raw_graph(classifier, SIZES[name])


def answers(proto: onnx.ModelProto) -> NDArray[np.float32]:
    """Return the probabilities of three photos of noise, each of another brightness."""
    size = proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    photos = np.random.default_rng(0).integers(0, 100, (3, size, size, 3), dtype=np.uint8)
    photos += np.asarray([0, 70, 150], np.uint8).reshape(3, 1, 1, 1)
    (probabilities,) = open_session(proto.SerializeToString(), "cpu", threads=1).ort.run(None, {"images": photos})
    return probabilities  # type: ignore[no-any-return]


def operators(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]

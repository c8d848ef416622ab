from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from timm.layers import create_act_layer  # type: ignore[attr-defined]
from torch import nn

from finetune.config import HeadConfig
from finetune.config.head import ACTIVATIONS
from finetune.models.backbone import build_backbone, describe_backbone
from finetune.models.classifier import Classifier
from finetune.models.freezing import apply_freezing
from finetune.models.graph import lasting_graph
from finetune.models.head import LINEAR, Head
from finetune.runtime import open_session
from tests.models.test_freezing import plan


def config(**changes: Any) -> HeadConfig:
    return HeadConfig.model_validate(LINEAR.model_dump() | changes)


def classifier(head: HeadConfig) -> Classifier:
    spec = describe_backbone("test_resnet")
    backbone, _ = build_backbone("test_resnet", 64, "none")
    return Classifier(spec, backbone, "last", 4, head)


def test_without_hidden_layers_it_is_one_linear_layer_on_standardised_features() -> None:
    head = Head(6, 3)
    assert {name for name, _ in head.named_parameters()} == {"linear.weight", "linear.bias"}
    head.mean.fill_(2.0)
    head.scale.fill_(4.0)
    features = torch.randn(5, 6)
    torch.testing.assert_close(head(features), head.linear((features - 2) / 4))


def test_each_hidden_layer_is_dropout_linear_norm_and_activation() -> None:
    head = Head(6, 3, config(hidden=[8, 5], activation="gelu", batch_norm=True, dropout=0.25))
    kinds = [[type(layer).__name__ for layer in layers] for layers in head.hidden]  # type: ignore[attr-defined]
    assert kinds == [["Dropout", "Linear", "BatchNorm1d", "GELU"]] * 2
    assert [layer.out_features for layer in head.modules() if isinstance(layer, nn.Linear)] == [8, 5, 3]
    assert {layer.p for layer in head.modules() if isinstance(layer, nn.Dropout)} == {0.25}
    assert head(torch.randn(7, 6)).shape == (7, 3)


@pytest.mark.parametrize("hidden", [[], [8]])
def test_dropout_leaves_inputs_out_while_training_and_none_in_use(hidden: list[int]) -> None:
    head, features = Head(32, 4, config(hidden=hidden, dropout=0.5)), torch.randn(3, 32)
    assert not torch.equal(head(features), head(features))
    head.eval()
    assert torch.equal(head(features), head(features))


def test_every_activation_is_built_by_timm_and_found_by_torchs_name() -> None:
    for name in ACTIVATIONS:
        assert isinstance(create_act_layer(name), nn.Module)
    names = {"LeakyReLU": "leaky_relu", "GELU": "gelu", "Hardswish": "hard_swish", "SiLU": "silu", "PReLU": "prelu"}
    assert {name: config(activation=name).activation for name in names} == names


def test_an_unknown_activation_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValidationError, match="no such activation; did you mean 'gelu'"):
        config(activation="gleu")


def test_norms_without_layers_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"needs head\.hidden"):
        config(batch_norm=True)


@pytest.mark.parametrize("depth", ["head", "partial", "gradual"])
def test_all_of_a_deep_head_trains_in_every_mode(depth: Any) -> None:
    made = classifier(config(hidden=[8], batch_norm=True, dropout=0.5))
    planned = plan(made, depth).trainable(0)
    assert {name for name, _ in made.named_parameters() if name.startswith("head.")} <= planned
    apply_freezing(made, planned)
    assert all(module.training for module in made.head.modules())


def test_a_deep_head_is_exported_as_it_answers() -> None:
    made = classifier(config(hidden=[16, 8], activation="silu", batch_norm=True, dropout=0.3)).eval()
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    with torch.inference_mode():
        wanted = made(torch.from_numpy(images)).numpy()
    session = open_session(lasting_graph(made, 64, "logits").SerializeToString(), "cpu", threads=1)
    np.testing.assert_allclose(session.ort.run(["logits"], {"images": images})[0], wanted, atol=1e-5)

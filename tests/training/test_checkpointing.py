from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from finetune.cli import run
from finetune.errors import FinetuneError
from finetune.models.backbone import describe_backbone
from finetune.models.classifier import Classifier
from finetune.models.freezing import apply_freezing
from finetune.training.checkpointing import StatisticsOnce, checkpoint_gradients
from tests.conftest import TINY
from tests.models.test_freezing import build, plan


def gradients(classifier: Classifier, depth: Any, size: int) -> dict[str, torch.Tensor]:
    apply_freezing(classifier, plan(classifier, depth, top_groups=1).trainable(0))
    images = torch.randint(0, 256, (4, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    # dropout and skipped blocks must be the same in both passes
    torch.manual_seed(1)
    torch.nn.functional.cross_entropy(classifier(images), torch.tensor([0, 1, 2, 0])).backward()
    return {name: p.grad.clone() for name, p in classifier.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit", "test_convnext", "test_coatnet"])
@pytest.mark.parametrize("depth", ["full", "partial"])
def test_gradients_are_those_without_it_below_frozen_layers_too(name: str, depth: str) -> None:
    classifier, size = build(name), describe_backbone(name).image_size
    plainly = gradients(classifier, depth, size)
    classifier.zero_grad()
    checkpoint_gradients(classifier, name)
    again = gradients(classifier, depth, size)
    assert plainly.keys() == again.keys()
    for parameter, gradient in plainly.items():
        torch.testing.assert_close(again[parameter], gradient)


def test_it_is_switched_on_in_the_network() -> None:
    classifier = build("test_vit")
    calls: list[int] = []
    block = classifier.backbone.network.get_submodule("blocks.0")
    # planning asks it too, in eval mode
    block.register_forward_pre_hook(lambda part, _: calls.append(1) if part.training else None)
    gradients(classifier, "full", 160)
    assert len(calls) == 1
    checkpoint_gradients(classifier, "test_vit")
    gradients(classifier, "full", 160)
    # once more in each pass
    assert len(calls) == 3


@pytest.mark.parametrize("name", ["vgg11", "inception_v3"])
def test_architectures_without_it_are_refused(name: str) -> None:
    classifier = build("test_resnet")

    class Without(torch.nn.Module):
        def set_grad_checkpointing(self, enable: bool) -> None:
            assert not enable, "gradient checkpointing not supported"

    classifier.backbone.network = Without() if name == "vgg11" else torch.nn.Identity()
    with pytest.raises(FinetuneError, match=f"timm has none for {name}; use false, and a smaller data.batch_size"):
        checkpoint_gradients(classifier, name)


def test_a_run_with_it_ends_in_the_weights_and_statistics_of_one_without(photos: Path, tmp_path: Path) -> None:
    words = ["train", f"data.root={photos}", *TINY, "freeze=full", "trainer.max_epochs=2", "data.batch_size=5"]
    words += ["trainer.accelerator=cpu", "head.dropout=0.3", "model.drop_path=0.2"]
    found = []
    for name in ("false", "true"):
        output = tmp_path / name
        assert run([*words, f"output={output}", f"trainer.gradient_checkpointing={name}"]) == 0
        found.append(safetensors.torch.load_file(output / "weights.safetensors"))
    plainly, again = found
    for name, tensor in plainly.items():
        torch.testing.assert_close(again[name], tensor, msg=name)


def test_only_norms_that_train_are_paused_and_go_on_as_they_were() -> None:
    norms = torch.nn.ModuleList([torch.nn.BatchNorm2d(2), torch.nn.BatchNorm2d(2, track_running_stats=False)])
    norms.append(torch.nn.BatchNorm2d(2).eval())
    before = {name: tensor.clone() for name, tensor in norms.state_dict().items()}
    once: Any = StatisticsOnce()
    once.on_before_backward(None, norms, None)
    assert [norm.momentum for norm in norms] == [0.0, 0.1, 0.1]
    norms[0](torch.randn(4, 2, 3, 3))
    once.on_after_backward(None, norms)
    assert [norm.momentum for norm in norms] == [0.1, 0.1, 0.1]
    assert all(torch.equal(tensor, before[name]) for name, tensor in norms.state_dict().items())

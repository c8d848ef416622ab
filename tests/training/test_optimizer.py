from __future__ import annotations

import pytest
import torch
from torch.optim import Optimizer

from finetune.config import OptimizerConfig
from finetune.errors import FinetuneError
from finetune.models.classifier import Classifier
from finetune.models.freezing import apply_freezing
from finetune.training.optimizer import build_optimizer, require_known_optimizer
from tests.conftest import ROOT
from tests.conftest import optimizer_config as config
from tests.models.test_freezing import build, plan

PRESETS = sorted(path.stem for path in (ROOT / "conf/optimizer").glob("*.yaml"))


@pytest.fixture
def classifier() -> Classifier:
    return build("test_resnet")


def optimizer(classifier: Classifier, configured: OptimizerConfig, layer_decay: float = 1.0) -> Optimizer:
    return build_optimizer(configured, classifier, plan(classifier, "full", layer_decay).rates)


@pytest.mark.parametrize(
    "name", [*PRESETS, "lamb", "lion", "adan", "nadamw", "radam", "adabelief", "lars", "muon", "madgrad"]
)
def test_frozen_parameters_are_not_touched_by_any(name: str, classifier: Classifier) -> None:
    made = optimizer(classifier, config(**({"preset": name} if name in PRESETS else {"name": name})))
    planned = plan(classifier, "partial", top_groups=1).trainable(0)
    apply_freezing(classifier, planned)
    before = {name: parameter.clone() for name, parameter in classifier.named_parameters()}
    for _ in range(2):
        made.zero_grad()
        images = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8)
        torch.nn.functional.cross_entropy(classifier(images), torch.tensor([0, 1, 2, 0])).backward()
        made.step()
    moved = {name for name, parameter in classifier.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved <= planned
    assert {"head.linear.weight", "head.linear.bias"} <= moved


def test_every_parameter_is_in_one_group_with_its_rate_and_biases_do_not_decay(classifier: Classifier) -> None:
    made = optimizer(classifier, config(learning_rate=0.1, weight_decay=0.5), layer_decay=0.5)
    found = {parameter: group for group in made.param_groups for parameter in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in made.param_groups)
    rates = plan(classifier, "full", 0.5).rates
    for name, parameter in classifier.named_parameters():
        assert found[parameter]["lr"] == pytest.approx(0.1 * rates[name])
        assert found[parameter]["weight_decay"] == (0.5 if parameter.ndim > 1 else 0)


@pytest.mark.parametrize(
    ("preset", "momentum", "nesterov"), [("sgd", 0.9, True), ("sgd", 0.0, False), ("momentum", 0.9, False)]
)
def test_momentum_and_nesterov(preset: str, momentum: float, nesterov: bool, classifier: Classifier) -> None:
    made = optimizer(classifier, config(preset, momentum=momentum))
    assert isinstance(made, torch.optim.SGD)
    assert {(group["momentum"], group["nesterov"]) for group in made.param_groups} == {(momentum, nesterov)}


def test_momentum_is_the_first_beta_of_adam(classifier: Classifier) -> None:
    made = optimizer(classifier, config("adamw", momentum=0.8))
    assert isinstance(made, torch.optim.AdamW)
    assert {group["betas"] for group in made.param_groups} == {(0.8, 0.999)}


def test_an_unknown_optimizer_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(FinetuneError) as refused:
        require_known_optimizer("admw")
    assert str(refused.value) == "optimizer.name=admw: timm has no such optimizer; did you mean 'adamw'?"


def test_second_derivatives_are_refused() -> None:
    with pytest.raises(FinetuneError, match="needs second derivatives"):
        require_known_optimizer("adahessian")


def test_an_optimizer_whose_package_is_missing_is_refused(classifier: Classifier) -> None:
    with pytest.raises(FinetuneError, match=r"optimizer\.name=fusedadam cannot be used here: "):
        optimizer(classifier, config(name="fusedadam"))

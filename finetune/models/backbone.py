"""A timm network without its classifier, as a giver of features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import timm
import torch
from timm.layers import DropPath  # type: ignore[attr-defined]
from torch import Tensor, nn

from finetune.errors import FinetuneError, nearest
from finetune.models.stages import drop_top_stages, lower_stages
from finetune.models.weights import load_pretrained

FeatureSet = Literal["last", "stages", "all"]


@dataclass(frozen=True)
class BackboneSpec:
    """What identifies an architecture and how its input is normalised (mean and std of values scaled to 0..1)."""

    name: str
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Backbone(nn.Module):
    """Features of normalised images, from the last layer and from every stage.

    "last" is what timm's own classifier would see; "stages" is the average and the maximum of each stage's output;
    "all" is both. Heads that look at every layer: Evci et al. 2022, Head2Toe. Without its top stages a network has
    nothing that timm's classifier would see; "last" is then the average of the highest stage left.
    """

    def __init__(self, network: nn.Module, image_size: int, stages: int | None = None) -> None:
        """stages: how many are left of a network whose top ones were dropped; None: it is whole."""
        super().__init__()
        self.network, self.stages = network, stages
        was_training = network.training
        network.eval()
        # not inference_mode: some networks keep what they make here, and train with it
        with torch.no_grad():
            images = torch.zeros(2, 3, image_size, image_size)
            self.last_width = self(images, "last").shape[1]
            self.stages_width = self(images, "stages").shape[1]
        network.train(was_training)

    def width(self, features: FeatureSet) -> int:
        columns = range(self.stages_width + self.last_width)
        return len(columns[self.columns(features)])

    def columns(self, features: FeatureSet) -> slice:
        """Where a feature set lies in "all", which is "stages" and then "last"."""
        return {
            "stages": slice(0, self.stages_width),
            "last": slice(self.stages_width, None),
            "all": slice(None),
        }[features]

    def forward(self, images: Tensor, features: FeatureSet) -> Tensor:
        """images: (N, 3, H, W) normalised; returns (N, width(features))."""
        if self.stages is not None:
            return self._of_lower_stages(lower_stages(self.network, images, self.stages), features)
        network: Any = self.network
        if features == "last":
            return self._last(network.forward_features(images))
        if features == "stages":
            return self._pooled(network.forward_intermediates(images, intermediates_only=True))
        final, stages = network.forward_intermediates(images)
        return torch.cat([self._pooled(stages), self._last(final)], dim=1)

    def _of_lower_stages(self, stages: list[Tensor], features: FeatureSet) -> Tensor:
        last = stages[-1].mean((2, 3))
        if features == "last":
            return last
        pooled = self._pooled(stages)
        return pooled if features == "stages" else torch.cat([pooled, last], dim=1)

    @staticmethod
    def _pooled(stages: list[Tensor]) -> Tensor:
        return torch.cat([pool for stage in stages for pool in (stage.mean((2, 3)), stage.amax((2, 3)))], dim=1)

    def _last(self, final: Tensor) -> Tensor:
        pooled: Tensor = self.network.forward_head(final, pre_logits=True)  # type: ignore[operator]
        return pooled.flatten(1)


def describe_backbone(name: str) -> BackboneSpec:
    """Return an architecture's own image size and normalisation; raises FinetuneError for an unknown name."""
    config = timm.get_pretrained_cfg(require_known(name))
    if config is None:
        return BackboneSpec(name, 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    mean, std = (tuple(float(value) for value in values[:3]) for values in (config.mean, config.std))
    return BackboneSpec(name, int(config.input_size[-1]), mean, std)  # type: ignore[arg-type]


def require_known(name: str) -> str:
    """Return `name` if timm has this architecture; else raise FinetuneError with the nearest one."""
    if not timm.is_model(name.partition(".")[0]):
        raise FinetuneError(
            f"model.backbone={name}: timm has no such architecture{nearest(name, timm.list_models())} "
            "(`finetune models filter='*net*'` lists them)"
        )
    architecture, _, tag = name.partition(".")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise FinetuneError(f"model.backbone={name}: no such weights{nearest(tag, tags)} (there are {', '.join(tags)})")
    return name


def takes_any_size(name: str) -> bool:
    """Whether the architecture's weights fit an image size other than its own."""
    config = timm.get_pretrained_cfg(name)
    return config is not None and not config.fixed_input_size


def build_backbone(
    name: str, image_size: int, weights: str, drop_path: float = 0.0, drop_stages: int = 0
) -> tuple[Backbone, str]:
    """Create an architecture with pretrained weights and no classifier; return it and where its weights came from.

    drop_path: chance that the deepest block is skipped while training; drop_stages: how many stages go, from the top.
    Raises FinetuneError where there are no such.
    """
    network = _create(name, image_size, drop_path)
    origin = load_pretrained(network, name, weights)
    return _without_classifier(network, name, image_size, drop_stages), origin


def build_empty_backbone(name: str, image_size: int, drop_stages: int = 0) -> Backbone:
    """Create an architecture whose weights are about to be loaded from a run."""
    return _without_classifier(_create(name, image_size), name, image_size, drop_stages)


def _without_classifier(network: nn.Module, name: str, image_size: int, drop_stages: int) -> Backbone:
    if hasattr(network, "reset_classifier"):  # encoders have none
        network.reset_classifier(0)  # type: ignore[operator]
    try:
        left = drop_top_stages(network, name, drop_stages, image_size) if drop_stages else None
        return Backbone(network, image_size, left)
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise FinetuneError(f"{name} cannot take data.image_size={image_size}: {reason}") from None


def _create(name: str, image_size: int, drop_path: float = 0.0) -> nn.Module:
    options: dict[str, Any] = {} if takes_any_size(require_known(name)) else {"img_size": image_size}
    if drop_path:
        options["drop_path_rate"] = drop_path
    try:
        network: nn.Module = timm.create_model(name, **options)
    except (TypeError, AssertionError, ValueError) as error:
        if "drop_path_rate" not in str(error):
            raise FinetuneError(f"{name} cannot be built for data.image_size={image_size}: {error}") from None
    else:
        if not drop_path or any(isinstance(module, DropPath) for module in network.modules()):
            return network
    raise FinetuneError(f"model.drop_path={drop_path:g}: {name} has no blocks that could be skipped; use 0")

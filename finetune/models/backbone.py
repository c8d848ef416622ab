"""A timm network without its classifier, as a giver of features."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import timm
import torch
from timm.layers import DropPath  # type: ignore[attr-defined]
from torch import Tensor, nn

from finetune.errors import FinetuneError, nearest
from finetune.models.blocks import find_blocks, outputs_of, pooled
from finetune.models.stages import drop_top_stages, lower_stages
from finetune.models.weights import load_pretrained

FeatureSet = Literal["last", "stages", "all", "blocks"]
# Where a network has hardly more blocks than stages, they would say the same twice.
LEAST_BLOCKS_A_STAGE = 1.5


@dataclass(frozen=True)
class BackboneSpec:
    """What identifies an architecture and how its input is normalised (mean and std of values scaled to 0..1)."""

    name: str
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Backbone(nn.Module):
    """Features of normalised images, from the last layer, from every stage and from every block.

    "last" is what timm's own classifier would see; "stages" is the average and the maximum of each stage's output;
    "all" is both; "blocks" is the average and the maximum of each block's output, where there are more than stages.
    Heads that look at every layer: Evci et al. 2022, Head2Toe. Without its top stages a network has nothing that timm's
    classifier would see; "last" is then the average of the highest stage left.
    """

    def __init__(self, network: nn.Module, name: str, image_size: int, stages: int | None = None) -> None:
        """stages: how many are left of a network whose top ones were dropped; None: it is whole."""
        super().__init__()
        self.network, self.name, self.image_size, self.stages = network, name, image_size, stages
        was_training = network.training
        network.eval()
        # not inference_mode: some networks keep what they make here, and train with it
        with torch.no_grad():
            images = torch.zeros(2, 3, image_size, image_size)
            self.last_width, self.stages_width = (self(images, each).shape[1] for each in ("last", "stages"))
            maps = lower_stages(network, images, stages)
            blocks = find_blocks(network, lambda: self._pass(images))
        self.blocks = blocks if len(blocks) >= LEAST_BLOCKS_A_STAGE * len(maps) else []
        network.train(was_training)

    @property
    def feature_sets(self) -> tuple[FeatureSet, ...]:
        """Those that this architecture has."""
        return ("last", "stages", "all", "blocks") if self.blocks else ("last", "stages", "all")

    @property
    def widest(self) -> int:
        """The width of `everything`."""
        return sum(self.width(features) for features in self.feature_sets if features in ("all", "blocks"))

    def width(self, features: FeatureSet) -> int:
        columns = self.columns(features)
        return len(range(columns.start, columns.stop))

    def columns(self, features: FeatureSet) -> slice:
        """Where a feature set lies in what `everything` returns; raises FinetuneError where there is no such set."""
        if features not in self.feature_sets:
            raise FinetuneError(
                f"model.features={features}: {self.name} has hardly more blocks than stages, so it has only "
                f"{', '.join(self.feature_sets)}; use one of those, or auto, which takes what each backbone has"
            )
        all_width = self.stages_width + self.last_width
        return {
            "stages": slice(0, self.stages_width),
            "last": slice(self.stages_width, all_width),
            "all": slice(0, all_width),
            "blocks": slice(all_width, all_width + 2 * sum(block.width for block in self.blocks)),
        }[features]

    def forward(self, images: Tensor, features: FeatureSet) -> Tensor:
        """images: (N, 3, H, W) normalised; returns (N, width(features))."""
        if features == "blocks":
            with self._block_outputs() as outputs:
                self._pass(images)
            return self._pooled_blocks(outputs)
        if self.stages is not None:
            return _of_lower_stages(lower_stages(self.network, images, self.stages), features)
        network: Any = self.network
        if features == "last":
            return self._last(network.forward_features(images))
        if features == "stages":
            return _pooled_stages(network.forward_intermediates(images, intermediates_only=True))
        final, stages = network.forward_intermediates(images)
        return torch.cat([_pooled_stages(stages), self._last(final)], dim=1)

    def everything(self, images: Tensor) -> Tensor:
        """images: as for forward; returns every feature set from one pass, each at its `columns`."""
        with self._block_outputs() as outputs:
            features: Tensor = self(images, "all")
        return torch.cat([features, self._pooled_blocks(outputs)], dim=1) if self.blocks else features

    def _pass(self, images: Tensor) -> None:
        """Run all that is left of the network, for what its blocks give."""
        if self.stages is None:
            self.network.forward_features(images)  # type: ignore[operator]
        else:
            lower_stages(self.network, images, self.stages)

    def _block_outputs(self) -> AbstractContextManager[dict[str, Tensor]]:
        return outputs_of(self.network, [block.name for block in self.blocks])

    def _pooled_blocks(self, outputs: dict[str, Tensor]) -> Tensor:
        return torch.cat([part for block in self.blocks for part in pooled(outputs[block.name], block.reduced)], dim=1)

    def _last(self, final: Tensor) -> Tensor:
        last: Tensor = self.network.forward_head(final, pre_logits=True)  # type: ignore[operator]
        return last.flatten(1)


def _pooled_stages(stages: list[Tensor]) -> Tensor:
    return torch.cat([part for stage in stages for part in pooled(stage)], dim=1)


def _of_lower_stages(stages: list[Tensor], features: FeatureSet) -> Tensor:
    last = stages[-1].mean((2, 3))
    if features == "last":
        return last
    return _pooled_stages(stages) if features == "stages" else torch.cat([_pooled_stages(stages), last], dim=1)


def describe_backbone(name: str) -> BackboneSpec:
    """Return an architecture's own image size and normalisation; raises FinetuneError for an unknown name."""
    config = timm.get_pretrained_cfg(require_known(name))
    if config is None:
        return BackboneSpec(name, 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    mean, std = (tuple(float(value) for value in values[:3]) for values in (config.mean, config.std))
    return BackboneSpec(name, int(config.input_size[-1]), mean, std)  # type: ignore[arg-type]


def require_known(name: str, key: str = "model.backbone") -> str:
    """Return `name` if timm has this architecture; else raise FinetuneError with the nearest one.

    key: of the configuration, which names the architecture.
    """
    if not timm.is_model(name.partition(".")[0]):
        raise FinetuneError(
            f"{key}={name}: timm has no such architecture{nearest(name, timm.list_models())} "
            "(`finetune models filter='*net*'` lists them)"
        )
    architecture, _, tag = name.partition(".")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise FinetuneError(f"{key}={name}: no such weights{nearest(tag, tags)} (there are {', '.join(tags)})")
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
        return Backbone(network, name, image_size, left)
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

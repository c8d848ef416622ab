"""`finetune train`: what is wrong with the input is said before the long imports."""

from __future__ import annotations

from finetune.config import TrainConfig
from finetune.data.listing import require_source


def main(config: TrainConfig) -> str:
    """Train as configured, or finish what was interrupted; returns what came of it."""
    # a finished run needs no photos, and one that goes on says what it lacks
    if not (config.output / "config.yaml").is_file():
        require_source(config.data.root)
    # a second for torch and a few for timm, which knows the names; Lightning takes as long again
    from finetune.models.backbone import describe_backbone
    from finetune.training.optimizer import require_known_optimizer

    spec = describe_backbone(config.model.backbone)
    require_known_optimizer(config.optimizer.name)
    from finetune.training.train import train

    return train(config, spec)

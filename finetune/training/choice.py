"""What a search under a time limit chose, kept for a run that is killed after it.

The clock decides what is tried, so the same command might choose otherwise; a checkpoint of layers fits one of them.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from finetune.config import TrainConfig
from finetune.files import write_text
from finetune.models.backbone import FeatureSet
from finetune.run import Run
from finetune.training.fitted import Metrics
from finetune.training.search import Found


class Choice(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str
    image_size: int
    features: FeatureSet
    l2: float
    rows: list[Metrics]


def keep_choice(found: Found, run: Run) -> None:
    """Note it, before layers are trained from there."""
    attempt, best = found.attempt, found.best
    choice = Choice(
        backbone=attempt.backbone,
        image_size=attempt.image_size,
        features=best.features,
        l2=best.l2,
        rows=found.rows,
    )
    write_text(_path(run), choice.model_dump_json(indent=2) + "\n")


def narrowed(config: TrainConfig, run: Run) -> tuple[TrainConfig, list[Metrics]]:
    """Return a configuration that searches no further than what was chosen before, and the rows of that search."""
    if config.budget_minutes is None or not _path(run).is_file():
        return config, []
    choice = Choice.model_validate_json(_path(run).read_text(encoding="utf-8"))
    weights = config.model.weights_of(choice.backbone)
    model = {"backbone": choice.backbone, "features": choice.features, "weights": weights}
    sections = {
        "model": config.model.model_copy(update=model),
        "data": config.data.model_copy(update={"image_size": choice.image_size}),
        "probe": config.probe.model_copy(update={"backbones": [], "l2": [choice.l2]}),
    }
    return config.model_copy(update=sections), choice.rows


def _path(run: Run) -> Path:
    return run.path / "choice.json"

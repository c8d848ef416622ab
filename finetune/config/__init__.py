"""The schema: what every key of every command means and which values it takes.

Hydra composes `conf/*.yaml`, which holds the defaults; these models judge the result. A field's description is its
`--help` text, so it is written once.
"""

from __future__ import annotations

from finetune.config.augment import AugmentConfig
from finetune.config.commands import (
    CheckConfig,
    EvaluateConfig,
    ExportConfig,
    ModelsConfig,
    PredictConfig,
    TrainConfig,
)
from finetune.config.head import HeadConfig
from finetune.config.names import HIDDEN_NAMES, ModelName
from finetune.config.photos import DataConfig, SourceConfig
from finetune.config.serving import BatchConfig, LimitsConfig, ServeConfig
from finetune.config.training import (
    NO_OTHER_RUN,
    FreezeConfig,
    ImbalanceConfig,
    LoggerConfig,
    ModelConfig,
    OptimizerConfig,
    ProbeConfig,
    ScheduleConfig,
    TrainerConfig,
)

__all__ = [
    "HIDDEN_NAMES",
    "NO_OTHER_RUN",
    "AugmentConfig",
    "BatchConfig",
    "CheckConfig",
    "DataConfig",
    "EvaluateConfig",
    "ExportConfig",
    "FreezeConfig",
    "HeadConfig",
    "ImbalanceConfig",
    "LimitsConfig",
    "LoggerConfig",
    "ModelConfig",
    "ModelName",
    "ModelsConfig",
    "OptimizerConfig",
    "PredictConfig",
    "ProbeConfig",
    "ScheduleConfig",
    "ServeConfig",
    "SourceConfig",
    "TrainConfig",
    "TrainerConfig",
]

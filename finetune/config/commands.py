"""Every command and the keys that are its own."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from finetune.config.augment import AugmentConfig
from finetune.config.devices import Device, EngineCache
from finetune.config.head import HeadConfig
from finetune.config.names import ModelName
from finetune.config.photos import DataConfig, Fit, SidePx, SourceConfig
from finetune.config.rates import scale_learning_rate
from finetune.config.training import (
    FreezeConfig,
    ImbalanceConfig,
    LoggerConfig,
    ModelConfig,
    OptimizerConfig,
    ProbeConfig,
    ScheduleConfig,
    TrainerConfig,
)
from finetune.schema import Address, Fraction, Place, Section, Typed


class TrainConfig(Section):
    """Fine-tune a classifier on a folder of photos; writes the run folder."""

    recipe: str = Field(description="which of conf/recipe was chosen; what it set stands in the other keys")
    data: DataConfig
    model: ModelConfig
    head: HeadConfig
    freeze: FreezeConfig
    probe: ProbeConfig
    augment: AugmentConfig
    imbalance: ImbalanceConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    trainer: TrainerConfig
    logger: LoggerConfig
    budget_minutes: Annotated[float, Field(gt=0)] | None = Field(
        description="time for the whole command, start to report; auto then fine-tunes layers for as long as it lasts; "
        "null: as long as it takes"
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(description="decides splits, order, augmentation, head weights")
    output: Place = Field(description="the run folder to write; the same command again resumes or says it is finished")

    scales_its_rate = model_validator(mode="before")(scale_learning_rate)

    _began: float = PrivateAttr(default_factory=time.monotonic)
    _typed: Typed = PrivateAttr(default=Typed())

    @model_validator(mode="after")
    def _goes_together(self) -> TrainConfig:
        if self.optimizer.l1 > 0 and self.trainer.ema_decay is not None:
            raise ValueError(
                "optimizer.l1 makes weights exactly 0, and the moving average of trainer.ema_decay makes them small "
                "again instead; leave one of the two out"
            )
        if self.optimizer.learning_rate == "auto" and self.budget_minutes is not None:
            raise ValueError(
                "optimizer.learning_rate=auto searches for as long as it takes, which budget_minutes does not know; "
                "give a rate, or leave the limit out"
            )
        if self.optimizer.learning_rate == "auto" and self.freeze.mode == "lp_ft":
            raise ValueError(
                "optimizer.learning_rate=auto looks for the rate at which a loss falls, and freeze=lp_ft begins with a "
                "fitted head, whose loss is low already; give a rate"
            )
        return self

    @model_validator(mode="after")
    def _keeps_what_was_typed(self, info: ValidationInfo) -> TrainConfig:
        typed = info.context or Typed()
        if "freeze.mode" in typed.keys:
            mode = self.freeze.mode
            raise ValueError(f"freeze.mode={mode} leaves out what else belongs to freeze={mode}; use freeze={mode}")
        self._typed = typed
        return self

    @property
    def typed(self) -> Typed:
        """What a person typed of it."""
        return self._typed

    @property
    def began(self) -> float:
        """When the command line was read, in seconds of `time.monotonic`: before the long imports."""
        return self._began


class CheckDataConfig(SourceConfig):
    image_size: SidePx = Field(description="preview: side of the squares, in px; give what train gets")
    fit: Fit = Field(description="preview: as for train")


class CheckAugmentConfig(AugmentConfig):
    preview: Place | None = Field(
        description="picture to write, .png or .jpg: a photo of each class and eight distortions of it; null: none"
    )

    @field_validator("preview")
    @classmethod
    def _is_picture(cls, place: Path | None) -> Path | None:
        if place is not None and place.suffix.lower() not in (".png", ".jpg", ".jpeg"):
            raise ValueError("its name must end in .png or .jpg")
        return place


class CheckConfig(Section):
    """Read every photo and say what training would use, skip and refuse; show what augmentation does."""

    data: CheckDataConfig
    augment: CheckAugmentConfig
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(description="decides splits and augmentation, as for train")
    output: Place = Field(description="folder for audit.json and audit.html, the page with thumbnails")


class EvaluateDataConfig(Section):
    root: Address | None = Field(description="another labelled folder, table, archive ...; null: the run's own photos")
    class_from: Literal["folder", "path"] | None = Field(
        description="as for train; null: as the run was told, folder for a bundle alone"
    )


class EvaluateConfig(Section):
    """Measure a run's model, or the bundle exported from it, on its test split or on other labelled photos."""

    run: Place | None = Field(description="run folder of `finetune train`, measured in torch unless model= is given")
    model: Place | None = Field(
        description="bundle, measured in onnxruntime by the code that serves it; on data.root, or on the photos of run="
    )
    data: EvaluateDataConfig
    split: Literal["train", "val", "test"] | None = Field(
        description="which split of these photos; null: the run's test photos, or all of data.root"
    )
    top_k: list[Annotated[int, Field(ge=1)]] = Field(
        description="how many of the most probable classes may hold the right one; needs more classes than that"
    )
    device: Device = Field(description="auto: cuda if it works, else cpu; tensorrt, openvino: with model= only")
    engine_cache: EngineCache
    output: Place | None = Field(
        description="folder for evaluation.json, report.html, predictions.csv, confusion.csv and pictures; "
        "null: evaluation/SPLIT or evaluation/FOLDER in the run folder, or evaluation/NAME/FOLDER here for a bundle"
    )


class CheckpointConfig(Section):
    file: Place | None = Field(description="weights of a timm network with its classifier: .safetensors, .pth or .ckpt")
    backbone: str | None = Field(description="its architecture in timm")
    labels: Place | None = Field(description="text file with a class name a line, in the order of its outputs")
    image_size: SidePx | None = Field(description="side of its input in px; null: what timm says of the architecture")
    fit: Fit | None = Field(description="squash: both sides resized, crop: the centre square; null: what timm says")
    crop_pct: Annotated[float, Field(gt=0, le=1)] | None = Field(
        description="crop: the square's share of the shorter side; null: what timm says"
    )
    interpolation: Literal["bicubic", "bilinear", "lanczos", "nearest"] | None = Field(
        description="how photos are resized; null: what timm says"
    )


class ExportDataConfig(Section):
    root: Address | None = Field(
        description="with checkpoint.file: labelled photos to compare on; with verify: photos that were compared before"
    )
    class_from: Literal["folder", "path"] | None = Field(description="as for train; null: folder")


class ExportConfig(Section):
    """Turn a run or a timm checkpoint into a bundle: one ONNX file, compared with the trained model photo by photo."""

    run: Place | None = Field(description="run folder of `finetune train`; with verify: asked again, in torch")
    checkpoint: CheckpointConfig
    data: ExportDataConfig
    output: Place | None = Field(description="model repository to write the bundle into")
    name: ModelName | None = Field(description="the model's name in it; null: that of the run folder or checkpoint")
    precision: Literal["fp32", "fp16", "bf16", "mixed", "int8", "auto"] = Field(
        description="mixed: fp16 but where fragile; int8: but for layers that suffer; auto: the fastest that passes"
    )
    prune: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        description="largest share of channels to remove, least important first; 0: those that do nothing; null: none"
    )
    weights: Literal["fp32", "fp16"] = Field(
        description="how they are stored; fp16 halves the file, and the arithmetic stays that of precision="
    )
    optimised: bool = Field(
        description="save the graph as onnxruntime optimises it: opens sooner, on CPUs in this version or newer only"
    )
    max_accuracy_loss: Fraction = Field(
        description="of a precision, pruning or fp16 weights, 0 to 1; what loses more on unlearned photos is left out"
    )
    parity_limit: Annotated[float, Field(gt=0)] = Field(
        description="largest difference of any probability between torch and onnxruntime; above it nothing is written"
    )
    golden: Annotated[int, Field(ge=0, le=100)] = Field(
        description="photos, scaled down, that travel in the bundle with the model's answers; 0: none do"
    )
    device: Device = Field(description="where the bundle is compared; auto: on the CPU, and on cuda too if it works")
    verify: Place | None = Field(
        description="a bundle to ask whether it still answers as it was exported; nothing is written"
    )

    kserve: str | None = Field(
        description="the repository as a cluster reads it, such as s3://BUCKET/models: writes NAME/kserve.yaml"
    )

    @property
    def reduces(self) -> bool:
        """Whether anything else than the compared graph itself is asked for."""
        return self.precision != "fp32" or self.prune is not None or self.weights != "fp32" or self.optimised

    @model_validator(mode="after")
    def _stores_once(self) -> ExportConfig:
        if self.weights == "fp16" and self.precision in ("fp16", "bf16"):
            raise ValueError(f"precision={self.precision} stores weights in 16 bits already: leave weights=fp16 out")
        if self.optimised and self.weights == "fp16":
            raise ValueError("optimised=true stores weights in full again: leave it or weights=fp16 out")
        return self

    @model_validator(mode="after")
    def _runs_in_triton(self) -> ExportConfig:
        newer = {"optimised=true": self.optimised, "precision=bf16": self.precision == "bf16"}
        asked = [words for words, is_asked in newer.items() if is_asked]
        if self.kserve and asked:
            raise ValueError(
                f"{asked[0]} needs a newer onnxruntime than that of the Triton in kserve.yaml: leave it or kserve= out"
            )
        return self

    @model_validator(mode="after")
    def _has_one_source(self) -> ExportConfig:
        sources = (self.run, self.checkpoint.file, self.verify)
        if not any(sources):
            raise ValueError("give run=RUN, a run folder of `finetune train`, or checkpoint.file=WEIGHTS")
        if self.checkpoint.file and (self.run or self.verify):
            raise ValueError("checkpoint.file= stands alone: leave run= and verify= out")
        if not self.checkpoint.file and any(value is not None for value in self.checkpoint.model_dump().values()):
            raise ValueError("checkpoint.* describe checkpoint.file=, which is not given")
        if self.verify and (self.reduces or self.output or self.name or self.kserve):
            raise ValueError("verify= changes nothing: leave output=, name=, kserve= and what is done to a bundle out")
        if self.run and self.data.root and not self.verify:
            raise ValueError("a run has photos of its own: leave data.root= out")
        if self.verify is None and self.output is None:
            raise ValueError("output is missing: the model repository to write into, such as output=models")
        return self


class PredictConfig(Section):
    """Classify a photo, or all photos of a folder or an archive, with a bundle; needs no torch."""

    model: Place = Field(description="bundle: the model's folder in a repository, or one version of it")
    input: Address = Field(
        description="a photo, a folder that is searched through, a .zip, .tar shards, or any fsspec address"
    )
    output: Place = Field(description="CSV file to write: path,label,probability,error")
    probabilities: bool = Field(description="add one column a class")
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1, le=256)] = Field(
        description="photos per model call; auto: 1 on processors, 32 on GPUs; tensorrt: at most 32"
    )
    device: Device = Field(description="auto: cuda if it works, else cpu; any other: that or refuse")
    engine_cache: EngineCache


class ModelsConfig(Section):
    """List the backbones that `model.backbone` takes and where their weights would come from."""

    filter: str = Field(description="shell pattern of the names, such as 'resnet*'")
    offline: bool = Field(description="only those whose weights are on this machine")

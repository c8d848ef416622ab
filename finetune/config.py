"""The schema: what every key of every command means and which values it takes.

Hydra composes `conf/*.yaml`, which holds the defaults; these models judge the result. A field's description is its
`--help` text, so it is written once.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from finetune.schema import Address, Fraction, Place, Section, ascending


def _regular_expression(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return pattern


Photos = Annotated[int, Field(ge=0)]
SidePx = Annotated[int, Field(ge=32, le=2048)]
Fit = Literal["squash", "crop"]
Area = Annotated[tuple[Fraction, Fraction], AfterValidator(ascending)]


class SourceConfig(Section):
    """Which photos there are, and how they are split; the same for every command that reads a labelled set."""

    root: Address = Field(
        description="folder of photos (root/CLASS/* or root/{train,val,test}/CLASS/*), a .csv or .parquet table of "
        "them, a .zip, .tar shards, or any fsspec address"
    )
    class_from: Literal["folder", "path", "none"] = Field(
        description="folder: the top folder is the class; path: the whole folder path is, as in a/b/photo.jpg -> a/b; "
        "none: photos without labels"
    )
    group_pattern: Annotated[str, AfterValidator(_regular_expression)] | None = Field(
        description="regular expression searched in each path; photos for which it (or its first group) finds the same "
        "text never stand in two splits: patient, product, burst"
    )
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        description="share of each class that chooses between candidates, where the folder has no val/"
    )
    test_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        description="share of each class kept for the final figure, where the folder has no train/ and test/"
    )
    folds: Annotated[int, Field(ge=2)] | None = Field(
        description="cross-validation: the photos that are not for test make this many folds, data.fold validates"
    )
    fold: Annotated[int, Field(ge=0)] = Field(description="which of data.folds validates, from 0")
    splits_from: Place | None = Field(
        description="a run folder or manifest.csv whose photos keep their splits; new ones are assigned as usual"
    )
    near_duplicates: Annotated[int, Field(ge=0, le=12)] | None = Field(
        description="photos whose 64-bit perceptual hashes differ in at most this many bits are near-duplicates and "
        "never stand in two splits; null: only exact copies count"
    )
    alpha_over: Literal["white", "black"] = Field(description="what transparent photos are laid over")
    on_problem: Literal["skip", "error"] = Field(
        description="skip: unusable photos are left out and counted; error: the first one stops the command"
    )


class DataConfig(SourceConfig):
    image_size: Literal["auto"] | SidePx = Field(
        description="side of the square the model sees, in px; auto: the probe tries several, else the backbone's own"
    )
    fit: Fit = Field(
        description="squash: scale both sides, all of the photo stays visible; crop: keep the shape, cut the centre"
    )
    batch_size: Annotated[int, Field(ge=2)] = Field(
        description="photos per training step, at least two, as batch norm needs"
    )
    cache: Literal["none", "ram", "disk"] = Field(
        description="where decoded photos are kept, for partial and full: in memory, or in the run folder until it ends"
    )
    num_workers: Literal["auto"] | Annotated[int, Field(ge=0)] = Field(
        description="processes that load training photos; auto: the cores, at most 8"
    )


class ModelConfig(Section):
    backbone: str = Field(description="any timm architecture; `finetune models` lists them")
    weights: str = Field(
        description="auto: an installed package, else timm's hub cache, else its hub; none: random; "
        "or a .safetensors, .pth or .ckpt file"
    )
    features: Literal["auto", "last", "stages", "all"] = Field(
        description="what the head sees, pooled: the last layer, every stage, or both; auto: validation chooses for "
        "freeze=head, else last"
    )


class FreezeConfig(Section):
    mode: Literal["auto", "head", "partial", "full"] = Field(
        description="head: train the head on kept features; partial: the top layers too; full: everything; "
        "auto: by the number of training photos"
    )
    top_groups: Annotated[float, Field(gt=0)] = Field(
        description="partial: depth groups that train, from the top; below 1 a fraction of them"
    )
    head_below: Photos = Field(description="auto: fewer training photos than this train the head only")
    full_from: Photos = Field(description="auto: this many training photos or more train everything")


class ProbeConfig(Section):
    """freeze=head: a linear head on the features of a frozen backbone."""

    l2: list[Annotated[float, Field(gt=0)]] = Field(
        min_length=1, description="weights of the L2 penalty to try; validation chooses"
    )
    size_factors: list[Annotated[float, Field(gt=0)]] = Field(
        min_length=1, description="data.image_size=auto tries the backbone's own size times each of these"
    )


class AugmentConfig(Section):
    """Distortions of training photos, for freeze=partial and full; in the order in which they are applied."""

    crop_area: Area | None = Field(
        description="random resized crop: least and largest share of the photo's area; null: no crop"
    )
    crop_ratio: Annotated[tuple[float, float], AfterValidator(ascending)] = Field(
        description="random resized crop: least and largest width over height"
    )
    random_crop: Annotated[float, Field(ge=0.1, le=1)] | None = Field(
        description="random square cut at one scale: its share of the side (AlexNet: 0.875, 224 of 256 px); null: none"
    )
    horizontal_flip: Fraction = Field(description="chance of mirroring left to right")
    vertical_flip: Fraction = Field(description="chance of mirroring top to bottom")
    dihedral: Fraction = Field(
        description="chance of one of the square's eight symmetries: quarter turns, mirrored or not"
    )
    rotate: Annotated[float, Field(ge=0, le=180)] = Field(description="largest turn either way, in degrees; 0: none")
    shear: Annotated[float, Field(ge=0, le=45)] = Field(
        description="largest slant along either side, in degrees; 0: none"
    )
    elastic: Annotated[float, Field(ge=0, le=0.1)] = Field(
        description="local warping: standard deviation of the shift of a point, as a share of the side; 0: none"
    )
    grid: Annotated[float, Field(ge=0, lt=1)] = Field(
        description="warping by strips: most by which each fifth of the photo is stretched or squeezed; 0: none"
    )
    trivial_augment: Fraction = Field(
        description="chance of TrivialAugment: one operation of 14, of random strength (Müller and Hutter 2021)"
    )
    colour_add: Annotated[float, Field(ge=0, le=255)] = Field(
        description="most that is added to or taken from each of R, G and B, in levels of 255; 0: none"
    )
    brightness: Fraction = Field(description="jitter: largest change of brightness, as a share of it; 0: none")
    contrast: Fraction = Field(description="jitter: largest change of contrast, as a share of it; 0: none")
    saturation: Fraction = Field(description="jitter: largest change of saturation, as a share of it; 0: none")
    hue: Annotated[float, Field(ge=0, le=0.5)] = Field(
        description="jitter: largest turn of the colour circle, as a share of it; 0: none"
    )
    pca_sigma: Annotated[float, Field(ge=0)] = Field(
        description="PCA colour shift: standard deviation of its three draws (AlexNet: 0.1); 0: none"
    )
    pca_from: Literal["photos", "imagenet"] = Field(
        description="PCA colour shift: components of the training photos, or the usual constants of ImageNet"
    )
    pca_pixels: Annotated[int, Field(ge=1)] = Field(
        description="PCA colour shift: most pixels of each training photo that its components are computed from"
    )
    erase: Fraction = Field(description="chance of filling a rectangle with noise")
    erase_area: Area = Field(description="erasing: least and largest share of the area")
    mixup: Annotated[float, Field(ge=0)] = Field(
        description="mixup: alpha of the beta distribution that two photos and their labels are blended by; 0: none"
    )
    cutmix: Annotated[float, Field(ge=0)] = Field(
        description="cutmix: alpha of the beta distribution of the share that is pasted from another photo; 0: none; "
        "with mixup, each batch gets one of the two"
    )

    @field_validator("random_crop")
    @classmethod
    def _crops_once(cls, share: float | None, given: ValidationInfo) -> float | None:
        area = given.data.get("crop_area")
        if share is not None and area is not None:
            raise ValueError(
                f"augment.crop_area={list(area)} crops too; leave one out of augment=[...] or set it to null"
            )
        return share


class ImbalanceConfig(Section):
    """Classes with many more training photos than others."""

    method: Literal["auto", "none", "class_weights", "balanced_sampler", "focal"] = Field(
        description="class_weights: every class counts the same in the loss; balanced_sampler: every class is drawn "
        "equally often; focal: photos that are right already count less; none: every photo counts the same; "
        "auto: class_weights from imbalance.auto_ratio on, else none"
    )
    focal_gamma: Annotated[float, Field(ge=0)] = Field(
        description="focal: how much less; 0 is cross-entropy (Lin et al. 2017: 2)"
    )
    auto_ratio: Annotated[float, Field(ge=1)] = Field(
        description="auto: least ratio of training photos, largest class to smallest, at which classes are weighted"
    )


class OptimizerConfig(Section):
    name: Literal["adamw", "sgd"] = Field(description="sgd is with Nesterov momentum")
    learning_rate: Annotated[float, Field(gt=0)] = Field(description="peak learning rate")
    weight_decay: Annotated[float, Field(ge=0)] = Field(description="decay of weights; biases and norms are spared")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(description="momentum of sgd, first beta of adamw")


class ScheduleConfig(Section):
    name: Literal["cosine", "none"] = Field(description="cosine: from the peak to 0; none: constant")
    warmup_fraction: Fraction = Field(description="share of all steps that rise linearly to the peak")


class TrainerConfig(Section):
    max_epochs: Annotated[int, Field(ge=1)] = Field(description="passes over the training photos, for partial and full")
    patience: Annotated[int, Field(ge=1)] = Field(description="epochs without a better validation loss before stopping")
    accelerator: Literal["auto", "cpu", "gpu"] = Field(description="where training runs; auto: a GPU if there is one")
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = Field(description="Lightning's name of the arithmetic")


class TrainConfig(Section):
    """Fine-tune a classifier on a folder of photos; writes the run folder."""

    data: DataConfig
    model: ModelConfig
    freeze: FreezeConfig
    probe: ProbeConfig
    augment: AugmentConfig
    imbalance: ImbalanceConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    trainer: TrainerConfig
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(description="decides splits, order, augmentation, head weights")
    output: Place = Field(description="the run folder to write; the same command again resumes or says it is finished")


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
    root: Address | None = Field(description="another labelled folder, all of it; null: the run's own split")


class EvaluateConfig(Section):
    """Measure a run's model, in torch, on its test split or on another folder."""

    run: Place = Field(description="run folder of `finetune train`")
    data: EvaluateDataConfig
    split: Literal["train", "val", "test"] = Field(description="which split of the run's own photos")
    output: Place | None = Field(description="folder for predictions.csv and report.html; null: RUN/evaluation")


class ExportConfig(Section):
    """Turn a run into a bundle: one ONNX file, checked against the trained model photo by photo."""

    run: Place = Field(description="run folder of `finetune train`")
    output: Place = Field(description="model repository to write the bundle into")
    name: str | None = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="the model's name in it; null: the run folder's name"
    )
    parity_limit: Annotated[float, Field(gt=0)] = Field(
        description="largest difference of any probability between torch and onnxruntime; above it nothing is written"
    )


class PredictConfig(Section):
    """Classify a photo, or all photos of a folder or an archive, with a bundle; needs no torch."""

    model: Place = Field(description="bundle: the model's folder in a repository, or one version of it")
    input: Address = Field(
        description="a photo, a folder that is searched through, a .zip, .tar shards, or any fsspec address"
    )
    output: Place = Field(description="CSV file to write: path,label,probability,error")
    probabilities: bool = Field(description="add one column a class")
    batch_size: Annotated[int, Field(ge=1, le=256)] = Field(description="photos per model call")
    device: Literal["auto", "cpu", "cuda"] = Field(description="auto: cuda if it works, else cpu")


class ServeConfig(Section):
    """Serve every bundle of a model repository over HTTP."""

    models: Place = Field(description="model repository, or the folder of one model")
    host: str = Field(description="address to listen on; 0.0.0.0 for every interface")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(description="port to listen on; 0 takes a free one")
    device: Literal["auto", "cpu", "cuda"] = Field(description="auto: cuda if it works, else cpu; cuda: cuda or refuse")
    threads: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        description="processor threads per model; auto: cores"
    )
    max_body_mb: Annotated[float, Field(gt=0)] = Field(description="largest request body in MB; above it 413")
    max_photos: Annotated[int, Field(ge=1)] = Field(description="most photos in one request; above it 413")
    grace_s: Annotated[int, Field(ge=1)] = Field(description="seconds that running requests get after SIGTERM")


class ModelsConfig(Section):
    """List the backbones that `model.backbone` takes and where their weights would come from."""

    filter: str = Field(description="shell pattern of the names, such as 'resnet*'")
    offline: bool = Field(description="only those whose weights are on this machine")

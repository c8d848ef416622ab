"""The schema: what every key of every command means and which values it takes.

Hydra composes `conf/*.yaml`, which holds the defaults; these models judge the result. A field's description is its
`--help` text, so it is written once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from finetune.errors import FinetuneError, nearest


def _ascending(pair: tuple[float, float]) -> tuple[float, float]:
    if not 0 < pair[0] <= pair[1]:
        raise ValueError("give the least and then the largest, both above 0")
    return pair


def _not_empty(value: Any) -> Any:
    if value == "":
        raise ValueError("give a path")
    # Hydra reads a folder called 2024 as a number
    return str(value) if isinstance(value, int | float) else value


Fraction = Annotated[float, Field(ge=0, le=1)]
Place = Annotated[Path, BeforeValidator(_not_empty), AfterValidator(Path.expanduser)]
Photos = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A group of keys; an unknown key is an error, never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(Section):
    root: Place = Field(description="folder of photos: root/CLASS/* or root/{train,val,test}/CLASS/*")
    image_size: Literal["auto"] | Annotated[int, Field(ge=32, le=2048)] = Field(
        description="side of the square the model sees, in px; auto: the probe tries several, else the backbone's own"
    )
    fit: Literal["squash", "crop"] = Field(
        description="squash: scale both sides, all of the photo stays visible; crop: keep the shape, cut the centre"
    )
    batch_size: Annotated[int, Field(ge=2)] = Field(
        description="photos per training step, at least two, as batch norm needs"
    )
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        description="share of each class that chooses between candidates, where the folder has no val/"
    )
    test_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        description="share of each class kept for the final figure, where the folder has no train/ and test/"
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
    """Distortions of training photos, for freeze=partial and full."""

    horizontal_flip: Fraction = Field(description="chance of mirroring left to right")
    vertical_flip: Fraction = Field(description="chance of mirroring top to bottom")
    crop_area: Annotated[tuple[Fraction, Fraction], AfterValidator(_ascending)] | None = Field(
        description="random resized crop: least and largest share of the photo's area; null: no crop"
    )
    crop_ratio: Annotated[tuple[float, float], AfterValidator(_ascending)] = Field(
        description="random resized crop: least and largest width over height"
    )
    pca_sigma: Annotated[float, Field(ge=0)] = Field(
        description="PCA colour shift: standard deviation of its three draws (AlexNet: 0.1); 0: none"
    )


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


class CheckDataConfig(Section):
    root: Place = Field(description="folder of photos, as for train")
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(description="as for train")
    test_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(description="as for train")


class CheckConfig(Section):
    """Read every photo and say what training would use, skip and refuse."""

    data: CheckDataConfig
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(description="decides the splits, as for train")


class EvaluateDataConfig(Section):
    root: Place | None = Field(description="another labelled folder, all of it; null: the run's own split")


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
    """Classify a photo or a folder of photos with a bundle; needs no torch."""

    model: Place = Field(description="bundle: the model's folder in a repository, or one version of it")
    input: Place = Field(description="a photo, or a folder that is searched through")
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


Config = TypeVar("Config", bound=Section)


def parse(schema: type[Config], values: dict[str, Any]) -> Config:
    """Validate composed values; raises FinetuneError naming every wrong key, its value and what it takes."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        lines = [_explain(schema, problem) for problem in error.errors()]
        raise FinetuneError("\n".join(dict.fromkeys(lines))) from None


def describe(schema: type[Section], prefix: str = "") -> dict[str, str]:
    """Return every dotted key of a schema with its meaning."""
    keys: dict[str, str] = {}
    for name, field in schema.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, Section):
            keys |= describe(nested, f"{prefix}{name}.")
        else:
            keys[prefix + name] = field.description or ""
    return keys


def path_keys(schema: type[Section], prefix: str = "") -> set[str]:
    """Return every dotted key of a schema that names a file or folder."""
    keys: set[str] = set()
    for name, field in schema.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, Section):
            keys |= path_keys(nested, f"{prefix}{name}.")
        elif nested is Path or Path in get_args(nested) or Place in get_args(nested):
            keys.add(prefix + name)
    return keys


def _explain(schema: type[Section], problem: Any) -> str:
    known = describe(schema)
    path = [str(part) for part in problem["loc"]]
    # pydantic appends the branch of a union to the path; the key is the longest known prefix
    key = next((".".join(path[:n]) for n in range(len(path), 0, -1) if ".".join(path[:n]) in known), ".".join(path))
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{key}'{nearest(key, known)}"
    if problem["type"] == "missing":
        return f"{key} is missing: {known.get(key, '')}"
    message = problem["msg"].removeprefix("Value error, ")
    reason = message[:1].lower() + message[1:]
    return f"{key}={problem['input']} is wrong: {reason} ({known.get(key, '')})"

"""The bundle: one entry of a Triton model repository, and all that serving knows of training.

NAME/config.pbtxt    NAME/labels.txt    NAME/1/model.onnx    NAME/1/bundle.json
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, ValidationError

from finetune.errors import FinetuneError, nearest
from finetune.files import make_folder, sha256, write_json, write_text
from finetune.preprocess import Preprocessing
from finetune.triton import labels_file, triton_config

SCHEMA = 1
INPUT, OUTPUT = "images", "probabilities"


class Parity(BaseModel):
    """How the exported file's probabilities compare with the trained model's, over real photos.

    Differences are absolute, of single probabilities; accuracies are fractions of 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    photos: int
    batch_sizes: tuple[int, ...]
    provider: str
    limit: float
    max_difference: float
    mean_difference: float
    same_answer: float
    worst_photo: str
    torch_accuracy: float
    onnx_accuracy: float


class ModelCard(BaseModel):
    """What a model is; stands in the ONNX file's own metadata too, so a lone file still knows its labels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    temperature: float
    metrics: dict[str, float | None]
    backbone: str
    dataset: str
    weights_sha256: str
    versions: dict[str, str]


class BundleInfo(BaseModel):
    """`bundle.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int
    model: ModelCard
    parity: Parity
    sha256: str


@dataclass(frozen=True)
class Bundle:
    """One version of one model, whose file was found to be the one that was exported."""

    folder: Path
    info: BundleInfo

    @property
    def name(self) -> str:
        return self.info.model.name

    @property
    def version(self) -> str:
        return self.folder.name

    @property
    def model(self) -> Path:
        return self.folder / "model.onnx"


def open_bundle(path: Path) -> Bundle:
    """Open a model's newest version, or the version that `path` names.

    Raises FinetuneError where there is none, or where model.onnx is not the file that bundle.json describes.
    """
    folder = path if (path / "bundle.json").is_file() else _newest_version(path)
    try:
        info = BundleInfo.model_validate_json((folder / "bundle.json").read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise FinetuneError(f"{folder / 'bundle.json'} cannot be read: {str(error).splitlines()[0]}") from None
    if info.schema_version != SCHEMA:
        raise FinetuneError(
            f"{folder / 'bundle.json'} has schema version {info.schema_version}, this program reads {SCHEMA}; "
            "export the run again with this program, or serve it with the one that wrote it"
        )
    bundle = Bundle(folder, info)
    if not bundle.model.is_file():
        raise FinetuneError(f"{bundle.model} is missing; export the run again")
    if sha256(bundle.model) != info.sha256:
        raise FinetuneError(
            f"{bundle.model} is not the file that was exported (its sha256 differs from bundle.json): "
            "it was changed or damaged; export the run again"
        )
    return bundle


def find_bundles(repository: Path) -> list[Bundle]:
    """Open the newest version of every model in a repository; `repository` may also be one model's folder."""
    if not repository.is_dir():
        beside = [path.name for path in repository.parent.iterdir()] if repository.parent.is_dir() else []
        raise FinetuneError(f"models={repository}: no such folder{nearest(repository.name, beside)}")
    if _versions(repository):
        return [open_bundle(repository)]
    folders = sorted(path for path in repository.iterdir() if path.is_dir() and _versions(path))
    if not folders:
        raise FinetuneError(
            f"models={repository} holds no bundle (NAME/1/bundle.json); make one: "
            f"finetune export run=RUN output={repository}"
        )
    return [open_bundle(folder) for folder in folders]


def stage(repository: Path) -> Path:
    """Make an empty hidden folder on the repository's disk, to be handed to `publish`."""
    make_folder(repository)
    staging = repository / f".staging-{uuid4().hex[:8]}"
    staging.mkdir()
    return staging


def publish(staging: Path, repository: Path, info: BundleInfo) -> Bundle:
    """Move a staged model.onnx into the repository as the next version; it appears whole, at once."""
    home = repository / info.model.name
    number = max(_versions(home), default=0) + 1
    write_json(staging / "bundle.json", info.model_dump(mode="json"))
    if home.is_dir():
        version = staging.replace(home / str(number))
        _describe(home, info.model)
        return Bundle(version, info)
    whole = stage(repository)
    staging.replace(whole / str(number))
    _describe(whole, info.model)
    return Bundle(whole.replace(home) / str(number), info)


def _describe(model: Path, card: ModelCard) -> None:
    config = triton_config(card.name, INPUT, OUTPUT, card.preprocessing.image_size, len(card.labels))
    write_text(model / "labels.txt", labels_file(card.labels))
    write_text(model / "config.pbtxt", config)


def _newest_version(model: Path) -> Path:
    if not model.is_dir():
        beside = [path.name for path in model.parent.iterdir()] if model.parent.is_dir() else []
        raise FinetuneError(f"{model}: no such bundle{nearest(model.name, beside)}")
    numbers = _versions(model)
    if not numbers:
        raise FinetuneError(f"{model} is no bundle: it has no version folder with a bundle.json in it")
    return model / str(max(numbers))


def _versions(model: Path) -> list[int]:
    if not model.is_dir():
        return []
    return [int(path.name) for path in model.iterdir() if path.name.isdecimal() and (path / "bundle.json").is_file()]

"""The run folder: what training leaves behind, and how a classifier comes back from it."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import safetensors.torch
import yaml
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

import finetune
from finetune.calibration import Calibration
from finetune.config import NO_OTHER_RUN, DataConfig, HeadConfig, TrainConfig
from finetune.data.manifest import Manifest, Photo
from finetune.errors import FinetuneError, nearest
from finetune.files import make_folder, replacing, sha256, write_json, write_text
from finetune.models.backbone import BackboneSpec, FeatureSet, build_empty_backbone
from finetune.models.classifier import Classifier
from finetune.preprocess import Preprocessing
from finetune.stores import open_store

LOCK = ".lock"


class Result(BaseModel):
    """`result.json`: what was trained, how well it does, what it took. Accuracies are fractions of 1.

    train_seconds: of training alone, by all commands together where it was resumed: without imports and test photos;
    soup_epochs: counted from 1; left_out: training photos that there was no time to learn from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    val_accuracy: float
    val_balanced_accuracy: float
    test_accuracy: float | None
    test_balanced_accuracy: float | None
    calibration: Calibration
    train_seconds: float
    images_per_second: float
    trainable_parameters: int
    total_parameters: int
    zero_share: float
    soup_epochs: tuple[int, ...]
    freeze: str
    imbalance: str
    imbalance_reason: str
    backbone: str
    weights_from: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    features: FeatureSet
    drop_stages: int
    head: HeadConfig
    preprocessing: Preprocessing
    image_size: int
    classes: tuple[str, ...]
    photos: dict[str, int]
    skipped: int
    left_out: int = 0
    dataset: str
    seed: int
    versions: dict[str, str]


@dataclass(frozen=True)
class Run:
    """One run folder. Every file in it is whole or absent."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def command(self) -> Path:
        """The command line that began it."""
        return self.path / "command.txt"

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.csv"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def ingredients(self) -> Path:
        """Checkpoints of good epochs to be averaged, until that is done."""
        return self.path / "ingredients"

    @property
    def pixels(self) -> Path:
        """Decoded photos, for as long as training goes on."""
        return self.path / "pixels"

    @property
    def weights(self) -> Path:
        return self.path / "weights.safetensors"

    @property
    def colour_pca(self) -> Path:
        return self.path / "colour_pca.json"

    @property
    def batch_size(self) -> Path:
        return self.path / "batch_size.json"

    @property
    def learning_rate(self) -> Path:
        return self.path / "learning_rate.json"

    @property
    def learning_rate_curve(self) -> Path:
        return self.path / "learning_rate.png"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the folder for this process; raises FinetuneError where it is no run's or another process trains there.

        The lock goes with the process, however that ends.
        """
        if not self.config.is_file():
            self._require_empty()
        make_folder(self.path)
        lock = FileLock(self.path / LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise FinetuneError(
                f"output={self.path} is being trained by another process; wait for it, or choose another output="
            ) from None
        try:
            yield
        finally:
            lock.release()

    def begin(self, config: TrainConfig) -> bool:
        """Note the configuration, or compare it with the one noted; return whether its run has finished already.

        Raises FinetuneError where the folder holds work of another configuration.
        """
        wanted = config.model_dump(mode="json")
        # nothing has been trained before there are checkpoints or weights: a mistake is corrected in place
        begun = any(path.exists() for path in (self.checkpoints, self.weights, self.result))
        if self.config.is_file() and begun:
            difference = _first_difference(_read_config(self.config), wanted)
            if difference:
                raise FinetuneError(
                    f"output={self.path} holds another run: {difference}; choose another output=, or delete that folder"
                )
            return self.result.is_file()
        # of photos that the corrected configuration may not even name
        for found in (self.colour_pca, self.batch_size, self.learning_rate):
            found.unlink(missing_ok=True)
        write_text(self.command, f"{config.typed.line}\n")
        write_text(self.config, yaml.safe_dump(wanted, sort_keys=False))
        return False

    def _require_empty(self) -> None:
        if self.path.is_file() or (self.path.is_dir() and any(entry.name != LOCK for entry in self.path.iterdir())):
            raise FinetuneError(f"output={self.path} exists and is no run folder; choose another output=")

    def save_weights(self, classifier: Classifier) -> None:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in classifier.state_dict().items()}
        with replacing(self.weights) as beside:
            safetensors.torch.save_file(tensors, beside)
            beside.chmod(0o644)  # it writes files that nobody else may read

    def save_result(self, result: Result) -> None:
        write_json(self.result, result.model_dump(mode="json"))


class FinishedRun:
    """A run whose result is there, opened for evaluation or export."""

    def __init__(self, path: Path) -> None:
        """Raises FinetuneError where `path` is no run, or one that has not finished."""
        self.files = Run(path)
        if not self.files.config.is_file():
            beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
            hint = nearest(path.name, beside) if not path.is_dir() else "; it has no config.yaml"
            raise FinetuneError(f"run={path} is no run folder of `finetune train`{hint}")
        if not self.files.result.is_file():
            raise FinetuneError(_refuse_unfinished(self.files))
        try:
            self.result = Result.model_validate_json(self.files.result.read_text(encoding="utf-8"))
        except ValidationError as error:
            raise FinetuneError(_refuse_result(self.files.result, error)) from None
        self.data = _data_config(self.files.config)

    @cached_property
    def manifest(self) -> Manifest:
        if not self.files.manifest.is_file():
            raise FinetuneError(f"{self.files.manifest} is missing: which photos this run used is not known any more")
        return Manifest.load(self.files.manifest, open_store(self.data.root))

    def require(self, photos: Sequence[Photo]) -> tuple[Photo, ...]:
        """Return the photos; raises FinetuneError where files of theirs are gone."""
        gone = [photo.path for photo in photos if not self.manifest.store.exists(photo.path)]
        if gone:
            raise FinetuneError(
                f"{len(gone)} of the {len(photos)} photos to compare on are gone, the first is {gone[0]} "
                f"in {self.manifest.store.address}; this needs the run's photos where they were"
            )
        return tuple(photos)

    @cached_property
    def weights_sha256(self) -> str:
        return sha256(self.files.weights)

    def classifier(self) -> Classifier:
        """Rebuild the trained network, in eval mode."""
        result = self.result
        spec = BackboneSpec(result.backbone, result.image_size, result.mean, result.std)
        backbone = build_empty_backbone(result.backbone, result.image_size, result.drop_stages)
        classifier = Classifier(spec, backbone, result.features, len(result.classes), result.head)
        try:
            classifier.load_state_dict(safetensors.torch.load_file(self.files.weights))
        except (OSError, safetensors.SafetensorError) as error:
            raise FinetuneError(f"{self.files.weights} cannot be read: {error}") from None
        return classifier.eval()


def _refuse_unfinished(run: Run) -> str:
    command = run.command.read_text(encoding="utf-8").strip() if run.command.is_file() else "finetune train ..."
    said = f"run={run.path} has not finished; the command that began it goes on from where it was:\n  {command}"
    # there only while layers train from it; its features are kept
    head = "\nwith freeze=head and another output= it makes, in little time, only the head that the layers began with"
    return said + head * run.weights.is_file()


def _data_config(path: Path) -> DataConfig:
    try:
        return DataConfig.model_validate(_read_config(path)["data"])
    except ValidationError as error:
        reason = error.errors()[0]
        raise FinetuneError(f"{path}: data.{'.'.join(map(str, reason['loc']))}: {reason['msg']}") from None


def _refuse_result(path: Path, error: ValidationError) -> str:
    """Tell a result of another version, which is whole but has other keys, from a damaged one."""
    in_words = {"missing": "lacks", "extra_forbidden": "has an unknown"}
    differences = []
    for problem in error.errors():
        if problem["type"] not in in_words:
            return f"{path} is damaged: {problem['msg']}"
        differences.append(f"{in_words[problem['type']]} {'.'.join(map(str, problem['loc']))}")
    return (
        f"{path} was written by another version of finetune-service: it {', '.join(differences)}; "
        "use that version, or train again with another output="
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        values["data"]["root"]
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError):
        raise FinetuneError(f"{path} is damaged; delete that folder, or choose another") from None
    return dict(values)


def versions() -> dict[str, str]:
    """Return the versions that decide a run's numbers."""
    packages = ("torch", "timm", "pytorch-lightning", "albumentations", "numpy", "pillow", _onnxruntime_distribution())
    installed = {package: version(package) for package in packages}
    return {"finetune-service": finetune.__version__, "python": platform.python_version(), **installed}


def _onnxruntime_distribution() -> str:
    try:
        version("onnxruntime-gpu")
    except PackageNotFoundError:
        return "onnxruntime"
    return "onnxruntime-gpu"


def _first_difference(there: Any, here: Any, key: str = "") -> str:
    """Name the first key in which two configurations differ, of those that make another run."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for name in dict.fromkeys((*there, *here)):
            if not key and name in NO_OTHER_RUN:
                continue
            difference = _first_difference(there.get(name), here.get(name), f"{key}.{name}".lstrip("."))
            if difference:
                return difference
        return ""
    return "" if there == here else f"{key} is {there} there and {here} here"

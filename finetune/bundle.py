"""The bundle: one entry of a Triton model repository, and all that serving knows of training.

NAME/config.pbtxt    NAME/labels.txt    NAME/1/model.onnx    NAME/1/bundle.json    NAME/1/README.md    NAME/1/golden/
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from finetune.errors import FinetuneError, nearest
from finetune.files import as_json, digest, sha256
from finetune.onnx_file import external_tensor
from finetune.preprocess import Preprocessing
from finetune.triton import labels_file, triton_config

SCHEMA = 2
Precision = Literal["fp32", "fp16", "bf16", "mixed", "int8"]
INPUT, OUTPUT = "images", "probabilities"


class Parity(BaseModel):
    """How the exported file's probabilities compare with the trained model's, over real photos on one provider.

    Differences are absolute, of single probabilities; accuracies are fractions of 1. limit: None for a file of another
    precision, which is judged by its accuracy.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    photos: int
    batch_sizes: tuple[int, ...]
    provider: str
    limit: float | None
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
    """`bundle.json`. parity: one entry a provider; files: the sha256 of every other file of the version, by name.

    changes: what was done to the trained network, in words; asked: the keys of `finetune export` that decide what is in
    the files, done or not; seal: digest of all the rest of this.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int
    model: ModelCard
    precision: Precision
    changes: tuple[str, ...]
    parity: tuple[Parity, ...]
    asked: dict[str, str | float | int | bool | None]
    files: dict[str, str]
    seal: str

    @property
    def expected_seal(self) -> str:
        return digest(json.dumps(self.model_dump(mode="json", exclude={"seal"}), sort_keys=True))

    @property
    def as_text(self) -> str:
        """What stands in the file, to the byte."""
        return as_json(self.model_dump(mode="json"))


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


def beside_versions(card: ModelCard) -> dict[str, str]:
    """Return what Triton reads in a model's folder, by file name."""
    config = triton_config(card.name, INPUT, OUTPUT, card.preprocessing.image_size, len(card.labels))
    return {"labels.txt": labels_file(card.labels), "config.pbtxt": config}


def open_bundle(path: Path) -> Bundle:
    """Open a model's newest version, or the version that `path` names.

    Raises FinetuneError where there is none, or where any of its files is not the one that was exported.
    """
    folder = path if (path / "bundle.json").is_file() else _newest_version(path)
    info = _read_info(folder / "bundle.json")
    for name, expected in info.files.items():
        file = folder / name
        if not file.is_file():
            raise FinetuneError(f"{file} is missing; export the run again")
        if sha256(file) != expected:
            raise FinetuneError(
                f"{file} is not the file that was exported (its sha256 differs from bundle.json): "
                "it was changed or damaged; export the run again"
            )
    bundle = Bundle(folder, info)
    outside = external_tensor(bundle.model)
    if outside is not None:
        raise FinetuneError(
            f"{bundle.model} keeps {outside} in another file; only files that hold all weights are read"
        )
    return bundle


def _read_info(path: Path) -> BundleInfo:
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text)
        version = values["schema_version"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = "it has no schema_version" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise FinetuneError(f"{path} cannot be read: {reason}") from None
    if type(version) is not int:  # true is an int to Python
        raise FinetuneError(
            f"{path} cannot be read: its schema_version is {json.dumps(version)}, no whole number; export the run again"
        )
    if version not in (1, SCHEMA):
        raise FinetuneError(
            f"{path} has schema version {version}, this program reads 1 to {SCHEMA}; "
            "export the run again with this program, or serve it with the one that wrote it"
        )
    try:
        info = BundleInfo.model_validate(_from_first(values) if version == 1 else values)
    except (ValidationError, KeyError) as error:
        reason = f"it has no {error.args[0]}" if isinstance(error, KeyError) else _first_problem(error)
        raise FinetuneError(f"{path} cannot be read: {reason}; export the run again") from None
    if version == SCHEMA and (info.seal != info.expected_seal or text != info.as_text):
        raise FinetuneError(f"{path} is not as it was written: it was changed or damaged; export the run again")
    if "model.onnx" not in info.files:
        raise FinetuneError(f"{path} cannot be read: it does not name model.onnx")
    return info


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg'].lower()}"


def _from_first(values: dict[str, Any]) -> dict[str, Any]:
    """Bring what schema version 1 wrote, float32 files only, into today's form."""
    return {
        "schema_version": SCHEMA,
        "model": values["model"],
        "precision": "fp32",
        "changes": [],
        "parity": [values["parity"]],
        "asked": {"precision": "fp32"},
        "files": {"model.onnx": values["sha256"]},
        "seal": "",
    }


def bundle_folders(repository: Path) -> list[Path]:
    """Return the folders of a repository's models; `repository` may also be one model's folder.

    Raises FinetuneError where there is none.
    """
    if not repository.is_dir():
        beside = [path.name for path in repository.parent.iterdir()] if repository.parent.is_dir() else []
        raise FinetuneError(f"models={repository}: no such folder{nearest(repository.name, beside)}")
    if (repository / "bundle.json").is_file():
        raise FinetuneError(
            f"models={repository} is one version of a model; give the model's folder, models={repository.parent}"
        )
    if versions_of(repository):
        return [repository]
    folders = sorted(path for path in repository.iterdir() if versions_of(path) and not is_hidden(path))
    if not folders:
        raise FinetuneError(
            f"models={repository} holds no bundle (NAME/1/bundle.json); make one: "
            f"finetune export run=RUN output={repository}"
        )
    return folders


def _newest_version(model: Path) -> Path:
    if not model.is_dir():
        beside = [path.name for path in model.parent.iterdir()] if model.parent.is_dir() else []
        raise FinetuneError(f"{model}: no such bundle{nearest(model.name, beside)}")
    numbers = versions_of(model)
    if not numbers:
        raise FinetuneError(f"{model} is no bundle: it has no version folder with a bundle.json in it")
    return model / str(max(numbers))


def is_hidden(folder: Path) -> bool:
    """Whether a folder is still being copied into a repository, by its name; it is renamed when it is whole."""
    return folder.name.startswith(".")


def versions_of(model: Path) -> list[int]:
    """Return the numbers of a model's versions; a folder such as 07 is none, as for Triton."""
    if not model.is_dir():
        return []
    numbered = [path for path in model.iterdir() if re.fullmatch("[1-9][0-9]*", path.name)]
    return [int(path.name) for path in numbered if (path / "bundle.json").is_file()]

"""Small real things: 24 photos, timm's test networks, two epochs."""

from __future__ import annotations

import os

# One thread each: the suite itself runs in parallel. Set before torch and onnxruntime read them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import functools
import logging
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml
from hypothesis import settings
from PIL import Image

from finetune.config import FreezeConfig, OptimizerConfig, SourceConfig, TrainConfig
from finetune.data.manifest import Manifest

if TYPE_CHECKING:
    from finetune.config import AugmentConfig

# a loaded machine is no fault of an example
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

ROOT = Path(__file__).parent.parent
CLASSES = ("blue", "green", "red")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest, which would else run alone at the end, beside idle cores."""
    items.sort(key=lambda item: item.path.name != "test_docs.py")


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test writes where it stands, and what is kept between commands, is its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / f"{tmp_path.name}.cache"))


def source(root: Path | str, **data: object) -> SourceConfig:
    """Return the data section of `finetune check`, with its defaults."""
    values = yaml.safe_load((ROOT / "conf/source.yaml").read_text())
    return SourceConfig.model_validate({**values, "root": str(root), **data})


def freeze_config(**changes: object) -> FreezeConfig:
    """Return freeze=auto, but for these keys."""
    values = yaml.safe_load((ROOT / "conf/freeze/auto.yaml").read_text())
    return FreezeConfig.model_validate({**values, **changes})


def optimizer_config(preset: str = "adamw", **changes: object) -> OptimizerConfig:
    """Return optimizer=PRESET, but for these keys."""
    values = yaml.safe_load((ROOT / f"conf/optimizer/{preset}.yaml").read_text())
    # a rate in proportion to the photos of a step is worked out where those are known
    if isinstance(values["learning_rate"], str) and " per " in values["learning_rate"]:
        values["learning_rate"] = 1e-3
    return OptimizerConfig.model_validate({**values, **changes})


def manifest_of(root: Path | str, seed: int = 0, **data: object) -> Manifest:
    """Return the manifest that training would use."""
    from finetune.data.audit import audit

    return audit(source(root, **data), seed).require_trainable()


def paint(path: Path, label: str, seed: int, size: tuple[int, int] = (80, 60)) -> Path:
    """Save a noisy photo that shows mostly one colour."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 90, (size[1], size[0], 3))
    pixels[..., {"red": 0, "green": 1, "blue": 2}[label]] += 150
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return path


def paint_folder(root: Path, per_class: int = 8) -> Path:
    """Save root/CLASS/N.jpg for the three classes; folders of different names get different photos."""
    first = zlib.crc32(root.name.encode())
    for number, label in enumerate(CLASSES):
        for index in range(per_class):
            paint(root / label / f"{index}.jpg", label, seed=first + 1000 * number + index)
    return root


@pytest.fixture(autouse=True)
def loggers_as_they_were() -> Iterator[None]:
    """A server sets up the loggers of its whole process, here that of all tests."""
    known = [logging.getLogger(name) for name in ("", "finetune", "uvicorn", "uvicorn.error", "uvicorn.access")]
    before = [(one, list(one.handlers), one.level, one.propagate) for one in known]
    yield
    for one, handlers, level, propagate in before:
        one.handlers[:], one.propagate = handlers, propagate
        one.setLevel(level)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """24 photos in three class folders."""
    return paint_folder(tmp_path / "photos")


Finetune = Callable[..., subprocess.CompletedProcess[str]]


def run_finetune(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, as a person would."""
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [sys.executable, "-m", "finetune", *words], capture_output=True, text=True, **{"timeout": 300, **options}
    )


def train_config(*words: str) -> TrainConfig:
    """Return what `finetune train` with these words is configured to do."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from finetune.manual import conf_dir

    with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
        composed = compose("train", ["data.root=photos", "output=run", *words])
    return TrainConfig.model_validate(OmegaConf.to_container(composed, resolve=True))


@functools.cache
def composed_augment(choice: str) -> dict[str, Any]:
    """Return what augment=CHOICE composes to."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from finetune.manual import conf_dir

    with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
        composed = compose("train", [f"augment={choice}", "data.root=photos", "output=run"])
    values: dict[str, Any] = OmegaConf.to_container(composed.augment, resolve=True)  # type: ignore[assignment]
    return values


def augment_config(choice: str = "none", **changes: Any) -> AugmentConfig:
    """Return augment=CHOICE, by default no distortion at all, but for these keys."""
    from finetune.config import AugmentConfig

    return AugmentConfig.model_validate(composed_augment(choice) | changes)


def run_python(code: str) -> str:
    """Run some lines in a Python of their own; return what they print."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


TINY = ("model.backbone=test_resnet", "model.weights=none", "data.image_size=64", "data.num_workers=0")


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished head-only run on 24 photos, its photos beside it in `photos`."""
    from finetune.cli import run

    folder = tmp_path_factory.mktemp("tiny")
    photos = paint_folder(folder / "photos")
    assert run(["train", f"data.root={photos}", f"output={folder / 'run'}", *TINY]) == 0
    return folder / "run"


@pytest.fixture(scope="session")
def tiny_models(tiny_run: Path) -> Path:
    """A model repository with one bundle, `tiny`."""
    from finetune.cli import run

    models = tiny_run.parent / "models"
    assert run(["export", f"run={tiny_run}", f"output={models}", "name=tiny"]) == 0
    return models


def rewrite_bundle(version: Path, **of_model: str) -> None:
    """Change what a bundle says of its model, as if it had been written so."""
    from finetune.bundle import open_bundle

    info = open_bundle(version).info
    info = info.model_copy(update={"model": info.model.model_copy(update=of_model)})
    (version / "bundle.json").write_text(info.model_copy(update={"seal": info.expected_seal}).as_text)

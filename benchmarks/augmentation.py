"""How many photos a second augmentation distorts, and what the PCA colour shift costs of them.

python benchmarks/augmentation.py

Textile photos (PyPI package conformal-clip-data), from the decoded photo to the square that the model is trained on, in
one process with one thread, as in a loader's worker. The pipelines go over all photos in turns, several times, with the
same draws; what counts is each photo's median, so that what else the machine does hardly matters. Exits with 1 where
the colour shift takes more than a tenth of the standard pipeline's speed, or where that is less than ten times the
speed with Albumentations' FancyPCA in its place.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

import albumentations as A
import numpy as np
from conformal_clip_data import textile_simulated_root
from hydra import compose, initialize_config_dir
from numpy.typing import NDArray
from omegaconf import OmegaConf

from finetune.config import AugmentConfig
from finetune.data.augmentation import Augmentation
from finetune.data.pca import fit_colour_pca
from finetune.data.pixels import load
from finetune.manual import conf_dir
from finetune.models.allocator import keep_freed_memory
from finetune.preprocess import Preprocessing

IMAGE_SIZE = 224
PHOTOS = 60
TURNS = 21
PRESETS = ("none", "light", "standard", "strong", "alexnet", "defect")
LEAST_OF_PLAIN, LEAST_OF_FANCY = 0.9, 10.0


def main() -> int:
    keep_freed_memory()  # as training does before its workers start
    paths = _paths()
    components = fit_colour_pca(paths, 10_000)

    def augmentation(preset: str, **changes: float) -> Augmentation:
        return Augmentation(_config(preset, **changes), Preprocessing(image_size=IMAGE_SIZE, fit="squash"), components)

    with_fancy = augmentation("standard", pca_sigma=0.0)
    with_fancy.pipeline = A.Compose([*with_fancy.pipeline.transforms, A.FancyPCA(alpha=0.1, p=1.0)])
    pipelines = {
        "without": augmentation("standard", pca_sigma=0.0),
        "FancyPCA": with_fancy,
        **{preset: augmentation(preset) for preset in PRESETS},
    }
    seconds: dict[str, list[list[float]]] = {name: [] for name in pipelines}
    for turn in range(TURNS + 1):
        for name in random.Random(turn).sample([*pipelines], len(pipelines)):
            spent = _seconds(pipelines[name], paths)
            if turn > 0:  # the first one warms up
                seconds[name].append(spent)
    return _report({name: _rate(np.array(spent)) for name, spent in seconds.items()})


def _seconds(augmentation: Augmentation, paths: list[Path]) -> list[float]:
    """Distort every photo; returns what each took, without the decoding."""
    spent = []
    for seed, path in enumerate(paths):
        pixels = load(path, augmentation.stage)
        started = time.perf_counter()
        augmentation(pixels, seed)
        spent.append(time.perf_counter() - started)
    return spent


def _rate(seconds: NDArray[np.float64]) -> float:
    """Return photos a second. seconds: (turns, photos)."""
    return float(1 / np.median(seconds, axis=0).mean())


def _report(rate: dict[str, float]) -> int:
    of_plain, of_fancy = rate["standard"] / rate["without"], rate["standard"] / rate["FancyPCA"]
    print(f"{IMAGE_SIZE} px, medians of {TURNS} turns    photos/s")
    print(f"standard, with the PCA colour shift {rate['standard']:>8.0f}")
    print(f"standard, without it                {rate['without']:>8.0f}   with / without  {of_plain:.2f}")
    print(f"standard, with FancyPCA instead     {rate['FancyPCA']:>8.0f}   ours / FancyPCA {of_fancy:.1f}")
    for preset in PRESETS:
        print(f"augment={preset:<28}{rate[preset]:>8.0f}")
    missed = of_plain < LEAST_OF_PLAIN or of_fancy < LEAST_OF_FANCY
    if missed:
        print(f"missed: at least {LEAST_OF_PLAIN} of without, and {LEAST_OF_FANCY:.0f} times FancyPCA")
    return int(missed)


def _paths() -> list[Path]:
    found = sorted(textile_simulated_root().rglob("*.jpg"))
    return found[:: len(found) // PHOTOS][:PHOTOS]


def _config(preset: str, **changes: float) -> AugmentConfig:
    with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
        composed = compose("train", [f"augment={preset}"])
    values = OmegaConf.to_container(composed.augment, resolve=True)
    return AugmentConfig.model_validate({**values, **changes})  # type: ignore[dict-item]


if __name__ == "__main__":
    sys.exit(main())

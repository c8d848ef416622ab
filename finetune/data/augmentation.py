"""Distortions of training photos, from the configuration; with `transforms.py` all that knows Albumentations."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import albumentations as A
import cv2
import numpy as np

from finetune.config import AugmentConfig
from finetune.data.pca import ColourPCA
from finetune.data.pixels import Bounded, Stage
from finetune.data.transforms import ColourAdd, LocalWarp, PCAColourShift, TrivialAugment
from finetune.preprocess import Pixels, Preprocessing

# Photos are spread over worker processes; OpenCV's own threads would compete with them and do not survive a fork.
cv2.setNumThreads(0)

# The photo mirrored at its edge: black corners would tell the model how far it was turned.
BORDER = cv2.BORDER_REFLECT_101
GRID_STRIPS = 5
ERASED_RATIO = (0.3, 3.3)


class Augmentation:
    """From a training photo to the distorted square the model sees; the same seed gives the same pixels.

    stage: what photos are to be brought to before.
    """

    stage: Stage

    def __init__(self, config: AugmentConfig, preprocessing: Preprocessing, components: ColourPCA | None) -> None:
        """preprocessing: that of validation; components: needed where config.pca_sigma is above 0."""
        self.stage = preprocessing
        if config.crop_area is not None:
            # from here on crops of a quarter of the area are shrunk, never enlarged
            self.stage = Bounded(2 * preprocessing.image_size, preprocessing.alpha_over)
        elif config.random_crop is not None:
            side_px = round(preprocessing.image_size / config.random_crop)
            self.stage = preprocessing.model_copy(update={"image_size": side_px})
        size = preprocessing.image_size
        self.pipeline = A.Compose([*_crops(config, size), *_shapes(config), *_colours(config, components)])

    def __call__(self, pixels: Pixels, seed: int) -> Pixels:
        """Distort (H, W, 3) uint8 RGB, at its stage, to (image_size, image_size, 3)."""
        # not set_random_seed, which gives every step the same draws: both mirrors would always go together
        self.pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        distorted: Pixels = self.pipeline(image=pixels)["image"]
        return distorted


def _crops(config: AugmentConfig, size: int) -> Iterator[Any]:
    if config.crop_area is not None:
        yield A.RandomResizedCrop(
            size=(size, size),
            scale=config.crop_area,
            ratio=config.crop_ratio,
            interpolation=cv2.INTER_CUBIC,
            # plain cubic shrinking would alias where validation's Pillow does not
            area_for_downscale="image",
        )
    elif config.random_crop is not None:
        yield A.RandomCrop(height=size, width=size)


def _shapes(config: AugmentConfig) -> Iterator[Any]:
    if config.horizontal_flip:
        yield A.HorizontalFlip(p=config.horizontal_flip)
    if config.vertical_flip:
        yield A.VerticalFlip(p=config.vertical_flip)
    if config.dihedral:
        yield A.D4(p=config.dihedral)
    if config.rotate or config.shear:
        # one step, as each resampling blurs
        yield A.Affine(
            rotate=(-config.rotate, config.rotate),
            shear=dict.fromkeys("xy", (-config.shear, config.shear)),
            interpolation=cv2.INTER_CUBIC,
            border_mode=BORDER,
            p=1.0,
        )
    if config.elastic:
        yield LocalWarp(config.elastic)
    if config.grid:
        yield A.GridDistortion(
            num_steps=GRID_STRIPS,
            distort_limit=(-config.grid, config.grid),
            interpolation=cv2.INTER_CUBIC,
            border_mode=BORDER,
            p=1.0,
        )


def _colours(config: AugmentConfig, components: ColourPCA | None) -> Iterator[Any]:
    if config.trivial_augment:
        yield TrivialAugment(p=config.trivial_augment)
    if config.colour_add:
        yield ColourAdd(config.colour_add)
    jitter = {key: getattr(config, key) for key in ("brightness", "contrast", "saturation", "hue")}
    if any(jitter.values()):
        yield A.ColorJitter(**jitter, p=1.0)
    if config.pca_sigma:
        if components is None:
            raise ValueError("a PCA colour shift needs the components of the training photos")
        yield PCAColourShift(components.eigenvalues, components.eigenvectors, config.pca_sigma)
    if config.erase:
        yield A.Erasing(scale=config.erase_area, ratio=ERASED_RATIO, fill="random", p=config.erase)

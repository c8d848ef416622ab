"""Distortions that Albumentations lacks, as its transforms; only this module and `augmentation.py` know Albumentations.

Each draws from Albumentations' generators only, and draws plain numbers, so that it can be seeded, written as JSON and
replayed like any of the library's own.
"""

from __future__ import annotations

from typing import Any

import albumentations as A
import cv2
import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from finetune.data.pca import ColourPCA, add_colour
from finetune.preprocess import Pixels

# Points along a side that local warping moves: bumps of about a seventh of the photo.
WARP_POINTS = 8


class PCAColourShift(A.ImageOnlyTransform):  # type: ignore[misc]  # Albumentations has no types
    """Add one random vector along the training set's colour components to every pixel.

    Unlike Albumentations' FancyPCA, which takes the components of the photo itself and scales its centred pixels, so
    that the mean colour stays where it was.
    """

    class InitSchema(A.ImageOnlyTransform.InitSchema):  # type: ignore[misc]
        eigenvalues: tuple[float, float, float]
        eigenvectors: tuple[tuple[float, float, float], ...]
        sigma: float

    def __init__(
        self,
        eigenvalues: tuple[float, float, float],
        eigenvectors: tuple[tuple[float, float, float], ...],
        sigma: float = 0.1,
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        self.eigenvalues = eigenvalues
        self.eigenvectors = eigenvectors
        self.sigma = sigma
        components = ColourPCA.model_validate({"eigenvalues": eigenvalues, "eigenvectors": eigenvectors})
        # a row for R, G and B each, in plain numbers: for three of them numpy takes longer than all of the rest
        self.channels = components.shift(np.eye(3)).T.tolist()

    def get_params(self) -> dict[str, Any]:
        """Draw the three alphas of one photo."""
        return {"alphas": [self.py_random.gauss(0.0, self.sigma) for _ in range(3)]}

    def apply(self, img: Pixels, alphas: list[float], **_: Any) -> Pixels:
        one, two, three = alphas
        return add_colour(img, [one * a + two * b + three * c for a, b, c in self.channels])

    def get_transform_init_args_names(self) -> tuple[str, ...]:
        return ("eigenvalues", "eigenvectors", "sigma")


class ColourAdd(A.ImageOnlyTransform):  # type: ignore[misc]
    """Add to each channel a level of its own, drawn evenly from -most to most.

    Albumentations' RGBShift cuts its draws to whole levels towards 0, and takes a limit of 1 for all 255.
    """

    class InitSchema(A.ImageOnlyTransform.InitSchema):  # type: ignore[misc]
        most: float

    def __init__(self, most: float = 20.0, p: float = 1.0) -> None:
        super().__init__(p=p)
        self.most = most

    def get_params(self) -> dict[str, Any]:
        """Draw what is added to R, G and B."""
        return {"levels": [self.py_random.uniform(-self.most, self.most) for _ in range(3)]}

    def apply(self, img: Pixels, levels: list[float], **_: Any) -> Pixels:
        return add_colour(img, levels)

    def get_transform_init_args_names(self) -> tuple[str, ...]:
        return ("most",)


class LocalWarp(A.ImageOnlyTransform):  # type: ignore[misc]
    """Shift a coarse grid of points at random and everything between them smoothly along.

    The elastic distortion of Simard et al. 2003, its smooth field interpolated from few points. Albumentations'
    ElasticTransform blurs noise instead and, for want of neighbours, shifts the border several times as far as the
    middle.

    scale: standard deviation of a point's shift along each axis, as a share of the side.
    """

    class InitSchema(A.ImageOnlyTransform.InitSchema):  # type: ignore[misc]
        scale: float

    def __init__(self, scale: float = 0.02, p: float = 1.0) -> None:
        super().__init__(p=p)
        self.scale = scale

    def get_params(self) -> dict[str, Any]:
        """Draw the shift of every point, (rows, columns, (x, y)), as shares of the side."""
        return {"shifts": self.random_generator.normal(0.0, self.scale, (WARP_POINTS, WARP_POINTS, 2)).tolist()}

    def apply(self, img: Pixels, shifts: list[list[list[float]]], **_: Any) -> Pixels:
        height, width = img.shape[:2]
        sides = np.array([width, height], dtype=np.float32)
        smooth = cv2.resize(np.array(shifts, dtype=np.float32) * sides, (width, height), interpolation=cv2.INTER_CUBIC)
        x = smooth[..., 0] + np.arange(width, dtype=np.float32)
        y = smooth[..., 1] + np.arange(height, dtype=np.float32)[:, None]
        warped: Any = cv2.remap(img, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
        return np.asarray(warped, dtype=np.uint8)

    def get_transform_init_args_names(self) -> tuple[str, ...]:
        return ("scale",)


class TrivialAugment(A.ImageOnlyTransform):  # type: ignore[misc]
    """One operation of 14 at a random strength (Müller and Hutter 2021, wide space), as torchvision has it.

    As published, what a shift or a turn moves in from outside is black.
    """

    def __init__(self, p: float = 1.0) -> None:
        super().__init__(p=p)
        self.policy = v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR)

    def get_params(self) -> dict[str, Any]:
        """Draw the seed of torchvision's own draws."""
        return {"seed": self.py_random.getrandbits(63)}

    def apply(self, img: Pixels, seed: int, **_: Any) -> Pixels:
        # torchvision draws from torch's global generator, which the training around it uses too
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return np.array(self.policy(Image.fromarray(img)))

    def get_transform_init_args_names(self) -> tuple[str, ...]:
        return ()
